"""GLUE's figure: score against trainable parameters, ours on the left, the paper's RoBERTa-base on the right."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import lora
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot

TITLES: dict[str, str] = dict(zip(lora.TASKS, lora.NAMES, strict=True))


def draw(board: Any, folder: str | Path) -> Path | None:
    """Draws the average over the tasks that all of our rows have; None without such a task.

    Args:
      board: from `glue_rows.board`.
      folder: made if absent.
    """
    rows = [row for row in board.rows if row.parameters]
    tasks = tuple(t for t in board.tasks if t in lora.TASKS and all(row.cells[t].last is not None for row in rows))
    if not rows or not tasks:
        return None
    path = Path(folder) / f"glue_{board.model}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    theirs, _ = lora.rows_for(board.model)
    figure, both = pyplot().subplots(1, 2, figsize=(9, 4.4))
    titles = (f"ours: {board.model}, last epoch (bar: to the best epoch)", f"paper: {theirs[0].model}")
    for axes, fill, title in zip(both, (_ours(rows, tasks), _paper(theirs, tasks)), titles, strict=True):
        fill(axes)
        axes.set_xscale("log")
        dress(axes, title, "trainable parameters, without the head")
        axes.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=3)
    both[0].set_ylabel(f"average of {', '.join(TITLES[task] for task in tasks)}, %", fontsize=8)
    return finish(figure, path)


def _ours(rows: Sequence[Any], tasks: Sequence[str]) -> Callable:
    def fill(axes):
        for row in rows:
            last, best = row.average(tasks), row.average(tasks, "best")
            hollow = {"markerfacecolor": "white"} if row.variant not in ("", "sharing") else {}
            above = [[0.0], [max(best - last, 0.0)]]
            look = {**style.point(row.method), "capsize": 2, **hollow}
            axes.errorbar([row.parameters], [last], yerr=above, label=row.label, **look)

    return fill


def _paper(rows: Sequence[lora.Published], tasks: Sequence[str]) -> Callable:
    places = [lora.TASKS.index(task) for task in tasks]

    def fill(axes):
        for row in rows:
            score = statistics.fmean(row.scores[i] for i in places)
            axes.plot([1e6 * row.millions], [score], label=f"{row.label} {row.millions:g}M", **style.point(row.method))

    return fill
