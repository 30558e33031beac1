"""Whether a written answer has the right number among those of its first line, as AdaptLLM scores ConvFinQA."""

import ast
import math
import re

NUMBER = re.compile(r"([-+]?\.?\d+(?:,\d{3})*\.?\d*(?:[eE][-+]?\d+)?)(%*)")
NEAR = 1e-2  # a number so far from the right one or nearer is right


def figures(text: str) -> list[float | None]:
    """The numbers of a text's first line; 12% is 0.12, and None stands for one that Python would not read (007)."""
    return [_value(digits, len(percent)) for digits, percent in NUMBER.findall(text.split("\n")[0])]


def same(said: str, wanted: str) -> bool:
    """Whether any number of `said` is as near to the first of `wanted` as NEAR; False where either has none."""
    right = next(iter(figures(wanted)), None)
    return right is not None and any(
        one is not None and math.isclose(one, right, abs_tol=NEAR) for one in figures(said)
    )


def _value(digits: str, percents: int) -> float | None:
    try:
        value = float(ast.literal_eval(digits.replace(",", ""))) / 100**percents
    except (SyntaxError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
