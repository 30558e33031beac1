"""The choice of a value by earlier cells of a grid: the best of those that were tried, a neighbour, or one beyond."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.records import run_record
from lowrank_jax.core.errors import UserError

# Prefix of an override that takes its value from the best cell of earlier stages: "best:STAGE" or "best:STAGE+STAGE",
# by the training loss; "best:STAGE:SCORE", by the lowest last SCORE of its evaluations ("loss" is the held-out loss);
# "best:STAGE:SCORE:WHICH" (or "best:STAGE::WHICH") for another value than the best, see WHICH;
# "best:STAGE:SCORE:WHICH:mean" goes by the mean over seeds, see `best_mean`.
BEST = "best:"
LOWER, HIGHER, BEYOND = "lower", "higher", "beyond"
MEAN = "mean"
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
    """What a "best:" asks for: of which stages, by which score, which value, and whether by the mean over seeds."""

    stages: tuple[str, ...]
    score: str
    which: str
    mean: bool = False


def is_best(value: Any) -> bool:
    """Whether an override takes its value from earlier cells."""
    return isinstance(value, str) and value.startswith(BEST)


def parse(value: str) -> Choice:
    """The parts of a "best:" override.

    Raises:
      UserError: it has more than four parts, or an unknown third or fourth one.
    """
    stages, *rest = value.removeprefix(BEST).split(":")
    score, which, over = (*rest, "", "", "")[:3]
    if len(rest) > 3 or which not in WHICH or over not in ("", MEAN):
        known = ", ".join(filter(None, WHICH))
        raise UserError(
            f"{value!r} asks for {':'.join(rest[1:])!r}; write {BEST}STAGE:SCORE:WHICH, WHICH of {known}, and :{MEAN} "
            "after it to go by the mean over seeds"
        )
    return Choice(tuple(stages.split("+")), score, which, over == MEAN)


def chosen_value(results: Sequence[dict], path: str, choice: Choice) -> Any:
    """The value at `path` that a choice finds among the results of its stages; None where none has a finite loss.

    Raises:
      NotNeeded: `BEYOND`, and the best value has tried ones on both sides (by the mean: tried with as many seeds).
      UserError: a step is asked for of values that have none.
    """
    best, lacking = best_value(results, path, choice.score), set()
    if choice.mean:
        best, lacking = best_mean(results, path, choice.score)
    if best is None or not choice.which:
        return best
    tried = sorted({lookup(result["config"], path) for result in results})
    place = tried.index(best)
    if choice.which == BEYOND:
        open_sides = [at for at in (place - 1, place + 1) if not 0 <= at < len(tried) or tried[at] in lacking]
        if not open_sides:
            raise NotNeeded(f"not needed: {best:g} lies between others that were tried")
        wanted = open_sides[0]
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


def best_mean(results: Sequence[dict], path: str, score: str = "") -> tuple[Any, set[Any]]:
    """The value with the lowest mean loss over seeds, and the values that have too few seeds to be compared with it.

    The best is one of those with most seeds, of which none has a loss that is not finite; of equals the larger; None
    without any. A value that lost a seed by divergence cannot be the best and lacks nothing. The table `rates` chooses
    and marks by the same rule (experiments/tables/rates/rows.py).

    Args:
      results, path, score: of `best_value`.
    """
    losses: dict[Any, dict[Any, float]] = {}  # value -> seed -> loss
    for result in results:
        by_seed = losses.setdefault(lookup(result["config"], path), {})
        by_seed[result["config"].get("seed") or 0] = _loss_of(result, score)
    whole = {value: found for value, found in losses.items() if all(map(math.isfinite, found.values()))}
    most = max(map(len, whole.values()), default=0)
    means = {value: statistics.fmean(found.values()) for value, found in whole.items() if len(found) == most}
    lowest = min(means.values(), default=None)
    best = max((value for value, mean in means.items() if mean == lowest), default=None)
    return best, {value for value, found in whole.items() if len(found) < most}


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
