"""A cell from the records of its runs: chooses the rate over seeds, and counts collapsed and lost runs."""

import copy
import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.config.plain import content_hash
from experiments.records.results import at_step, rate_of
from experiments.tables.table import Cell, ended, spread, state_of

MAIN = "main"  # of tasks.glue: the score of the paper's column
SMALLEST_SPREAD = 1e-3  # of predicted scores from 0 to 5: below it a regression predicts a constant


@dataclasses.dataclass(frozen=True)
class Trial:
    """The runs of one cell at one rate."""

    rate: float
    runs: tuple[dict, ...]  # that ended with an evaluation
    lost: tuple[dict, ...]  # diverged, failed or interrupted

    @property
    def median(self) -> float:
        """A rate's score: the last epoch's median over all runs that ended, collapsed or not; a lost run is lowest.

        A rate whose runs mostly collapse must not win by its one other run.
        """
        finished = [_score(_last(run)) for run in self.runs]
        return statistics.median([*finished, *(-math.inf for run in self.lost if run["status"] != "interrupted")])


def make_cell(records: Sequence[dict]) -> Cell:
    """The cell of one key and task: of several settings the one with most runs, of its rates the best."""
    settings: dict[str, list[dict]] = {}
    for record in records:
        if rate_of(record) is not None:
            settings.setdefault(setting_of(record), []).append(record)
    if not settings:
        return Cell(why="no run has a rate")
    # Of equals the first by name: a table must not depend on the order of files.
    chosen = min(settings.values(), key=lambda group: (-len(group), min(r["name"] for r in group)))
    notes = [f"{n} runs of other settings left out"] if (n := len(records) - len(chosen)) else []
    rates = sorted({rate_of(r) for r in chosen})  # pyright: ignore[reportArgumentType] a GLUE record has a rate
    trials = [_trial(rate, [r for r in chosen if rate_of(r) == rate]) for rate in rates]
    tried = [trial for trial in trials if trial.runs]
    if not tried:
        return Cell(why="; ".join(sorted({state_of(r) for r in chosen})), notes=tuple(notes))
    # A rate tried with fewer seeds does not outvote one tried with all; of equals the larger, as in sweeps.grid.
    most = max(len(t.runs) + len(t.lost) for t in tried)
    best = max((t for t in tried if len(t.runs) + len(t.lost) == most), key=lambda t: (t.median, t.rate))
    return _cell(best, {t.rate: t.median for t in tried}, notes)


def setting_of(record: dict) -> str:
    """A key of the settings that must be equal for two runs in one cell: all but seed, rate and bookkeeping."""
    bare = copy.deepcopy(record["config"])
    bare.pop("seed", None)
    (bare.get("optimizer") or {}).pop("learning_rate", None)
    if (bare.get("start") or {}).get("adapter"):
        bare["start"]["adapter"] = "any"  # each seed may start from a different MNLI run
    return content_hash(bare)


def is_collapsed(evaluation: dict) -> bool:
    """Whether the model predicted one class or score for all rows, or an output was not finite."""
    spread = evaluation.get("spread", math.inf)
    constant = evaluation.get("distinct") == 1 or spread is None or spread < SMALLEST_SPREAD
    return constant or bool(evaluation.get("nonfinite")) or evaluation.get(MAIN) is None


def _trial(rate: float, records: list[dict]) -> Trial:
    done = ended([r for r in records if r.get("evaluations")])
    return Trial(rate, tuple(done), tuple(r for r in records if r not in done))


def _cell(trial: Trial, tried: dict[float, float], notes: list[str]) -> Cell:
    sound = [run for run in trial.runs if not is_collapsed(_last(run))]
    collapsed, total = len(trial.runs) - len(sound), len(trial.runs) + len(trial.lost)
    marks = ""
    if collapsed:
        marks += "c"
        notes.append(f"{collapsed} of {total} collapsed")
    stopped = [run for run in trial.runs if run["status"] == "interrupted"]
    for state in sorted({run["status"] for run in trial.lost} | {run["status"] for run in stopped}):
        some = [run for run in (*trial.lost, *stopped) if run["status"] == state]
        notes.append(f"{len(some)} of {total} {state}{at_step(some[0])}")
    marks += "s" if trial.lost or stopped else ""
    if partial := [note for run in trial.runs if _in_part(run) for note in run.get("notes") or ["partial data"]]:
        marks += "p"
        notes += dict.fromkeys(partial)
    counts = trial.runs[0].get("parameters") or {}
    parameters = counts["trainable"] - counts.get("head", 0) if "trainable" in counts else None
    shared: dict[str, Any] = {"seeds": len(trial.runs), "collapsed": collapsed, "rate": trial.rate}
    shared |= {"tried": tried, "parameters": parameters}
    if not sound:
        return Cell(**shared, marks=marks, why=f"all {collapsed} collapsed", notes=tuple(notes))
    last = [100 * _score(_last(run)) for run in sound]
    best = [100 * max(map(_score, run["evaluations"])) for run in sound]
    return Cell(
        statistics.median(last), statistics.median(best), spread(last), spread(best), **shared, marks=marks, why="",
        notes=tuple(notes),
    )  # fmt: skip


def _in_part(run: dict) -> bool:
    return bool(run.get("partial") or (run["config"].get("task") or {}).get("max_dev_examples"))


def _last(run: dict) -> dict:
    return run["evaluations"][-1]


def _score(evaluation: dict) -> float:
    """The main score; minus infinity where it was not finite."""
    value = evaluation.get(MAIN)
    return -math.inf if value is None else value
