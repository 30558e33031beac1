"""The choice of a value by earlier cells of a grid: the best of those that were tried, a neighbour, or one beyond."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.records import run_record
from lowrank_jax.core.errors import UserError

# Prefix of an override that takes its value from the best cell of earlier stages: "best:STAGE" or "best:STAGE+STAGE",
# by the training loss; "best:STAGE:SCORE", by the lowest last SCORE of its evaluations ("loss" is the held-out loss);
# "best:STAGE:SCORE:WHICH" (or "best:STAGE::WHICH") for another value than the best, see WHICH.
BEST = "best:"
LOWER, HIGHER, BEYOND = "lower", "higher", "beyond"
WHICH = {
    "": "the best value",
    LOWER: "the next smaller one that was tried, or one step below the smallest",
    HIGHER: "the next larger one that was tried, or one step above the largest",
    BEYOND: "one step beyond the best where that is the smallest or largest; otherwise the cell is not needed",
}
DIGITS = 3  # of a value that no cell has tried: 4.64e-05


class NotNeeded(Exception):
    """Raised where a cell is left out: its value would be of no use, or an earlier cell is the same run."""


class Choice(NamedTuple):
    """What a "best:" asks for: of which stages, by which score, which value."""

    stages: tuple[str, ...]
    score: str
    which: str


def is_best(value: Any) -> bool:
    """Whether an override takes its value from earlier cells."""
    return isinstance(value, str) and value.startswith(BEST)


def parse(value: str) -> Choice:
    """The parts of a "best:" override.

    Raises:
      UserError: it has more than three parts, or an unknown last one.
    """
    stages, *rest = value.removeprefix(BEST).split(":")
    score, which = (*rest, "", "")[:2]
    if len(rest) > 2 or which not in WHICH:
        known = ", ".join(filter(None, WHICH))
        raise UserError(f"{value!r} asks for {':'.join(rest[1:])!r}; write {BEST}STAGE:SCORE:WHICH, WHICH of {known}")
    return Choice(tuple(stages.split("+")), score, which)


def chosen_value(results: Sequence[dict], path: str, choice: Choice) -> Any:
    """The value at `path` that a choice finds among the results of its stages; None where none has a finite loss.

    Raises:
      NotNeeded: `BEYOND`, and the best value has tried ones on both sides.
      UserError: a step is asked for of values that have none.
    """
    best = best_value(results, path, choice.score)
    if best is None or not choice.which:
        return best
    tried = sorted({lookup(result["config"], path) for result in results})
    place = tried.index(best)
    if choice.which == BEYOND:
        if 0 < place < len(tried) - 1:
            raise NotNeeded(f"not needed: {best:g} lies between others that were tried")
        wanted = place - 1 if place == 0 else place + 1
    else:
        wanted = place + (1 if choice.which == HIGHER else -1)
    if 0 <= wanted < len(tried):
        return tried[wanted]
    return _step(tried, path, up=wanted > 0)


def best_value(results: Sequence[dict], path: str, score: str = "") -> Any:
    """The config value at `path` of the result with the lowest loss; of equals the larger; None without any.

    Args:
      results: of the trials.
      path: dotted.
      score: of the last evaluation; "" is the training loss at the end.
    """
    scored = [(_loss_of(result, score), lookup(result["config"], path)) for result in results]
    finite = [pair for pair in scored if math.isfinite(pair[0])]
    if not finite:
        return None
    lowest = min(loss for loss, _ in finite)
    return max(value for loss, value in finite if loss == lowest)


def lookup(plain: Any, path: str) -> Any:
    """The value at a path."""
    for key in path.split("."):
        plain = plain[key]
    return plain


def _step(tried: Sequence[Any], path: str, up: bool) -> float:
    """One step beyond the tried values: the mean factor between them, applied once more."""
    if len(tried) < 2 or not all(isinstance(value, int | float) and value > 0 for value in tried):
        raise UserError(f"{path} has no step to take beyond {tried}; a step needs two values above 0")
    factor = (tried[-1] / tried[0]) ** (1 / (len(tried) - 1))
    value = tried[-1] * factor if up else tried[0] / factor
    return float(f"{value:.{DIGITS}g}")


def _loss_of(result: dict, score: str) -> float:
    if not score:
        return run_record.final_loss(result)
    value = run_record.last_evaluation(result).get(score)
    return value if result.get("status") == "finished" and isinstance(value, int | float) else math.inf
