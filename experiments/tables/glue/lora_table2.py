"""LoRA's Table 2: GLUE's dev sets, methods by tasks, over seeds; ours, the rates tried, and the paper's rows."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from experiments.papers import lora
from experiments.records.text_table import number
from experiments.tables.glue.rows import Board, GlueRow, board
from experiments.tables.table import Table, mark_captions, plus_minus, span

MODEL = "minilm-l6"  # unless another is asked for
TITLES = dict(zip(lora.TASKS, lora.NAMES, strict=True)) | {"wnli": "WNLI"}
# all-MiniLM-L6-v2's own training took AllNLI and pairs of Quora questions.
CONTAMINATED = {("minilm-l6", "mnli"), ("minilm-l6", "qqp")}


def table(results: Sequence[dict], options: Any) -> Table:
    """The table on options.model: ours, the rates, and the paper's rows."""
    return shown(board(results, options.model or MODEL))


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Score against trainable parameters, where there are tasks that every row has."""
    from experiments.tables.glue.figure import draw

    path = draw(table.data, folder)
    return [path] if path else []


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
    average = f"{_mean(known)} " if known else ""
    return [row.label, f"{row.millions:g}M", *shown, f"{average}({row.average:.1f})"]


def _mean(scores: Sequence[float]) -> Decimal:
    """The mean to one decimal, halves rounded up; of decimal numbers, as few halves are exact floats."""
    return (sum(map(Decimal, map(str, scores)), Decimal()) / len(scores)).quantize(Decimal("0.1"), ROUND_HALF_UP)


def _title(board: Board, task: str) -> str:
    return TITLES[task] + (" [x]" if (board.model, task) in CONTAMINATED else "")
