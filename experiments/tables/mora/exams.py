"""A cell of MoRA's fine-tuning tables: an exam's score with its interval, compared with the untrained base's."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_jax.metrics.interval import wilson

NOT_SEPARATED = "not separated"
NOT_READ = "not read here"  # an exam of the paper that this project has no reader for


class Exam(NamedTuple):
    """A column of a table.

    Attributes:
      title: of the column.
      task: labels.task of its runs, which says what they are trained on.
      name: of the exam in `config.evals`; "" is one that is not read here.
      shots: worked examples; None: any number.
      right: the record's name of the count of right answers.
      subjects: whether it is asked in some of the exam's subjects alone.
    """

    title: str
    task: str
    name: str = ""
    shots: int | None = None
    right: str = "correct"
    subjects: bool = False


@dataclasses.dataclass(frozen=True)
class Score:
    """How many of an exam's `n` questions are answered rightly: the mean over seeds, and by the untrained base.

    Attributes:
      right, base: numbers of right answers; base None: not measured before training.
      n: questions.
      seeds: how many runs.
    """

    right: float
    n: int
    seeds: int = 1
    base: float | None = None

    @property
    def separated(self) -> bool | None:
        """Whether the 95% interval leaves out the base's score; None where that is not known."""
        if self.base is None:
            return None
        low, high = wilson(self.right, self.n)
        return not low <= self.base / self.n <= high

    @property
    def text(self) -> str:
        """ "34.2 [31.0, 37.5] of 200, not separated": %, 95% interval, questions."""
        low, high = wilson(self.right, self.n)
        shown = f"{100 * self.right / self.n:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {self.n}"
        return shown + {None: ", base not measured", False: f", {NOT_SEPARATED}", True: ""}[self.separated]


def score_of(runs: Sequence[dict], exam: Exam) -> Score | None:
    """The score of runs that differ in seeds alone; None where none of them was asked.

    All seeds answer the same questions: the interval is for their number, not for the number of all answers.
    """
    found = [one for run in runs if (one := _of_run(run, exam))]
    if not found:
        return None
    bases = [base for _, base, _ in found if base is not None]
    rights, sizes = [right for right, _, _ in found], {n for _, _, n in found}
    if len(sizes) > 1:  # runs of one setting are asked as many questions: a record is damaged
        return None
    return Score(statistics.fmean(rights), sizes.pop(), len(rights), statistics.fmean(bases) if bases else None)


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


def _of_run(run: dict, exam: Exam) -> tuple[float, float | None, int] | None:
    """(right answers at the end, those of the base, questions) of the first entry that has them."""
    for name in entries(run, exam):
        asked = [one for one in run.get("evaluations") or [] if f"{name}/n" in one]
        last = next((one for one in reversed(asked) if one["step"] > 0), None)
        first = next((one for one in asked if one["step"] == 0), {})
        right, n = ((last or {}).get(f"{name}/{what}") for what in (exam.right, "n"))
        if right is not None and n:
            return float(right), first.get(f"{name}/{exam.right}"), int(n)
    return None
