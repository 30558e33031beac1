"""LoRA's Table 2 from recorded GLUE runs: methods by tasks, over seeds, at the last and at the best epoch."""

import copy
import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from experiments.config.schema import content_hash
from experiments.papers import lora
from experiments.records.results import at_step, rate_of, stage_of

MAIN = "main"  # of tasks.glue: the number that the paper's column shows
TASKS = (*lora.TASKS, "wnli")
TITLES = dict(zip(lora.TASKS, lora.NAMES, strict=True)) | {"wnli": "WNLI"}
NAMES = {
    "fft": "FFT", "ft-top2": "FT-Top2", "bitfit": "BitFit", "head": "head only", "lora": "LoRA", "mora": "MoRA",
    "dora": "DoRA", "houlsby": "Adapter-H", "pfeiffer": "Adapter-P", "lin": "Adapter-L",
}  # fmt: skip
# Rows that every table has, run or not: (method, rank, variant).
ROWS = (
    ("fft", None, ""),
    ("bitfit", None, ""),
    ("houlsby", 8, ""),
    ("pfeiffer", 16, ""),
    ("lora", 8, ""),
    ("mora", 8, "sharing"),
    ("mora", 8, "rotation"),
)
ORDER = tuple(NAMES)
STARTED, MNLI_START = ("mrpc", "rte", "stsb"), "MNLI start"
SMALLEST_SPREAD = 1e-3  # of predicted scores from 0 to 5: below it a regression says one number


@dataclasses.dataclass(frozen=True)
class Trial:
    """The runs of one cell at one rate."""

    rate: float
    runs: tuple[dict, ...]  # that ended with an evaluation
    lost: tuple[dict, ...]  # diverged, failed or interrupted

    @property
    def median(self) -> float:
        """What rates are compared by: the last epoch's median over all that ended, collapsed or not; a lost run loses.

        A rate whose runs mostly collapse must not win by its one survivor.
        """
        finished = [_score(_last(run)) for run in self.runs]
        return statistics.median([*finished, *(-math.inf for run in self.lost if run["status"] != "interrupted")])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One task of one row, in %: medians over the seeds that did not collapse, or why there is none.

    Attributes:
      last, best: median at the last epoch; median of each run's best epoch, the paper's rule.
      last_std, best_std: sample standard deviations over those seeds, None for one.
      seeds: runs that ended; collapsed: of them.
      rate, tried: the rate that was chosen, and {rate: median} of all.
      parameters: trainable scalars without the head's.
      marks: letters of `glue_text.MARKS`.
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


@dataclasses.dataclass(frozen=True)
class Row:
    """One (method, rank, variant): a cell for each task."""

    method: str
    rank: int | None
    variant: str
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        """MoRA 8 sharing."""
        parts = (NAMES.get(self.method, self.method), "" if self.rank is None else str(self.rank), self.variant)
        return " ".join(part for part in parts if part)

    @property
    def parameters(self) -> int | None:
        """Trainable scalars without the head's; the tasks' differ in the head alone."""
        return next((c.parameters for c in self.cells.values() if c.parameters is not None), None)

    def average(self, tasks: Sequence[str], kind: str = "last") -> float | None:
        """Mean over the tasks; None where one of them has no number."""
        values = [getattr(self.cells[task], kind) for task in tasks]
        return None if not values or None in values else statistics.fmean(values)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows on one base model; `tasks` are those that any row has a number of, or else the paper's."""

    model: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def ran(self) -> bool:
        """Whether there is any number."""
        return any(cell.last is not None for row in self.rows for cell in row.cells.values())


def lora_table2(results: Sequence[dict], model: str) -> Table:
    """Table 2 on one base model.

    Args:
      results: as `records.load_results` gives them.
      model: their labels.model.
    """
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for result in results:
        labels = result["labels"]
        if (result.get("config") or {}).get("experiment") != "lora_glue" or labels.get("model") != model:
            continue
        if stage_of(result) == "full" and labels.get("task") in TASKS:
            groups.setdefault(key_of(result), {}).setdefault(labels["task"], []).append(result)
    started = [key for key in groups if MNLI_START in key[2]]
    for key in started:  # a started row is the plain one but for the tasks that start
        plain = groups.get((*key[:2], key[2].removesuffix(MNLI_START).strip()), {})
        groups[key] = {task: runs for task, runs in plain.items() if task not in STARTED} | groups[key]
    keys = [*ROWS, *sorted(groups.keys() - {*ROWS}, key=_place)]
    keys.sort(key=_place)
    made = {key: {task: make_cell(runs) for task, runs in groups.get(key, {}).items()} for key in keys}
    tasks = tuple(task for task in TASKS if any(task in cells for cells in made.values())) or lora.TASKS
    rows = tuple(Row(*key, {task: cells.get(task, Cell()) for task in tasks}) for key, cells in made.items())
    return Table(model, tasks, rows)


def key_of(result: dict) -> tuple[str, int | None, str]:
    """(method, rank, variant), the variant from what the config says and not from what it is called."""
    labels, config = result["labels"], result["config"]
    adapter, method = config.get("adapter") or {}, labels.get("method") or "?"
    words = []
    if method == "mora":
        words.append((adapter.get("mora") or {}).get("compression") or labels.get("variant") or "sharing")
    targets = tuple(adapter.get("targets") or ("query", "value"))
    if method in ("lora", "mora", "dora") and targets != ("query", "value"):
        words.append("+".join(target.rpartition("/")[2] for target in targets))
    if drop := (adapter.get("bottleneck") or {}).get("drop_layers"):
        words.append(f"drop {drop}")
    if examples := (config.get("task") or {}).get("train_examples"):
        words.append(f"{examples} examples")
    words += [labels[name] for name in ("protocol", "reading") if labels.get(name) not in (None, "standard", "paper")]
    words += [MNLI_START] if (config.get("start") or {}).get("adapter") else []
    return method, labels.get("rank"), " ".join(words)


def make_cell(records: Sequence[dict]) -> Cell:
    """The cell of one key and task: of several settings the one with most runs, of its rates the best."""
    settings: dict[str, list[dict]] = {}
    for record in records:
        settings.setdefault(setting_of(record), []).append(record)
    # Of equals the first by name, so that a table does not depend on the order of files.
    chosen = min(settings.values(), key=lambda group: (-len(group), min(r["name"] for r in group)))
    notes = [f"{n} runs of other settings left out"] if (n := len(records) - len(chosen)) else []
    trials = [_trial(rate, [r for r in chosen if rate_of(r) == rate]) for rate in sorted({rate_of(r) for r in chosen})]
    ended = [trial for trial in trials if trial.runs]
    if not ended:
        states = sorted({f"{r['status']}{at_step(r)}" for r in chosen})
        return Cell(why="; ".join(states), notes=tuple(notes))
    # A rate tried with fewer seeds does not outvote one tried with all; of equals the larger, as in sweeps.grid.
    most = max(len(t.runs) + len(t.lost) for t in ended)
    best = max((t for t in ended if len(t.runs) + len(t.lost) == most), key=lambda t: (t.median, t.rate))
    return _cell(best, {t.rate: t.median for t in ended}, notes)


def setting_of(record: dict) -> str:
    """A name of what must be equal for two runs to stand in one cell: all but seed, rate and bookkeeping."""
    bare = copy.deepcopy(record["config"])
    bare.pop("seed", None)
    (bare.get("optimizer") or {}).pop("learning_rate", None)
    if (bare.get("start") or {}).get("adapter"):
        bare["start"]["adapter"] = "any"  # each seed may start from an MNLI run of its own
    return content_hash(bare)


def is_collapsed(evaluation: dict) -> bool:
    """Whether the model said one thing to all rows, or nothing finite."""
    spread = evaluation.get("spread", math.inf)
    constant = evaluation.get("distinct") == 1 or spread is None or spread < SMALLEST_SPREAD
    return constant or bool(evaluation.get("nonfinite")) or evaluation.get(MAIN) is None


def _trial(rate: float, records: list[dict]) -> Trial:
    ended = [r for r in records if r["status"] == "finished" and r.get("evaluations")]
    if not ended:  # runs that a signal stopped show how far they came; they give way to any finished one
        ended = [r for r in records if r["status"] == "interrupted" and r.get("evaluations")]
    return Trial(rate, tuple(ended), tuple(r for r in records if r not in ended))


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
    shared = dict(seeds=len(trial.runs), collapsed=collapsed, rate=trial.rate, tried=tried, parameters=parameters)
    if not sound:
        return Cell(**shared, marks=marks, why=f"all {collapsed} collapsed", notes=tuple(notes))
    last = [100 * _score(_last(run)) for run in sound]
    best = [100 * max(map(_score, run["evaluations"])) for run in sound]
    return Cell(
        statistics.median(last), statistics.median(best), _std(last), _std(best), **shared, marks=marks, why="",
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


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _place(key: tuple[str, int | None, str]) -> tuple:
    method, rank, variant = key
    known = ROWS.index(key) if key in ROWS else len(ROWS)
    return ORDER.index(method) if method in ORDER else len(ORDER), rank or 0, known, variant
