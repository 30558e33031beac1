"""Rows of the comparison at tuned rates from records: the runs of each method and rank by rate, in one setting."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.records.results import rate_of, stage_of
from experiments.records.run_record import final_loss, last_evaluation
from experiments.tables import style
from experiments.tables.mora.rows import Loss
from experiments.tables.table import Row, medians, spread

STAGES = ("swept", "near")  # of the grids rates_*.py
MORE = ("wider", "far")  # and "wider1", "far1" and so on
UUID, DIGITS = "mora_uuid", "char_accuracy"
SHARING = "sharing"  # MoRA's plain compression, which its records do not name


class Setting(NamedTuple):
    """What runs have in common whose losses are compared; `data` is the path, or the number of pairs."""

    task: str
    base: str
    data: str
    steps: int
    batch: int
    seq_len: int

    @property
    def title(self) -> str:
        """math (train.jsonl.gz), smollm2-135m, 150 steps of 8 x 256 tokens."""
        return f"{self.task} ({self.data}), {self.base}, {self.steps} steps of {self.batch} x {self.seq_len} tokens"

    @property
    def held_out(self) -> bool:
        """Whether the loss is held out, not of training."""
        return self.task != "uuid"


class Point(NamedTuple):
    """The runs of a row at one rate.

    Attributes:
      rate: peak.
      losses: of the runs that ended, by seed.
      lost: how many diverged.
      runs: those that ended.
    """

    rate: float
    losses: tuple[float, ...]
    lost: int
    runs: tuple[dict, ...]

    @property
    def loss(self) -> Loss | None:
        """The mean over seeds; None where no run ended."""
        return Loss(statistics.fmean(self.losses), spread(self.losses), len(self.losses), None) if self.losses else None

    @property
    def rise(self) -> float | None:
        """The mean rise of the loss on other text, over seeds and sources; None: not measured."""
        found = [one["rise"] for run in self.runs for one in (run.get("forgetting") or {}).values()]
        return statistics.fmean(found) if found else None

    @property
    def digits(self) -> dict[int, float]:
        """{step: % of the digits recalled, median over seeds}."""
        scores = (one for run in self.runs for one in run.get("evaluations") or [] if one.get(DIGITS) is not None)
        return medians((one["step"], 100 * one[DIGITS]) for one in scores)


@dataclasses.dataclass(frozen=True)
class RateRow(Row):
    """A method at a rank: its points by rate, ascending."""

    points: tuple[Point, ...] = ()

    @property
    def best(self) -> Point | None:
        """The lowest mean loss of the rates with most seeds and none lost; of equals the larger rate."""
        whole = [point for point in self.points if point.losses and not point.lost]
        most = max((len(point.losses) for point in whole), default=0)
        known = [point for point in whole if len(point.losses) == most]
        return min(known, key=lambda point: (statistics.fmean(point.losses), -point.rate), default=None)

    @property
    def edge(self) -> bool:
        """Whether the best rate is the smallest or the largest that was tried."""
        rates = [point.rate for point in self.points]
        return self.best is not None and self.best.rate in (rates[0], rates[-1])

    @property
    def edge_of_seeds(self) -> bool:
        """Whether the next lower or higher rate has fewer seeds than the best, and none of them diverged."""
        if self.best is None:
            return False
        place = self.points.index(self.best)
        beside = self.points[max(place - 1, 0) : place + 2]
        return any(not point.lost and len(point.losses) < len(self.best.losses) for point in beside)

    @property
    def parameters(self) -> int | None:
        """Trainable scalars."""
        runs = (run for point in self.points for run in point.runs)
        counts = (run.get("parameters") or {} for run in runs)
        return next((one["trainable"] for one in counts if "trainable" in one), None)


def settings(results: Iterable[dict], model: str | None = None) -> dict[Setting, list[RateRow]]:
    """{setting: its rows} of the records of grids of rates, in order.

    Args:
      results: any records.
      model: only of this base.
    """
    groups: dict[Setting, dict[tuple, list[dict]]] = {}
    for run in results:
        stage = stage_of(run)
        if not (stage in STAGES or stage.startswith(MORE)) or run["status"] not in ("finished", "diverged"):
            continue
        setting = setting_of(run)
        if setting and rate_of(run) is not None and model in (None, setting.base):
            groups.setdefault(setting, {}).setdefault(_key(run), []).append(run)
    return {
        setting: [RateRow(*key, points=_points(runs, setting)) for key, runs in sorted(rows.items(), key=_place)]
        for setting, rows in sorted(groups.items())
    }


def setting_of(run: dict) -> Setting | None:
    """The setting of a record; None where its config has no such thing."""
    config, labels = run["config"], run["labels"]
    task, train = config.get("task") or {}, config.get("train") or {}
    base, steps, batch = (config.get("base") or {}).get("name"), train.get("steps"), train.get("batch_size")
    if not (base and steps and batch):
        return None
    if config.get("experiment") == UUID:
        name, data = "uuid", f"{task.get('pairs')} pairs"
    else:
        paths = task.get("path") or ""
        paths = [paths] if isinstance(paths, str) else paths
        name, data = labels.get("task") or task.get("name") or "?", "+".join(path.rpartition("/")[2] for path in paths)
    return Setting(name, base, data, steps, batch, run.get("seq_len") or task.get("seq_len") or 0)


def _key(run: dict) -> tuple[str, int | None, str]:
    labels = run["labels"]
    method = labels.get("method") or "?"
    variant = labels.get("variant") or (SHARING if method == "mora" else "")
    return method, None if method == "fft" else labels.get("rank"), variant


def _place(item: tuple[tuple, Sequence[dict]]) -> tuple:
    (method, rank, variant), _ = item
    known = style.ORDER.index(method) if method in style.ORDER else len(style.ORDER)
    return known, variant == "rotation", variant, rank or 0


def _points(runs: Sequence[dict], setting: Setting) -> tuple[Point, ...]:
    by_rate: dict[float, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["config"].get("seed") or 0):
        by_rate.setdefault(rate_of(run) or 0.0, []).append(run)
    found = []
    for rate, group in sorted(by_rate.items()):
        ended = [(run, loss) for run in group if math.isfinite(loss := _loss(run, setting))]
        losses, kept = tuple(loss for _, loss in ended), tuple(run for run, _ in ended)
        found.append(Point(rate, losses, len(group) - len(ended), kept))
    return tuple(found)


def _loss(run: dict, setting: Setting) -> float:
    """Of held-out answers, or of training over the last steps; infinite for a run that diverged."""
    if not setting.held_out:
        return final_loss(run)
    value = last_evaluation(run).get("loss")
    return value if run["status"] == "finished" and isinstance(value, int | float) else math.inf
