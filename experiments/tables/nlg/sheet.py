"""Prints rows of LoRA's GPT tables: our lines with their captions, and the paper's lines as further parts."""

import re
from collections.abc import Iterable, Sequence

from experiments.papers import nlg
from experiments.records.text_table import number
from experiments.tables.nlg.rows import NOT_RUN, Column, NlgRow
from experiments.tables.table import Table, span

WORDS = {  # regular expression of a word in a row's name -> what it means
    r"p\d+i\d+": "p8i5 and the like: 8 virtual tokens before the prompt, and 5 between prompt and completion.",
    "states": "states: PreLayer's vectors start at what the base computes at words; otherwise at words' embeddings.",
    "code": "code: where the paper and its authors' script differ, as in the script.",
}
# (base, method, smallest rank) -> why no such row can be run.
EMPTY = {
    ("smollm2-135m", "bitfit", 0): "SmolLM2 has no biases",
    ("smollm2-135m", "lora", 193): "SmolLM2's value projection, 576 x 192, has no rank above 192",
}
MEAN = "Mean over seeds, +-: sample standard deviation; each run at the epoch with the smallest validation loss."


def sheet(title: str, model: str, rows: Sequence[NlgRow], columns: Sequence[Column], captions: Iterable[str]) -> Table:
    """Our lines: method, trainable parameters, a cell for each column, rate, seeds."""
    titles = [column.title for column in columns]
    lines = [["method", "trainable", *titles, "rate", "seeds"]]
    for row in rows:
        scores = [row.cells[c.title].text(c.digits) if c.title in row.cells else "-" for c in columns]
        rates = ", ".join(_rate(row, rate) for rate in row.rates) or "-"
        lines.append([row.label, number(row.parameters, ",d"), *scores, rates, str(row.seeds) if row.seeds else "-"])
    run = sorted({row.seeds for row in rows if row.seeds})
    what = f"mean over {span(run)} seed(s)" if run else "nothing run yet"
    edges = ("edge: the smallest or the largest of the rates tried; a better one may lie beyond.",)
    said = {word for row in rows for word in row.label.split()}
    words = [what for word, what in WORDS.items() if any(re.fullmatch(word, one) for one in said)]
    notes = (*captions, *(edges if any(row.edges for row in rows) else ()), *words, *remarks(rows, model))
    return Table(f"{title}, {model}: {what}", tuple(lines), notes, data=rows)


def _rate(row: NlgRow, rate: float | None) -> str:
    return "-" if rate is None else f"{rate:g}" + (" edge" if rate in row.edges else "")


def remarks(rows: Sequence[NlgRow], model: str) -> list[str]:
    """Captions: each note with all rows that share it; then which rows were not run, and why."""
    sharing: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if row.notes and row.notes != NOT_RUN:
            sharing.setdefault(row.notes, []).append(row.label)
    notes = [f"{', '.join(labels)}: {'; '.join(said)}." for said, labels in sharing.items()]
    empty: dict[str, list[str]] = {}
    for row in rows:
        if row.notes == NOT_RUN:
            empty.setdefault(_why(row, model), []).append(row.label)
    return [*notes, *(f"Not run{why}: {', '.join(labels)}." for why, labels in sorted(empty.items()))]


def _why(row: NlgRow, model: str) -> str:
    """ " (reason)" where a row cannot be run; otherwise ""."""
    found = [why for (base, method, rank), why in EMPTY.items() if (base, method) == (model, row.method)
             and (row.rank or 0) >= rank]  # fmt: skip
    return f" ({found[0]})" if found else ""


def papers_part(
    title: str, published: Sequence[nlg.Published], columns: Sequence[Column], model: str, captions: Iterable[str] = ()
) -> tuple[Table, ...]:
    """The paper's lines, a part for each of its models; first the one that ours ran on, where the paper has it."""
    models = sorted(dict.fromkeys(row.model for row in published), key=lambda name: name != model)
    parts = []
    for name in models:
        whose = "the same base model" if name == model else "ANOTHER base model"
        lines = [["method", "trainable", *(column.title for column in columns)]]
        lines += [_line(row, columns) for row in published if row.model == name]
        notes = [*captions] if name == models[0] else []
        notes += [] if name == model else [f"Not {model}: compare the order of the methods, not the numbers."]
        if any(row.quoted for row in published if row.model == name):
            notes.append("* quoted there from earlier work.")
        parts.append(Table(f"The paper's {title}, {whose}, {name}", tuple(lines), tuple(notes)))
    return tuple(parts)


def _line(row: nlg.Published, columns: Sequence[Column]) -> list[str]:
    spreads = row.spreads or (None,) * len(row.scores)
    shown = [
        f"{value:.{column.digits}f}" + ("" if deviation is None else f"+-{deviation:.{column.digits}f}")
        for column, value, deviation in zip(columns, row.scores, spreads, strict=True)
    ]
    return [row.label, f"{row.millions:g}M", *shown]
