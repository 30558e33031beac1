"""The rows of LoRA's Table 2 from records: a row for each method on one base model, a cell for each GLUE task."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from experiments.papers import lora
from experiments.records.results import stage_of
from experiments.tables import style
from experiments.tables.glue.cells import make_cell
from experiments.tables.table import Cell, Row

TASKS = (*lora.TASKS, "wnli")
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
STARTED, MNLI_START = ("mrpc", "rte", "stsb"), "MNLI start"


@dataclasses.dataclass(frozen=True)
class GlueRow(Row):
    """One (method, rank, variant): a cell for each task."""

    cells: Mapping[str, Cell] = dataclasses.field(default_factory=dict)

    @property
    def parameters(self) -> int | None:
        """Trainable scalars without the head's; the tasks' differ in the head alone."""
        return next((c.parameters for c in self.cells.values() if c.parameters is not None), None)

    def average(self, tasks: Sequence[str], kind: str = "last") -> float | None:
        """Mean over the tasks; None where one of them has no number."""
        values = [getattr(self.cells[task], kind) for task in tasks]
        return None if not values or None in values else statistics.fmean(values)


@dataclasses.dataclass(frozen=True)
class Board:
    """Rows on one base model; `tasks` are those that any row has a number of, or the paper's where none has."""

    model: str
    tasks: tuple[str, ...]
    rows: tuple[GlueRow, ...]


def board(results: Sequence[dict], model: str) -> Board:
    """The rows on one base model, their labels.model."""
    groups: dict[tuple, dict[str, list[dict]]] = {}
    for result in results:
        labels = result["labels"]
        if (result.get("config") or {}).get("experiment") != "lora_glue" or labels.get("model") != model:
            continue
        if stage_of(result) == "full" and labels.get("task") in TASKS:
            groups.setdefault(key_of(result), {}).setdefault(labels["task"], []).append(result)
    started = [key for key in groups if MNLI_START in key[2]]
    for key in started:  # a row with a warm start is the plain one but for the tasks that have one
        plain = groups.get((*key[:2], key[2].removesuffix(MNLI_START).strip()), {})
        groups[key] = {task: runs for task, runs in plain.items() if task not in STARTED} | groups[key]
    keys = [*ROWS, *sorted(groups.keys() - {*ROWS}, key=_place)]
    keys.sort(key=_place)
    made = {key: {task: make_cell(runs) for task, runs in groups.get(key, {}).items()} for key in keys}
    tasks = tuple(task for task in TASKS if any(task in cells for cells in made.values())) or lora.TASKS
    rows = tuple(GlueRow(*key, cells={task: cells.get(task, Cell()) for task in tasks}) for key, cells in made.items())
    return Board(model, tasks, rows)


def key_of(result: dict) -> tuple[str, int | None, str]:
    """(method, rank, variant), the variant from the config and not from its labels."""
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
    return method, labels.get("rank"), " ".join(map(str, words))


def _place(key: tuple[str, int | None, str]) -> tuple:
    method, rank, variant = key
    known = ROWS.index(key) if key in ROWS else len(ROWS)
    return style.ORDER.index(method) if method in style.ORDER else len(style.ORDER), rank or 0, known, variant
