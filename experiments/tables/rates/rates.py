"""Methods at each one's own learning rate: losses, best rates, forgetting, digits recalled; and cost beside quality.

No rule for a rate stands here or in the config: whether the records support one (`optimizer.learning_rate="auto"`) is
what the sentences below the tables say; until they do, a rate is given or searched.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records import results as records
from experiments.records.text_table import number
from experiments.tables import style
from experiments.tables.mora.rows import SEEDS, order_of, rise_of
from experiments.tables.rates import claims, cost
from experiments.tables.rates.rows import SHARING, RateRow, Setting, settings
from experiments.tables.table import Table

HOW = (
    "Loss: {what}, mean over seeds at the best rate, +-: sample standard deviation. The best rate has the lowest mean "
    "of those with most seeds; edge: it is the smallest or largest that was tried; neighbours: the losses at the rates "
    "beside it. place: of rows with {seeds} seeds; ~: nearer to the row before than the larger of their two deviations."
)
FEWER = "edge of N seeds: a rate beside the best one was run with fewer than its N seeds; a better one may lie there."
WHAT = {True: "per token of held-out answers at the end", False: "of training, over the last 20 steps"}
FORGOTTEN = "forgotten: rise of the loss on text that was not trained on, in nats per token."
EDGE = " (edge)"
AT_EDGE = "(edge): a better rate may lie beyond the best one of either."
DIGITS = "digits: % of the value's 32 digits by greedy decoding at the end, median over seeds."
VERDICT = (
    "MoRA's mean loss against another method's of equal rank, each at its own rate; separated by more than the larger "
    "of their standard deviations over {seeds} seeds or more."
)


def load(places: Iterable[str | Path]) -> tuple[list[dict], list[dict]]:
    """(records of runs, measurements of the suite `rates`)."""
    places = list(places)
    return records.load_results(places), cost.load(places)


def table(results: tuple[Sequence[dict], Sequence[dict]], options: Any) -> Table:
    """MoRA against low-rank methods in all settings, then a table for each setting and one of cost for each base."""
    runs, measured = results
    found = settings(runs, options.model)
    parts = [shown(setting, rows) for setting, rows in found.items()]
    parts += cost.tables(measured, found)
    lines = _verdicts(found)
    title = "Methods at tuned rates" + ("" if found else ": nothing is recorded")
    captions = (VERDICT.format(seeds=SEEDS),) if lines else ()
    captions += (AT_EDGE,) if any(cell.endswith(EDGE) for line in lines for cell in line) else ()
    return Table(title, lines, captions, tuple(parts), data=found)


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Every figure that the settings have data for."""
    from experiments.tables.rates.figure import draw

    return [path for setting, rows in table.data.items() for path in draw(setting, rows, folder)]


def shown(setting: Setting, rows: Sequence[RateRow]) -> Table:
    """A setting's lines, and the sentences that they support."""
    last = "forgotten" if setting.held_out else "digits"
    header = ["method", "trainable", "best rate", "tried", "loss", "seeds", "place", "neighbours", last]
    losses = {row.label: row.best.loss for row in rows if row.best and row.best.loss}
    places = order_of(losses)
    lines = [header, *(_cells(row, places, setting) for row in rows)]
    captions = [HOW.format(what=WHAT[setting.held_out], seeds=SEEDS), FORGOTTEN if setting.held_out else DIGITS]
    captions += [FEWER] if any(row.edge_of_seeds for row in rows) else []
    return Table(setting.title, tuple(lines), (*captions, *claims.sentences(rows)), data=rows)


def _cells(row: RateRow, places: dict[str, str], setting: Setting) -> list[str]:
    rates = [point.rate for point in row.points]
    tried = f"{len(rates)}: {rates[0]:g} to {rates[-1]:g}"
    best = row.best
    if best is None or best.loss is None:
        return [row.label, number(row.parameters, ",d"), "-", tried, "all diverged", "-", "-", "-", "-"]
    place = rates.index(best.rate)
    beside = [_point(row, index) for index in (place - 1, place + 1)]
    digits = best.digits
    last = rise_of(best.runs) if setting.held_out else number(digits[max(digits)] if digits else None, ".1f")
    return [
        row.label,
        number(row.parameters, ",d"),
        f"{best.rate:g}{_edge(row)}",
        tried,
        best.loss.text,
        str(best.loss.seeds),
        places[row.label],
        " | ".join(beside),
        last,
    ]


def _edge(row: RateRow) -> str:
    """The mark of a best rate next to which a better one may lie; "" for others."""
    if row.edge:
        return " edge"
    return f" edge of {row.best.loss.seeds} seeds" if row.edge_of_seeds and row.best and row.best.loss else ""


def _point(row: RateRow, index: int) -> str:
    """The loss at a neighbour of the best rate."""
    if not 0 <= index < len(row.points):
        return "-"
    loss = row.points[index].loss
    return "diverged" if loss is None else f"{loss.mean:.4f}"


def _verdicts(found: dict[Setting, list[RateRow]]) -> tuple[list[str], ...]:
    """A line for each setting, variant of MoRA and other method, a column for each rank; () where none can be said."""
    said = {}
    for setting, rows in found.items():
        for variant in dict.fromkeys(row.variant for row in rows if row.method == "mora"):
            for other in claims.OTHERS:
                if at := claims.comparisons(rows, variant, other):
                    cells = {rank: one.verdict + (EDGE if one.edges else "") for rank, one in at.items()}
                    said[f"{setting.task}, {setting.base}", variant or SHARING, style.name_of(other)] = cells
    ranks = sorted({rank for at in said.values() for rank in at})
    if not said:
        return ()
    header = ["setting", "MoRA", "against", *(f"r={rank}" for rank in ranks)]
    return (header, *([*key, *(at.get(rank, "-") for rank in ranks)] for key, at in said.items()))
