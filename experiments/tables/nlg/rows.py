"""Rows of LoRA's GPT tables from records: a row for each method and rank, a cell for each column, over seeds."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.records.checks import is_finite
from experiments.records.results import LOSSES, rate_of, stage_of
from experiments.tables.table import Row, by_setting, ended, place, rates_of, spread, state_of

EXPERIMENTS = ("lora_nlg", "lora_mnli")
MODEL = "smollm2-135m"  # unless another is asked for
LORA_RANK = 4  # of Tables 3, 13 and 14
METHODS = ("fft", "ft-top2", "lin", "houlsby", "prelayer", "lora", "mora")  # which have a row there, run or not
SAMPLES = {"train_examples": "examples", "max_dev_examples": "held out", "max_prompts": "decoded"}  # keys of task
ENOUGH = 2  # runs that a setting needs before its mean held-out loss is compared with that of others
NOT_RUN = ("not run",)  # the notes of such a row
NO_VARIANT = ("", "sharing", "standard", "paper")  # variants and readings that a row's name leaves out


class Column(NamedTuple):
    """A column of a table: which recorded score it shows, and how.

    Attributes:
      title: of the column.
      score: the record's name of it, without the evaluation's: "bleu", "seen/bleu".
      digits: after the point.
      scale: the printed number is the recorded one times it.
      of: which of the row's runs have it; None: all.
    """

    title: str
    score: str
    digits: int = 1
    scale: float = 1.0
    of: Callable[[dict], bool] | None = None


class Stat(NamedTuple):
    """A mean over runs, its sample standard deviation (None of one run), and the number of runs."""

    mean: float
    deviation: float | None
    runs: int

    def text(self, digits: int) -> str:
        """70.4+-0.1."""
        shown = f"{self.mean:.{digits}f}"
        return shown if self.deviation is None else f"{shown}+-{self.deviation:.{digits}f}"


@dataclasses.dataclass(frozen=True)
class NlgRow(Row):
    """A row of a table: the runs of one method, rank and variant.

    Attributes:
      cells: title of a column -> its mean over seeds; a column without a number has none.
      parameters: trainable scalars.
      rates: learning rates of the runs behind the cells, in the columns' order, each once.
      seeds: runs that ended.
      edges: which of `rates` are the smallest or the largest of those that the grid tried.
      notes: why the row is empty, how many seeds were lost, scores that could not be computed, incomplete data.
    """

    cells: Mapping[str, Stat] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    rates: tuple[float | None, ...] = ()
    edges: tuple[float | None, ...] = ()
    seeds: int = 0
    notes: tuple[str, ...] = ()


def rows(
    results: Sequence[dict],
    model: str,
    tasks: Sequence[str],
    columns: Sequence[Column],
    methods: Sequence[str],
    keep: Callable[[dict], bool] = lambda result: True,
    sampled: bool = True,
) -> list[NlgRow]:
    """The rows on one base model, by method.

    Args:
      model: labels.model.
      tasks: labels.task; several where columns are of different tasks.
      methods: those that have a row, run or not.
      keep: whether the table shows a record.
      sampled: whether runs on some of the training rows have rows of their own; otherwise the columns tell them apart.
    """
    groups: dict[tuple[str, int | None, str], list[dict]] = {}
    for result in results:
        labels = result["labels"]
        if (result.get("config") or {}).get("experiment") not in EXPERIMENTS or labels.get("model") != model:
            continue
        if stage_of(result) == "full" and labels.get("task") in tasks and keep(result):
            groups.setdefault(key_of(result, sampled), []).append(result)
    tried = [result for result in results if stage_of(result) == "rates" and result["labels"].get("model") == model]
    missing = [(method, None, "") for method in methods if all(key[0] != method for key in groups)]
    keys = sorted([*groups, *missing], key=place)
    return [_with_edge(make_row(key, groups.get(key, []), columns), key[0], groups.get(key, []), tried) for key in keys]


def _with_edge(row: NlgRow, method: str, runs: Sequence[dict], tried: Sequence[dict]) -> NlgRow:
    """The row with its `edges`: of the rates tried on its own task, otherwise on any; of any rank."""
    kinds, tasks = {run["config"].get("experiment") for run in runs}, {run["labels"].get("task") for run in runs}
    like = [one for one in tried if one["labels"].get("method") == method and one["config"].get("experiment") in kinds]
    rates = rates_of([one for one in like if one["labels"].get("task") in tasks] or like)
    ends = (rates[0], rates[-1]) if len(rates) > 1 else ()
    return dataclasses.replace(row, edges=tuple(rate for rate in row.rates if rate in ends))


def key_of(result: dict, sampled: bool = True) -> tuple[str, int | None, str]:
    """(method, rank, variant); the variant names what was left out of the official data, with `sampled`."""
    labels, task = result["labels"], (result.get("config") or {}).get("task") or {}
    words = [word for name in ("variant", "reading") if (word := labels.get(name) or "") not in NO_VARIANT]
    if sampled:
        words += [f"{task[name]} {what}" for name, what in SAMPLES.items() if task.get(name)]
    return labels.get("method") or "?", labels.get("rank"), " ".join(map(str, words))


def make_row(key: tuple[str, int | None, str], runs: Sequence[dict], columns: Sequence[Column]) -> NlgRow:
    """The row of one key: for each column the mean over the seeds of one setting."""
    if not runs:
        return NlgRow(*key, notes=NOT_RUN)
    done = ended(runs)
    if not done:
        return NlgRow(*key, notes=tuple(sorted({state_of(run) for run in runs})))
    cells, notes, counted = {}, [], []
    for of in dict.fromkeys(column.of for column in columns):  # columns of one task are of the same runs
        own = [column for column in columns if column.of == of]
        chosen, left = _one_setting([run for run in done if of is None or of(run)], [column.score for column in own])
        for column in own:
            found = [score for run in chosen if (score := score_of(run, column.score)) is not None]
            if found:
                values = [score * column.scale for score in found]
                cells[column.title] = Stat(statistics.fmean(values), spread(values), len(values))
        notes += [f"{f'{own[0].title}: ' if of else ''}{left} run(s) of other settings left out"] if left else []
        counted += chosen
    lost = len(runs) - len(done)
    notes += [f"and {lost} lost"] if lost else []
    unread = max((score_of(run, "unread") or 0 for run in counted), default=0)
    notes += [f"{unread:g} target(s) could not be read as a query and are left out"] if unread else []
    for run in done:
        notes += [f"{name} {why}" for name, why in (run.get("missing") or {}).items()]
        notes += run.get("notes") or [] if run.get("partial") else []
    shown = counted or done
    return NlgRow(
        *key,
        cells=cells,
        parameters=(shown[0].get("parameters") or {}).get("trainable"),
        rates=tuple(dict.fromkeys(rate_of(run) for run in shown)),
        seeds=max((cell.runs for cell in cells.values()), default=0),
        notes=tuple(dict.fromkeys(notes)),
    )


def score_of(run: dict, name: str) -> float | None:
    """A run's score: of a loss the smallest over its evaluations, of others the last one.

    None without any, and where the last one is no number or has rows without a likelihood ("nonfinite"): that of an
    earlier epoch would be of weights that the run did not keep.
    """
    found = [
        value if is_finite(value) and not evaluation.get(f"{key.removesuffix(name)}nonfinite") else None
        for evaluation in run.get("evaluations") or []
        for key, value in evaluation.items()
        if key == name or key.endswith(f"/{name}")
    ]
    if name in LOSSES:
        return min((value for value in found if value is not None), default=None)
    return found[-1] if found else None


def _one_setting(runs: Sequence[dict], scores: Sequence[str]) -> tuple[list[dict], int]:
    """The runs that have a score and differ in seeds alone.

    Groups are compared in which at least ENOUGH runs have as many scores as any run has: the one with the smallest
    held-out loss is taken. Where there is no such group, it is the one with most scores.

    Returns:
      (the runs, how many others have a score).
    """
    counts = {id(run): sum(score_of(run, name) is not None for name in scores) for run in runs}
    runs = [run for run in runs if counts[id(run)]]
    groups, most = by_setting(runs), max(counts.values(), default=0)
    enough = [group for group in groups if sum(counts[id(run)] == most for run in group) >= ENOUGH]
    fullest = min(groups, key=lambda group: (-sum(counts[id(run)] for run in group), *_loss(group)), default=[])
    best = min(enough, key=_loss, default=fullest)
    return best, len(runs) - len(best)


def _loss(runs: Sequence[dict]) -> tuple[float, str]:
    """The mean held-out loss, by which rates are chosen; of equals the first by name, whatever the order of files.

    A run without a finite loss counts as infinite, as a mean over the others would hide a run that diverged.
    """
    found = [math.inf if (loss := score_of(run, "loss")) is None else loss for run in runs]
    return statistics.fmean(found), min(run["name"] for run in runs)
