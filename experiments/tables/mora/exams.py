"""A cell of MoRA's fine-tuning tables: an exam's score with its interval, compared with the untrained base's."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_jax.metrics.interval import wilson

NOT_SEPARATED = "not separated"
ROUNDING = 1e-9  # where all resamples are alike, the ends of the interval equal the score but for rounding


class Exam(NamedTuple):
    """A column of a table.

    Attributes:
      title: of the column.
      task: labels.task of its runs, which says what they are trained on.
      name: of the exam in `config.evals`; "" for the mean of the other columns.
      shots: worked examples; None: any number.
      right: the record's name of the count of right answers.
      subjects: whether it is asked in some of the exam's subjects alone.
      measure: the record's name of a score that is no share of right answers; its interval is recorded as
        `measure`_low and `measure`_high. "": `right` is the score.
      instead: another exam, whose score is shown where this one was not asked.
    """

    title: str
    task: str
    name: str = ""
    shots: int | None = None
    right: str = "correct"
    subjects: bool = False
    measure: str = ""
    instead: "Exam | None" = None


@dataclasses.dataclass(frozen=True)
class Score:
    """A score of an exam, as the mean over seeds, beside the untrained base's.

    Attributes:
      right: number of right answers; of a score that is no share of them, n times the score.
      base: the same of the untrained base; None: not measured before training.
      n: questions.
      seeds: how many runs.
      interval: (low, high) of 95%, where the record has it; None: Wilson's is computed.
    """

    right: float
    n: int
    seeds: int = 1
    base: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """(low, high) of the 95% interval."""
        return self.interval or wilson(self.right, self.n)

    @property
    def separated(self) -> bool | None:
        """Whether the 95% interval leaves out the base's score; None where that is not known."""
        if self.base is None:
            return None
        low, high = self.bounds
        return not low - ROUNDING <= self.base / self.n <= high + ROUNDING

    @property
    def text(self) -> str:
        """ "34.2 [31.0, 37.5] of 200, not separated": %, 95% interval, questions."""
        low, high = self.bounds
        shown = f"{100 * self.right / self.n:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {self.n}"
        return shown + {None: ", base not measured", False: f", {NOT_SEPARATED}", True: ""}[self.separated]


def score_of(runs: Sequence[dict], exam: Exam) -> Score | None:
    """The score of runs that differ in seeds alone; None where none of them was asked.

    All seeds answer the same questions: the interval is for their number, not for the number of all answers. Recorded
    intervals are averaged over seeds.
    """
    found = [one for run in runs if (one := _of_run(run, exam))]
    if not found:
        return score_of(runs, exam.instead) if exam.instead else None
    bases = [one.base for one in found if one.base is not None]
    if len({one.n for one in found}) > 1:  # runs of one setting are asked as many questions: a record is damaged
        return None
    own = [one.interval for one in found if one.interval]
    lows, highs = ([pair[side] for pair in own] for side in (0, 1))
    return Score(
        statistics.fmean(one.right for one in found),
        found[0].n,
        len(found),
        statistics.fmean(bases) if bases else None,
        (statistics.fmean(lows), statistics.fmean(highs)) if own else None,
    )


def why_absent(runs: Sequence[dict], exam: Exam) -> str:
    """Why an exam was left out of all runs whose configs have it; "" where one was asked, or none has it."""
    whys = [(run.get("missing") or {}).get(name) for run in runs for name in entries(run, exam)]
    return (whys[0] or "") if whys and all(whys) else ""


def entries(run: Mapping[str, Any], exam: Exam) -> list[str]:
    """Names of the run's evaluations that ask an exam."""
    evals = (run.get("config") or {}).get("evals") or {}
    return [
        name
        for name, entry in evals.items()
        if exam.name
        and isinstance(entry, Mapping)
        and entry.get("task") == exam.name
        and exam.shots in (None, entry.get("shots", 0))
        and exam.subjects == bool(entry.get("subjects"))
    ]


def _of_run(run: dict, exam: Exam) -> Score | None:
    """The score at the end beside that of the base, from the first of the exam's entries that has one."""
    for name in entries(run, exam):
        asked = [one for one in run.get("evaluations") or [] if f"{name}/n" in one]
        last = next((one for one in reversed(asked) if one["step"] > 0), None)
        first = next((one for one in asked if one["step"] == 0), {})
        last, key = last or {}, exam.measure or exam.right
        right, n, base = last.get(f"{name}/{key}"), last.get(f"{name}/n"), first.get(f"{name}/{key}")
        low, high = last.get(f"{name}/{key}_low"), last.get(f"{name}/{key}_high")
        if right is None or not n:
            continue
        if not exam.measure:
            return Score(float(right), int(n), base=base)
        if low is not None and high is not None:
            return Score(right * n, int(n), base=None if base is None else base * n, interval=(low, high))
    return None
