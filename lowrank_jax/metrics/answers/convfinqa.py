"""Compares the numbers of a written answer's first line with the right one, as AdaptLLM scores ConvFinQA."""

import ast
import math
import re

NUMBER = re.compile(r"([-+]?\.?\d+(?:,\d{3})*\.?\d*(?:[eE][-+]?\d+)?)(%*)")
NEAR = 1e-2  # a number is right if it is no further than this from the right one


def numbers(text: str) -> list[float | None]:
    """The numbers of a text's first line; 12% is 0.12, and None stands for one that Python does not read (007)."""
    return [_value(digits, len(percent)) for digits, percent in NUMBER.findall(text.split("\n")[0])]


def same(said: str, wanted: str) -> bool:
    """Whether any number of `said` is within NEAR of the first number of `wanted`; False where either has none."""
    right = next(iter(numbers(wanted)), None)
    return right is not None and any(
        one is not None and math.isclose(one, right, abs_tol=NEAR) for one in numbers(said)
    )


def _value(digits: str, percents: int) -> float | None:
    try:
        value = float(ast.literal_eval(digits.replace(",", ""))) / 100**percents
    except (SyntaxError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None
