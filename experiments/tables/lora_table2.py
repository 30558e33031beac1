"""LoRA's Table 2: GLUE's dev sets, methods by tasks, over seeds; ours, the rates tried, and the paper's rows."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import lora
from experiments.records.results import stage_of
from experiments.records.text_table import number
from experiments.tables import style
from experiments.tables.cells import make_cell
from experiments.tables.table import Cell, Row, Table, mark_captions, plus_minus, span

TASKS = (*lora.TASKS, "wnli")
TITLES = dict(zip(lora.TASKS, lora.NAMES, strict=True)) | {"wnli": "WNLI"}
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
# all-MiniLM-L6-v2's own training took AllNLI and pairs of Quora questions.
CONTAMINATED = {("minilm-l6", "mnli"), ("minilm-l6", "qqp")}


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


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on options.model: ours, the rates, and the paper's rows."""
    return shown(board(results, options.model))


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Score against trainable parameters, where there are tasks that every row has."""
    from experiments.tables.lora_figure import draw

    path = draw(table.data, folder)
    return [path] if path else []


# ---- rows from records ----


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
    return method, labels.get("rank"), " ".join(words)


def _place(key: tuple[str, int | None, str]) -> tuple:
    method, rank, variant = key
    known = ROWS.index(key) if key in ROWS else len(ROWS)
    return style.ORDER.index(method) if method in style.ORDER else len(style.ORDER), rank or 0, known, variant


# ---- text ----


def shown(board: Board) -> Table:
    """Ours, and as parts the rates and the paper's rows."""
    seeds = sorted({cell.seeds for row in board.rows for cell in row.cells.values() if cell.seeds})
    header = ["method", "trainable", *(_title(board, task) for task in board.tasks), "average", "seeds"]
    lines = (header, *(_line(row, board.tasks) for row in board.rows))
    count = f"median of {span(seeds)} seed(s), last epoch / best epoch" if seeds else "nothing run yet"
    parts = (_rates(board), _paper(board)) if seeds else (_paper(board),)
    return Table(f"LoRA Table 2 (GLUE dev), {board.model}: {count}", lines, tuple(_captions(board)), parts, board)


def _line(row: GlueRow, tasks: Sequence[str]) -> list[str]:
    averages = [row.average(tasks, kind) for kind in ("last", "best")]
    return [
        row.label,
        number(row.parameters, ",d"),
        *(row.cells[task].text for task in tasks),
        " / ".join(f"{value:.1f}" for value in averages) if None not in averages else "incomplete",
        span(sorted({cell.seeds for cell in row.cells.values() if cell.seeds})),
    ]


def _captions(board: Board) -> list[str]:
    names = ", ".join(TITLES[task] for task in board.tasks)
    lines = [
        f"In %: {lora.METRICS}. +-: sample standard deviation over seeds. Best: each run at its best epoch on dev, the "
        "paper's rule; it looks at the scores it reports.",
        "Rate: of those tried, the one with the best median at the last epoch, over all seeds, collapsed or not.",
        f"Trainable: without the classifier's head, as in the paper. Average: over {names}, of complete rows.",
    ]
    cells = [(row, task, row.cells[task]) for row in board.rows for task in board.tasks]
    lines += mark_captions(cell for _, _, cell in cells)
    lines += [f"{row.label}, {TITLES[task]}: {'; '.join(cell.notes)}." for row, task, cell in cells if cell.notes]
    if seen := [TITLES[task] for task in board.tasks if (board.model, task) in CONTAMINATED]:
        lines.append(
            f"[x] contaminated: {board.model} saw AllNLI and pairs of Quora questions in its own training, so "
            f"{' and '.join(seen)} say nothing of a method."
        )
    if left := [TITLES[task] for task in lora.TASKS if task not in board.tasks]:
        lines.append(f"No runs on this base: {', '.join(left)}.")
    return lines


def _rates(board: Board) -> Table:
    header = ["method", *(TITLES[task] for task in board.tasks)]
    lines = ([row.label, *(row.cells[task].rates for task in board.tasks)] for row in board.rows)
    title = "Rates: the chosen one, and each one's median at the last epoch; edge: the grid ends there"
    return Table(title, (header, *lines))


def _paper(board: Board) -> Table:
    theirs, same = lora.rows_for(board.model)
    whose = f"the same base model, {theirs[0].model}" if same else f"ANOTHER base model, {theirs[0].model}"
    header = ["method", "trainable", *(TITLES[task] for task in board.tasks), "average"]
    captions = [
        "* quoted there from earlier work; + Houlsby's restricted set-up. LoRA: median of 5 seeds at each one's best "
        "epoch. Average: over the columns shown (and over all eight, as printed)."
    ]
    captions += [] if same else [f"Not {board.model}: compare the order of the methods, not the numbers."]
    lines = (header, *(_paper_line(row, board.tasks) for row in theirs))
    return Table(f"The paper's Table 2, {whose}", lines, tuple(captions))


def _paper_line(row: lora.Published, tasks: Sequence[str]) -> list[str]:
    places = [lora.TASKS.index(task) if task in lora.TASKS else None for task in tasks]
    spreads = row.spreads or (None,) * len(row.scores)
    shown = ["-" if i is None else plus_minus(row.scores[i], spreads[i]) for i in places]
    known = [row.scores[i] for i in places if i is not None]
    average = f"{sum(known) / len(known):.1f} " if known else ""
    return [row.label, f"{row.millions:g}M", *shown, f"{average}({row.average:.1f})"]


def _title(board: Board, task: str) -> str:
    return TITLES[task] + (" [x]" if (board.model, task) in CONTAMINATED else "")
