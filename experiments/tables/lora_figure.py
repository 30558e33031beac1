"""GLUE's figure: score against trainable parameters, ours on the left, the paper's RoBERTa-base on the right."""

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.papers import lora
from experiments.tables.figures import pyplot, save_small
from experiments.tables.lora_table2 import TITLES, Row, Table

# Okabe and Ito's palette, as in `figures`; each method keeps its colour and marker in both panels.
STYLES = {
    "fft": ("#000000", "s"), "ft-top2": ("#999999", "s"), "bitfit": ("#CC79A7", "v"), "head": ("#999999", "x"),
    "houlsby": ("#009E73", "^"), "pfeiffer": ("#56B4E9", "P"), "lin": ("#882255", "X"), "adapterdrop": ("#117733", "d"),
    "lora": ("#E69F00", "o"), "dora": ("#D55E00", "h"), "mora": ("#0072B2", "D"),
}  # fmt: skip


def draw(table: Table, folder: str | Path) -> Path | None:
    """Draws the average over the tasks that all of our rows have; None without such a task.

    Args:
      table: as `glue_table.lora_table2` gives it.
      folder: made if absent.
    """
    rows = [row for row in table.rows if row.parameters]
    tasks = tuple(t for t in table.tasks if t in lora.TASKS and all(row.cells[t].last is not None for row in rows))
    if not rows or not tasks:
        return None
    path = Path(folder) / f"glue_{table.model}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs, _ = lora.rows_for(table.model)
    plots = pyplot()
    figure, both = plots.subplots(1, 2, figsize=(9, 4.4))
    titles = (f"ours: {table.model}, last epoch (bar: to the best epoch)", f"paper: {theirs[0].model}")
    for axes, fill, title in zip(both, (_ours(rows, tasks), _paper(theirs, tasks)), titles, strict=True):
        fill(axes)
        axes.set_title(title, fontsize=10)
        axes.set_xscale("log")
        axes.set_xlabel("trainable parameters, without the head")
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3)
    both[0].set_ylabel(f"average of {', '.join(TITLES[task] for task in tasks)}, %", fontsize=8)
    figure.tight_layout()
    save_small(figure, path)
    plots.close(figure)
    return path


def _ours(rows: Sequence[Row], tasks: Sequence[str]) -> Callable:
    def fill(axes):
        for row in rows:
            last, best = row.average(tasks), row.average(tasks, "best")
            colour, marker = STYLES.get(row.method, ("#999999", "*"))
            hollow = {"markerfacecolor": "white"} if row.variant not in ("", "sharing") else {}
            above = [[0.0], [max(best - last, 0.0)]]
            look = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none", "capsize": 2, **hollow}
            axes.errorbar([row.parameters], [last], yerr=above, label=row.label, **look)

    return fill


def _paper(rows: Sequence[lora.Published], tasks: Sequence[str]) -> Callable:
    places = [lora.TASKS.index(task) for task in tasks]

    def fill(axes):
        for row in rows:
            colour, marker = STYLES[row.method]
            score = sum(row.scores[i] for i in places) / len(places)
            look = {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
            axes.plot([1e6 * row.millions], [score], label=f"{row.label} {row.millions:g}M", **look)

    return fill
