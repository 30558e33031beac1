"""The final number of a GSM8K text, as lm-eval's two filters find it and as its exact match compares it.

strict: the number after the first "#### "; flexible: the last number of the text. Neither computes: 18.00 is not 18.
"""

import re

INVALID = "[invalid]"  # where a filter finds nothing
_STRICT = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def strict(text: str) -> str:
    """The number after the first "#### ", or INVALID."""
    found = _STRICT.search(text)
    return found[1].strip() if found else INVALID


def flexible(text: str) -> str:
    """The last number of the text, or INVALID."""
    found = _FLEXIBLE.findall(text)
    return found[-1].strip() if found else INVALID


def same(answer: str, gold: str) -> bool:
    """Whether two answers are the same without commas, dollar signs, what is before "#### ", and a last full stop."""
    return _bare(answer) == _bare(gold)


def _bare(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()
