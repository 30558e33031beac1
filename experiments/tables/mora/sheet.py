"""Prints MoRA's fine-tuning tables: exams beside the paper's numbers, and the held-out loss that orders the rows."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from experiments.papers import mora_finetune as paper
from experiments.records.text_table import number
from experiments.tables.mora.exams import Exam, Score, entries, score_of, why_absent
from experiments.tables.mora.merges import rounding
from experiments.tables.mora.rows import SEEDS, TuneRow, loss_of, order_of, own_variant, rates_text, rise_of
from experiments.tables.table import Table, place

HOW = (
    "Ours: % right at the end, mean over seeds, [95% Wilson interval for that many questions]; not separated: the "
    "interval holds the untrained base's score, so that such a cell says nothing of a method."
)
BASE = "untrained base"
ADAPTED = "AdaptLLM's published prompts with their worked examples, options by log-likelihood a token"
INCOMPLETE = "needs all columns"  # a mean over fewer exams than the paper's cannot be compared with it
LOSS = (
    "Loss per token of held-out answers or text at the end, mean over seeds, +-: sample standard deviation. place: by "
    f"this loss, of rows with {SEEDS} seeds; ~: nearer to the row before than the larger of their two deviations. "
    "forgotten: rise of the loss on text that was not trained on, in nats per token."
)


def with_published(rows: Iterable[TuneRow], published: Iterable[paper.Key]) -> list[TuneRow]:
    """The rows, and an empty one for each of the paper's that none of them is."""
    rows = list(rows)
    have = {row.published for row in rows}
    missing = [
        TuneRow(method, rank, own_variant(method, rank)) for method, rank in published if (method, rank) not in have
    ]
    return sorted([*rows, *missing], key=lambda row: place((row.method, row.rank, row.variant)))


def exam_table(
    title: str,
    rows: Sequence[TuneRow],
    exams: Sequence[Exam],
    published: Mapping[paper.Key, paper.Numbers],
    columns: Sequence[str],
    captions: Iterable[str] = (),
    elsewhere: Mapping[str, str] | None = None,
) -> Table:
    """The table of exams: a line for each row, a column for each exam, ours | the paper's.

    Args:
      exams: in the paper's order.
      published: key -> a number for each of `columns`.
      columns: the paper's, by which an exam's number is found: its title.
      elsewhere: title of a column -> what stands in place of ours.
    """
    ours = elsewhere or {}
    at = {name: index for index, name in enumerate(columns)}
    lines = [["method", "trainable", *(f"{exam.title}, ours | paper" for exam in exams)]]
    lines.append([BASE, "-", *(f"{'-' if exam.title in ours else _base(rows, exam, exams)} | -" for exam in exams)])
    for row in rows:
        theirs = published.get(row.published) if row.published else None
        cells = []
        for exam in exams:
            mine = ours.get(exam.title) or (cell(row, exam) if exam.name else mean_of(_scores(row, exams), "right"))
            cells.append(f"{mine} | {number(theirs[at[exam.title]] if theirs else None, '.1f')}")
        lines.append([row.label, number(row.parameters, ",d"), *cells])
    notes = [f"{row.label}: {note} ({task})." for row in rows for task, note in row.notes.items() if row.runs]
    notes += rounding({row.label: [run for runs in row.runs.values() for run in runs] for row in rows})
    return Table(title, tuple(lines), (HOW, f"The paper's base is {paper.BASE_MODEL}.", *captions, *notes), data=rows)


def loss_table(rows: Sequence[TuneRow], task: str) -> tuple[Table, ...]:
    """The rows' held-out losses on one task, in order; () where no run has one."""
    losses = {row.label: (row, loss) for row in rows if (loss := loss_of(row.runs.get(task, ())))}
    if not losses:
        return ()
    places = order_of({name: loss for name, (_, loss) in losses.items()})
    lines = [["method", "rate", "held-out loss", "of the base", "seeds", "place", "forgotten"]]
    for name, (row, loss) in sorted(losses.items(), key=lambda item: item[1][1].mean):
        runs = row.runs[task]
        base = number(loss.base, ".4f")
        lines.append([name, rates_text(runs), loss.text, base, str(loss.seeds), places[name], rise_of(runs)])
    return (Table(f"Held-out loss, task {task}", tuple(lines), (LOSS,)),)


def cell(row: TuneRow, exam: Exam) -> str:
    """What a row has of an exam: its score, or why there is none."""
    runs = row.runs.get(exam.task, ())
    if not runs:
        return row.why(exam.task)
    if found := score_of(runs, exam):
        return found.text
    if why := why_absent(runs, exam):
        return f"not measured: {why}"
    return "no score" if any(entries(run, exam) for run in runs) else "not asked"


def mean_of(scores: Sequence[Score | None], side: str) -> str:
    """The mean of all columns in %, as in the paper's last column; INCOMPLETE where one has no score.

    Args:
      scores: of the columns.
      side: "right", or "base" for the untrained base.
    """
    shares = [None if one is None or getattr(one, side) is None else getattr(one, side) / one.n for one in scores]
    known = [share for share in shares if share is not None]
    return f"{100 * statistics.fmean(known):.1f}" if len(known) == len(shares) else INCOMPLETE


def _scores(row: TuneRow, exams: Sequence[Exam]) -> list[Score | None]:
    return [score_of(row.runs.get(exam.task, ()), exam) for exam in exams if exam.name]


def _base(rows: Sequence[TuneRow], exam: Exam, exams: Sequence[Exam]) -> str:
    """The base's score before training, which is the same for all methods that start at zero."""
    if not exam.name:
        means = (mean_of(_scores(row, exams), "base") for row in rows)
        return next((mean for mean in means if mean != INCOMPLETE), INCOMPLETE)
    runs = [run for row in rows for run in row.runs.get(exam.task, ())]
    scores = [score_of(row.runs.get(exam.task, ()), exam) for row in rows]
    found = [one for one in scores if one is not None and one.base is not None]
    if not found:
        return f"not measured: {why}" if (why := why_absent(runs, exam)) else "not measured"
    return f"{100 * (found[0].base or 0.0) / found[0].n:.1f} of {found[0].n}"
