"""The answer that a text states, as PEFT's method comparison reads it: after the last "The answer is" or "####".

Commas are left out, which theirs keeps in both texts.
"""

from decimal import Decimal, InvalidOperation

# The first of these that the text has is the one whose last place counts.
OPENINGS = ("The answer is: ", "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


def stated(text: str) -> str | None:
    """What the text says the answer is, to the end of that line; None where it says nothing."""
    text = text.strip().rstrip(".!?")
    for opening in OPENINGS:
        if opening in text:
            return text.rpartition(opening)[2].strip().partition("\n")[0].strip(" .!?$%")
    return None


def same(answer: str | None, gold: str) -> bool:
    """Whether two answers are the same number or fraction, or the same text; None is no answer."""
    if answer is None:
        return False
    given, wanted = _number(answer), _number(gold)
    return answer.strip() == gold.strip() if given is None or wanted is None else given == wanted


def _number(text: str) -> float | None:
    """A number or a fraction of two; None of anything else."""
    try:
        above, slash, below = text.replace(",", "").partition("/")
        return float(Decimal(above.strip()) / Decimal(below.strip()) if slash else Decimal(above.strip()))
    except (ArithmeticError, InvalidOperation, ValueError):
        return None
