"""A program that judges answers by math-verify: reads JSON lines [gold, answer], writes true or false for each.

`verify` starts it as a file, so that it imports nothing of this package. It writes an empty line once it is ready.
"""

import json
import sys
from collections.abc import Iterable
from typing import Any

MINUS = str.maketrans({"\N{MINUS SIGN}": "-"})  # math-verify finds no number in a text with it


def equal(gold: str, answer: str) -> bool:
    """math-verify's verdict, without its time limits, which are signals; a Unicode minus counts as "-"."""
    from math_verify import parse, verify

    untimed: Any = None  # their annotations allow no None, their documentation does
    wanted, given = (parse(text.translate(MINUS), parsing_timeout=untimed) for text in (gold, answer))
    return bool(verify(wanted, given, timeout_seconds=untimed))


def main(lines: Iterable[str]) -> None:
    """Writes a verdict for each line."""
    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns of each text that it cannot parse
    equal("1", "1")  # imports sympy, and fails here where math-verify is damaged
    print(flush=True)
    for line in lines:
        try:
            right = equal(*json.loads(line))
        except Exception:  # whatever a text makes sympy raise: it is no right answer
            right = False
        print(json.dumps(right), flush=True)


if __name__ == "__main__":
    main(sys.stdin)
