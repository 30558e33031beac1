"""The record of a run, its result.json: what it holds, how it is read, and a run in a few words."""

import math
import statistics
from pathlib import Path
from typing import Any

from experiments.records.checks import check_record, is_finite
from experiments.records.environment import environment_record
from lowrank_jax.core import json_text
from lowrank_jax.core.files import kind_of, read_bytes

LOSS_POINTS = 400  # a figure of 9 inches shows no more, and a record stays near 10 kB
LOSS_WINDOW = 20  # steps over which a final training loss is averaged
RISEN = 0.02  # a held-out loss that is larger than its lowest by this share has risen
EVALUATION = "eval/"  # what an evaluation's keys start with in metrics.jsonl


def read_result(path: str | Path) -> dict | None:
    """A result.json; None where there is no file, or one that is not the record of a run (half of one, for example).

    Raises:
      UserError: it is a folder or a pipe, or a record with a field of another type than a run writes.
    """
    if kind_of(path) is None:
        return None
    try:
        result = json_text.parse(read_bytes(path), finite=True)
    except json_text.NotJson:
        return None
    if not isinstance(result, dict) or "status" not in result:
        return None
    check_record(result, str(path), "remove it, and the run goes on from its last checkpoint")
    return result


def result_record(
    name: str,
    plain: dict,
    status: str,
    *,
    wall_seconds: float,
    train_seconds: float,
    parameters: dict[str, int],
    evaluations: list[dict],
    losses: list,
    environment: dict | None = None,
    **more: Any,
) -> dict:
    """The content of result.json.

    Args:
      name: the run's name.
      plain: its plain config; its labels are repeated outside it.
      status: "finished", "diverged", or another end.
      wall_seconds, train_seconds: from the last start to the end, and optimizer steps alone, over all starts.
      parameters: {"trainable": ..., "frozen": ...}.
      evaluations: [{"step", "char_accuracy", "exact_match", ...}], fractions of 1.
      losses: (step, loss) pairs; thinned to LOSS_POINTS.
      environment: by default that of `environment_record()`.
    """
    return {
        "name": name,
        "status": status,
        "labels": plain.get("labels") or {},
        "config": plain,
        "environment": environment_record() if environment is None else environment,
        "wall_seconds": wall_seconds,
        "train_seconds": train_seconds,
        "parameters": parameters,
        "evaluations": evaluations,
        "losses": thin(losses),
        **more,
    }


def split_metrics(records: list[dict]) -> tuple[list[tuple[int, float]], list[dict]]:
    """(step, loss) pairs and evaluations of metrics.jsonl, by step; of a step recorded twice the last record counts."""
    losses, evaluations = {}, {}
    for record in records:
        step = record["step"]
        if record.get("loss") is not None:
            losses[step] = record["loss"]
        scores = {key.removeprefix(EVALUATION): value for key, value in record.items() if key.startswith(EVALUATION)}
        if scores:
            evaluations.setdefault(step, {"step": step}).update(scores)
    return sorted(losses.items()), [evaluations[step] for step in sorted(evaluations)]


def thin(points: list, limit: int = LOSS_POINTS) -> list[list]:
    """At most `limit` points: the last LOSS_WINDOW and the rest evenly spread with the first."""
    points = [[int(step), round(float(loss), 6)] for step, loss in points]
    if len(points) <= limit:
        return points
    head, tail = points[:-LOSS_WINDOW], points[-LOSS_WINDOW:]
    keep = limit - len(tail)
    return [head[i * len(head) // keep] for i in range(keep)] + tail


def last_evaluation(result: dict) -> dict[str, float]:
    """The scores of the last evaluation, without its step."""
    last = (result.get("evaluations") or [{}])[-1]
    return {name: value for name, value in last.items() if name != "step"}


def final_loss(result: dict, window: int = LOSS_WINDOW) -> float:
    """Training loss averaged over the last `window` steps; infinite for a run that diverged or has no losses."""
    losses = result.get("losses") or []
    if result.get("status") == "diverged" or not losses:
        return math.inf
    last = losses[-1][0]
    values = [loss for step, loss in losses if step > last - window]
    if not all(map(is_finite, values)):
        return math.inf
    return statistics.fmean(values)


def score_name(name: str) -> str:
    """A score's name in text: "held-out loss" for an evaluation's "loss", to tell it from the training loss."""
    entry, _, score = name.rpartition("/")
    return f"{entry}{'/' if entry else ''}{'held-out loss' if score == 'loss' else score}"


def summary(result: dict) -> str:
    """A result in a few words: training loss over the last steps, scores of the last evaluation, times."""
    words, losses = [], result.get("losses") or []
    if math.isfinite(loss := final_loss(result)):
        steps = min(LOSS_WINDOW, losses[-1][0])
        words = [f"training loss {loss:.4f} (mean of the last {steps} step{'s' if steps > 1 else ''})"]
    elif losses and losses[-1][1] is not None:  # the last finite one of a run that diverged
        words = [f"training loss {losses[-1][1]:.4f} (of step {losses[-1][0]})"]
    words += [
        f"{score_name(name)} {value:.4g}{_lowest(result, name, value)}"
        for name, value in last_evaluation(result).items()
        if isinstance(value, int | float)
    ]
    whole = f", {wall:.1f} s from start to end" if (wall := result.get("wall_seconds")) else ""
    return ", ".join([*words, f"{result.get('train_seconds') or 0:.1f} s of training{whole}"])


def _lowest(result: dict, name: str, last: float) -> str:
    """ " (lowest 1.231, at step 48)" of a held-out loss that has risen by more than RISEN since; otherwise ""."""
    if name.rpartition("/")[2] != "loss":
        return ""
    earlier = [(one[name], one["step"]) for one in result["evaluations"] if is_finite(one.get(name))]
    lowest, step = min(earlier, default=(last, 0))
    return f" (lowest {lowest:.4g}, at step {step})" if last > (1 + RISEN) * lowest else ""
