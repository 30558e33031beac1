"""Rows of MoRA's fine-tuning tables from records: one for each method, rank and variant, with its runs by task."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from experiments.records.results import stage_of
from experiments.tables.table import Row, by_setting, ended, place, rates_of, spread, state_of

EXPERIMENT = "mora_finetune"
MODEL = "smollm2-135m"  # unless another is asked for
LARGE_RANK = 128  # sharing from here on, rotation below: as in configs/mora_finetune.py
SEEDS = 3  # with fewer, no row has a place in an order
PLAIN_READING = "paper"
HIGHER, LOWER, NEAR = "higher", "lower", "not separated"


@dataclasses.dataclass(frozen=True)
class TuneRow(Row):
    """One row: for each task the runs of one setting, which differ in seeds alone, and notes.

    Attributes:
      runs: task -> runs that ended.
      notes: task -> why it has no runs, or how many were left out.
    """

    runs: Mapping[str, Sequence[dict]] = dataclasses.field(default_factory=dict)
    notes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int | None:
        """Trainable scalars."""
        one = next((run for runs in self.runs.values() for run in runs), {})
        return (one.get("parameters") or {}).get("trainable")

    @property
    def published(self) -> tuple[str, int | None] | None:
        """The key of the paper's row; None where the paper has no such variant."""
        return (self.method, self.rank) if self.variant == own_variant(self.method, self.rank) else None

    def why(self, task: str) -> str:
        """The text of a cell without runs."""
        return self.notes.get(task, "not run")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The held-out loss at the end: mean over seeds, its sample standard deviation (None of one), the base's."""

    mean: float
    deviation: float | None
    seeds: int
    base: float | None

    @property
    def text(self) -> str:
        """1.2345+-0.0012."""
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f"+-{self.deviation:.4f}")


def own_variant(method: str, rank: int | None) -> str:
    """The variant of the paper's row: MoRA's compression where it is not sharing."""
    return "rotation" if method == "mora" and (rank or 0) < LARGE_RANK else ""


def rows(results: Sequence[dict], model: str, tasks: Sequence[str]) -> list[TuneRow]:
    """The rows of the runs on one base, by method, rank and variant.

    Args:
      model: labels.model.
      tasks: labels.task of the runs that are shown.
    """
    groups: dict[tuple[str, int | None, str], dict[str, list[dict]]] = {}
    for result in results:
        labels = result["labels"]
        if (result.get("config") or {}).get("experiment") != EXPERIMENT or labels.get("model") != model:
            continue
        if stage_of(result) == "full" and labels.get("task") in tasks:
            words = [labels.get("variant") or "", *([reading] if (reading := _reading(labels)) else [])]
            key = (labels.get("method") or "?", labels.get("rank"), " ".join(filter(None, words)))
            groups.setdefault(key, {}).setdefault(labels["task"], []).append(result)
    return [_row(key, groups[key]) for key in sorted(groups, key=place)]


def loss_of(runs: Sequence[dict]) -> Loss | None:
    """The held-out loss of runs of one setting; None without any."""
    ends = [one for run in runs if (one := _last(run, "loss")) is not None]
    starts = [one for run in runs if (one := _at_start(run)) is not None]
    if not ends:
        return None
    return Loss(statistics.fmean(ends), spread(ends), len(ends), statistics.fmean(starts) if starts else None)


def rise_of(runs: Sequence[dict]) -> str:
    """The mean rise of the loss on other text, by source: "novels +0.012, peps +0.034"; or that it was not measured."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for source, one in (run.get("forgetting") or {}).items():
            found.setdefault(source, []).append(one["rise"])
    return ", ".join(f"{name} {statistics.fmean(each):+.3f}" for name, each in sorted(found.items())) or "not measured"


def order_of(losses: Mapping[str, Loss]) -> dict[str, str]:
    """Place of each row by its held-out loss, of those with SEEDS seeds.

    "2~" is a second row whose distance from the first is below the larger of their standard deviations.
    """
    ranked = sorted((name for name, loss in losses.items() if loss.seeds >= SEEDS), key=lambda name: losses[name].mean)
    places, before = {}, None
    for number, name in enumerate(ranked, 1):
        near = before and losses[name].mean - losses[before].mean < max(
            losses[name].deviation or 0.0, losses[before].deviation or 0.0
        )
        places[name], before = f"{number}{'~' if near else ''}", name
    return {name: places.get(name, f"{loss.seeds} seed(s)") for name, loss in losses.items()}


def separated(mine: Loss, theirs: Loss) -> str:
    """Whether a mean loss is lower or higher than another by more than the larger of their standard deviations."""
    if abs(mine.mean - theirs.mean) <= max(mine.deviation or 0.0, theirs.deviation or 0.0):
        return NEAR
    return LOWER if mine.mean < theirs.mean else HIGHER


def rates_text(runs: Sequence[dict]) -> str:
    """The rates of the runs, "-" without any."""
    return ", ".join(f"{rate:g}" for rate in rates_of(runs)) or "-"


def _row(key: tuple[str, int | None, str], by_task: Mapping[str, Sequence[dict]]) -> TuneRow:
    chosen, notes = {}, {}
    for task, runs in by_task.items():
        done = ended(runs)
        if not done:
            notes[task] = "; ".join(sorted({state_of(run) for run in runs}))
            continue
        chosen[task], left = _one_setting(done)
        lost = len(runs) - len(done)
        words = [f"{left} run(s) of other settings left out"] if left else []
        notes |= {task: "; ".join([*words, *([f"{lost} lost"] if lost else [])])} if words or lost else {}
    return TuneRow(*key, runs=chosen, notes=notes)


def _one_setting(runs: Sequence[dict]) -> tuple[list[dict], int]:
    """(the largest group of runs that differ in seeds alone, how many runs are not in it)."""
    # Of equals the first by name: a table must not depend on the order of files.
    best = min(by_setting(runs), key=lambda group: (-len(group), min(run["name"] for run in group)))
    return best, len(runs) - len(best)


def _reading(labels: Mapping[str, str]) -> str:
    reading = labels.get("reading") or ""
    return "" if reading == PLAIN_READING else reading


def _last(run: dict, name: str) -> float | None:
    found = [one[name] for one in run.get("evaluations") or [] if name in one and one["step"] > 0]
    return found[-1] if found else None


def _at_start(run: dict) -> float | None:
    """The held-out loss before training; an exam's loss is another."""
    evals = (run.get("config") or {}).get("evals") or {}
    names = [name for name, one in evals.items() if isinstance(one, Mapping) and one.get("type") == "likelihood"]
    found = (one for one in run.get("evaluations") or [] if one["step"] == 0)
    return next((one[f"{name}/loss"] for one in found for name in names if f"{name}/loss" in one), None)
