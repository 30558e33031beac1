"""The GLUE table as text: ours, the rates, what the marks mean, and the paper's rows."""

from collections.abc import Sequence

from experiments.papers import lora
from experiments.records.text_table import lay_out, number
from experiments.tables.lora_table2 import TITLES, Cell, Row, Table

# all-MiniLM-L6-v2's own training took AllNLI and pairs of Quora questions.
CONTAMINATED = {("minilm-l6", "mnli"), ("minilm-l6", "qqp")}
MARKS = {
    "c": "some seeds collapsed (in the end one class, one score, or an output not finite) and are not in the median",
    "s": "some seeds diverged, failed or stopped before the last epoch",
    "p": "trained or scored on parts of the official data",
}


def render(table: Table, form: str = "text") -> str:
    """Ours, the rates, the notes and the paper's rows, in `form` "text" or "markdown"."""
    seeds = sorted({cell.seeds for row in table.rows for cell in row.cells.values() if cell.seeds})
    header = ["method", "trainable", *(_title(table, task) for task in table.tasks), "average", "seeds"]
    lines = [header, *(_line(row, table.tasks) for row in table.rows)]
    count = f"median of {_span(seeds)} seed(s), last epoch / best epoch" if seeds else "nothing run yet"
    parts = [f"LoRA Table 2 (GLUE dev), {table.model}: {count}", "", lay_out(lines, form), "", *_captions(table)]
    if seeds:
        header = ["method", *(TITLES[task] for task in table.tasks)]
        lines = [header, *([row.label, *(_rates(row.cells[task]) for task in table.tasks)] for row in table.rows)]
        parts += [
            "",
            "Rates: the chosen one, and each one's median at the last epoch; edge: the grid ends there",
            "",
            lay_out(lines, form),
        ]
    theirs, same = lora.rows_for(table.model)
    whose = f"the same base model, {theirs[0].model}" if same else f"ANOTHER base model, {theirs[0].model}"
    lines = [_paper_header(table), *(_paper_line(row, table) for row in theirs)]
    parts += ["", f"The paper's Table 2, {whose}", "", lay_out(lines, form), "", *_paper_captions(table, same)]
    return "\n".join(parts)


def cell_text(cell: Cell) -> str:
    """ "62.1+-1.2 / 63.0+-0.9 [c]": last / best."""
    if cell.last is None:
        return cell.why
    both = (_plus_minus(cell.last, cell.last_std), _plus_minus(cell.best, cell.best_std))
    return " / ".join(both) + (f" [{cell.marks}]" if cell.marks else "")


def _line(row: Row, tasks: Sequence[str]) -> list[str]:
    averages = [row.average(tasks, kind) for kind in ("last", "best")]
    seeds = sorted({cell.seeds for cell in row.cells.values() if cell.seeds})
    return [
        row.label,
        number(row.parameters, ",d"),
        *(cell_text(row.cells[task]) for task in tasks),
        " / ".join(f"{value:.1f}" for value in averages) if None not in averages else "incomplete",
        _span(seeds),
    ]


def _captions(table: Table) -> list[str]:
    names = ", ".join(TITLES[task] for task in table.tasks)
    lines = [
        f"In %: {lora.METRICS}. +-: sample standard deviation over seeds. Best: each run at its best epoch on dev, the "
        "paper's rule; it looks at the scores it reports.",
        "Rate: of those tried, the one with the best median at the last epoch, over all seeds, collapsed or not.",
        f"Trainable: without the classifier's head, as in the paper. Average: over {names}, of complete rows.",
    ]
    cells = [(row, task, row.cells[task]) for row in table.rows for task in table.tasks]
    lines += [f"[{mark}] {what}." for mark, what in MARKS.items() if any(mark in cell.marks for _, _, cell in cells)]
    lines += [f"{row.label}, {TITLES[task]}: {'; '.join(cell.notes)}." for row, task, cell in cells if cell.notes]
    if seen := [TITLES[task] for task in table.tasks if (table.model, task) in CONTAMINATED]:
        lines.append(
            f"[x] contaminated: {table.model} saw AllNLI and pairs of Quora questions in its own training, so "
            f"{' and '.join(seen)} say nothing of a method."
        )
    if left := [TITLES[task] for task in lora.TASKS if task not in table.tasks]:
        lines.append(f"No runs on this base: {', '.join(left)}.")
    return lines


def _paper_captions(table: Table, same: bool) -> list[str]:
    lines = [
        "* quoted there from earlier work; + Houlsby's restricted set-up. LoRA: median of 5 seeds at each one's best "
        "epoch. Average: over the columns shown (and over all eight, as printed)."
    ]
    return lines if same else [*lines, f"Not {table.model}: compare the order of the methods, not the numbers."]


def _rates(cell: Cell) -> str:
    if cell.rate is None:
        return "-"
    tried = ", ".join(f"{rate:g}: {_percent(median)}" for rate, median in sorted(cell.tried.items()))
    edge = len(cell.tried) > 1 and cell.rate in (min(cell.tried), max(cell.tried))
    return f"{cell.rate:g} ({tried})" + (" edge" if edge else "")


def _percent(fraction: float) -> str:
    return "lost" if fraction == float("-inf") else f"{100 * fraction:.1f}"


def _paper_header(table: Table) -> list[str]:
    return ["method", "trainable", *(TITLES[task] for task in table.tasks), "average"]


def _paper_line(row: lora.Published, table: Table) -> list[str]:
    places = [lora.TASKS.index(task) if task in lora.TASKS else None for task in table.tasks]
    spreads = row.spreads or (None,) * len(row.scores)
    shown = ["-" if i is None else _plus_minus(row.scores[i], spreads[i]) for i in places]
    known = [row.scores[i] for i in places if i is not None]
    average = f"{sum(known) / len(known):.1f} " if known else ""
    return [row.label, f"{row.millions:g}M", *shown, f"{average}({row.average:.1f})"]


def _title(table: Table, task: str) -> str:
    return TITLES[task] + (" [x]" if (table.model, task) in CONTAMINATED else "")


def _span(seeds: Sequence[int]) -> str:
    return "-".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))) if seeds else "-"


def _plus_minus(value: float, spread: float | None) -> str:
    return f"{value:.1f}" + ("" if spread is None else f"+-{spread:.1f}")
