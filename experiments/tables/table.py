"""The parts of tables: rows named by their method, cells over seeds with marks, lines printed with captions."""

import copy
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from experiments.config.plain import content_hash
from experiments.records.results import at_step, rate_of
from experiments.records.text_table import format_table
from experiments.tables import style

X = TypeVar("X", bound=float)
MARKS = {
    "c": "some seeds collapsed (in the end one class, one score, or an output not finite) and are not in the median",
    "s": "some seeds diverged, failed or stopped before the last epoch",
    "p": "trained or scored on parts of the official data",
}


@dataclasses.dataclass(frozen=True)
class Table:
    """A printed table.

    Attributes:
      title: line above; "" for none.
      lines: of cells, the header first.
      captions: lines below.
      parts: tables printed below it.
      data: from which the lines were made, for figures.
    """

    title: str = ""
    lines: tuple[Sequence[str], ...] = ()
    captions: tuple[str, ...] = ()
    parts: tuple["Table", ...] = ()
    data: Any = None

    def text(self, form: str = "text", lines_alone: bool = False) -> str:
        """The table in `form` "text" or "markdown"; `lines_alone`: without title, captions and parts."""
        lines = format_table([list(line) for line in self.lines], form) if self.lines else ""
        if lines_alone:
            return lines
        blocks = [self.title, lines, "\n".join(self.captions), *(part.text(form) for part in self.parts)]
        return "\n\n".join(block for block in blocks if block)


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of (method, rank, variant)."""

    method: str
    rank: int | None
    variant: str = ""

    @property
    def label(self) -> str:
        """MoRA 8 sharing."""
        return style.label(self.method, self.rank, self.variant)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of a row, in %: medians over the seeds that did not collapse, or why there is none.

    Attributes:
      last, best: median at the last evaluation; median of each run's best one.
      last_std, best_std: sample standard deviations over those seeds, None for one.
      seeds: runs that ended; collapsed: of them.
      rate, tried: the chosen rate, and {rate: median} of all.
      parameters: trainable scalars without the head's.
      marks: letters of MARKS.
      why: text of an empty cell.
      notes: details of the marks.
    """

    last: float | None = None
    best: float | None = None
    last_std: float | None = None
    best_std: float | None = None
    seeds: int = 0
    collapsed: int = 0
    rate: float | None = None
    tried: Mapping[float, float] = dataclasses.field(default_factory=dict)
    parameters: int | None = None
    marks: str = ""
    why: str = "not run"
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """ "62.1+-1.2 / 63.0+-0.9 [c]": last / best."""
        if self.last is None or self.best is None:
            return self.why
        both = (plus_minus(self.last, self.last_std), plus_minus(self.best, self.best_std))
        return " / ".join(both) + (f" [{self.marks}]" if self.marks else "")

    @property
    def rates(self) -> str:
        """ "0.001 (0.0003: 61.0, 0.001: 62.1) edge": the chosen rate, each one's median; edge: the grid ends there."""
        if self.rate is None:
            return "-"
        shown = {rate: "lost" if value == -math.inf else f"{100 * value:.1f}" for rate, value in self.tried.items()}
        edge = len(shown) > 1 and self.rate in (min(shown), max(shown))
        tried = ", ".join(f"{rate:g}: {value}" for rate, value in sorted(shown.items()))
        return f"{self.rate:g} ({tried})" + (" edge" if edge else "")


def place(key: tuple[str, int | None, str]) -> tuple:
    """The order of rows by (method, rank, variant): the methods' own, then rank, then variant."""
    method, rank, variant = key
    return style.ORDER.index(method) if method in style.ORDER else len(style.ORDER), rank or 0, variant


def mark_captions(cells: Iterable[Cell]) -> list[str]:
    """What the marks in the cells mean."""
    marks = "".join(cell.marks for cell in cells)
    return [f"[{mark}] {what}." for mark, what in MARKS.items() if mark in marks]


def no_figures(table: Table, folder: str | Path) -> list[Path]:
    """The `figures` of a table without figures."""
    return []


# ---- over seeds ----


def ended(runs: Sequence[dict]) -> list[dict]:
    """The finished runs; where there are none, those that a signal stopped, which show their progress."""
    return [r for r in runs if r["status"] == "finished"] or [r for r in runs if r["status"] == "interrupted"]


def by_setting(runs: Iterable[dict]) -> list[list[dict]]:
    """The runs in groups of those that differ in seeds alone."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        bare: dict[str, Any] = copy.deepcopy(run["config"])
        bare.pop("seed", None)
        groups.setdefault(content_hash(bare), []).append(run)
    return list(groups.values())


def medians(points: Iterable[tuple[X, float]]) -> dict[X, float]:
    """{x: median of its y}, by x."""
    found: dict[X, list[float]] = {}
    for x, y in points:
        found.setdefault(x, []).append(y)
    return {x: statistics.median(values) for x, values in sorted(found.items())}


def median(values: Sequence[float]) -> float | None:
    """The median, None of nothing."""
    return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation, None of one."""
    return statistics.stdev(values) if len(values) > 1 else None


def rates_of(runs: Iterable[dict]) -> tuple[float, ...]:
    """The rates that runs have, by size."""
    return tuple(sorted({rate for run in runs if (rate := rate_of(run)) is not None}))


def state_of(run: dict) -> str:
    """diverged at step 480."""
    return f"{run['status']}{at_step(run)}"


def plus_minus(value: float, deviation: float | None) -> str:
    """62.1+-1.2."""
    return f"{value:.1f}" + ("" if deviation is None else f"+-{deviation:.1f}")


def span(seeds: Sequence[int]) -> str:
    """The first and last of sorted numbers: "3-5", "5", "-"."""
    return "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else "-"
