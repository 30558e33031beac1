"""Rows of MoRA's Table 3 from records: a row for each method at the rate that won, over its seeds, by setting."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.records.results import at_step, rate_of
from experiments.tables.table import Row, ended, medians, spread, state_of

EXPERIMENT = "mora_pretrain"
METHODS = ("fft", "lora", "mora", "relora", "remora")  # each has a row, whether it was run or not
SCORE = "perplexity"


@dataclasses.dataclass(frozen=True)
class PretrainRow(Row):
    """The runs of one method at its chosen rate.

    Attributes:
      scores: last held-out perplexity of each seed.
      losses: {step: median training loss}.
      counts: {kind of matrix: mean number of singular values above 0.1, over layers and seeds}.
      tried: {rate: perplexity of the first seed}, the grid's.
      parameters, rate, merges: trained scalars; the chosen rate; how many merges a run has.
      note: why scores are missing, all or some, or that the grid ends at the rate.
      runs: the records that the scores are of.
    """

    scores: tuple[float, ...] = ()
    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tried: Mapping[float, float | None] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    rate: float | None = None
    merges: int = 0
    note: str = ""
    runs: tuple[dict, ...] = ()

    @property
    def mean(self) -> float | None:
        """Mean perplexity over seeds."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None of one."""
        return spread(self.scores)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Runs of one shape, data, length and reading.

    Attributes:
      name: in words.
      rows: by method.
      steps: of training.
      positions: of all batches together, padding included.
      reading, scale: the runs' labels.
      kind: equal for settings that differ in their steps alone.
    """

    name: str
    rows: tuple[PretrainRow, ...]
    steps: int = 0
    positions: int = 0
    reading: str = "paper"
    scale: str = ""
    kind: tuple = ()

    @property
    def padded(self) -> bool:
        """Whether a row of a batch is one document, cut or padded, so that fewer tokens are read."""
        configs = (run["config"] for row in self.rows for run in row.runs)
        return any((config.get("task") or {}).get("packed") is False for config in configs)

    @property
    def data(self) -> str:
        """The training data's sources, with spaces between."""
        return next((_sources(run) for row in self.rows for run in row.runs), "")


def settings(results: Sequence[dict]) -> list[Setting]:
    """The settings that have runs, the one with most first; one without runs where there are none."""
    groups: dict[tuple, list[dict]] = {}
    for result in results:
        if (result.get("config") or {}).get("experiment") == EXPERIMENT:
            groups.setdefault(_key(result), []).append(result)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), str(item[0])))
    return [_setting(key, group) for key, group in ordered] or [Setting("", tuple(_row(m, []) for m in METHODS))]


def _key(result: dict) -> tuple:
    config, labels = result["config"], result["labels"]
    train, task = config.get("train") or {}, config.get("task") or {}
    base, reading = (config.get("base") or {}).get("name"), labels.get("reading") or "paper"
    return (base, reading, train.get("steps"), train.get("batch_size"), task.get("seq_len"), _files(task.get("path")))


def _files(path: Any) -> str:
    """The data's file names, without their folder, which differs by machine."""
    return " ".join(str(one).rpartition("/")[2] for one in ([path] if isinstance(path, str) else path or ()))


def _sources(result: dict) -> str:
    path = (result["config"].get("task") or {}).get("path")
    return " ".join([path] if isinstance(path, str) else map(str, path or ()))


def _setting(key: tuple, group: list[dict]) -> Setting:
    base, reading, steps, batch, length, _ = key
    name = f"{base}, {steps:,} steps of {batch} x {length} tokens, reading={reading}"
    methods = [*METHODS, *sorted({r["labels"].get("method") or "?" for r in group} - {*METHODS})]
    rows = (_row(method, [r for r in group if r["labels"].get("method") == method]) for method in methods)
    scale = group[0]["labels"].get("scale") or ""
    return Setting(name, tuple(rows), steps, steps * batch * length, reading, scale, (*key[:2], *key[3:]))


def _row(method: str, group: list[dict]) -> PretrainRow:
    """Of several rates the one with most seeds, then the one with the lowest perplexity."""
    done = [r for r in ended(group) if _score(r) is not None]
    rates = sorted({rate for r in group if (rate := rate_of(r)) is not None})
    if not done:
        return PretrainRow(method, None, note="; ".join(sorted({state_of(r) for r in group})) or "not run")
    by_rate: dict[float, list[dict]] = {}
    for result in done:
        by_rate.setdefault(rate_of(result) or 0.0, []).append(result)
    rate, best = min(by_rate.items(), key=lambda item: (-len(item[1]), statistics.fmean(map(_known, item[1]))))
    lost = [r for r in group if rate_of(r) == rate and r not in best]
    stopped = [r for r in best if r["status"] == "interrupted"]
    notes = [f"stopped{at_step(stopped[0])}"] if stopped else []
    notes += [f"{len(lost)} seeds {lost[0]['status']}"] if lost else []
    notes += ["the grid ends at this rate"] if len(rates) > 1 and rate in (rates[0], rates[-1]) else []
    config = best[0]["config"]
    every, steps = (config.get("restart") or {}).get("every") or 0, config["train"]["steps"]
    first = {one: min(by_rate.get(one, []), key=lambda r: r["config"].get("seed", 0), default=None) for one in rates}
    points = [(step, loss) for r in best for step, loss in r.get("losses") or [] if loss is not None]
    return PretrainRow(
        method,
        best[0]["labels"].get("rank"),
        scores=tuple(map(_known, best)),
        losses=medians(points),
        counts=_counts(best),
        tried={one: None if run is None else _score(run) for one, run in first.items()},
        parameters=(best[0].get("parameters") or {}).get("trainable"),
        rate=rate,
        merges=(steps - 1) // every if every else 0,
        note="; ".join(notes),
        runs=tuple(best),
    )


def _score(result: dict) -> float | None:
    found = [one[SCORE] for one in result.get("evaluations") or [] if one.get(SCORE) is not None]
    return found[-1] if found else None


def _known(result: dict) -> float:
    score = _score(result)
    assert score is not None  # runs without a score were left out
    return score


def _counts(runs: Sequence[dict]) -> dict[str, float]:
    each = [(r.get("update_spectrum") or {}).get("counts") or {} for r in runs]
    kinds = dict.fromkeys(kind for one in each for kind in one)
    return {kind: statistics.fmean(one[kind] for one in each if kind in one) for kind in kinds}
