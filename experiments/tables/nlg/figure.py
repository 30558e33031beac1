"""The figure of LoRA's Table 18: validation loss and BLEU against the rank, a line a method, the paper's dotted."""

from collections.abc import Sequence
from pathlib import Path

from experiments.papers import nlg
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot
from experiments.tables.nlg.rows import NlgRow

PANELS = (("val. loss", "loss"), ("BLEU", "bleu"))  # a column's title, and its name in papers.nlg.RANKS


def draw(rows: Sequence[NlgRow], folder: str | Path) -> Path | None:
    """Draws lora_table18.png; None where no method was run at two ranks.

    Args:
      rows: of `lora_table18`.
      folder: made if absent.
    """
    methods = [name for name in dict.fromkeys(row.method for row in rows) if _points(rows, name, PANELS[0][0])[1:]]
    if not methods:
        return None
    path = Path(folder) / "lora_table18.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = pyplot().subplots(1, 2, figsize=(9, 3.8))
    for axes, (title, name) in zip(panels, PANELS, strict=True):
        for method in methods:
            look = {**style.point(method), "linestyle": "-"}
            axes.plot(*zip(*_points(rows, method, title), strict=True), label=style.name_of(method), **look)
        theirs = [(rank, scores[nlg.RANKS.index(name)]) for rank, scores in nlg.TABLE18.items()]
        axes.plot(*zip(*theirs, strict=True), label=f"paper: LoRA, {nlg.MEDIUM}", color="#999999", linestyle=":")
        axes.set_xscale("log", base=2)
        dress(axes, title, "rank r")
        axes.legend(fontsize=8, frameon=False)
    return finish(figure, path)


def _points(rows: Sequence[NlgRow], method: str, title: str) -> list[tuple[int, float]]:
    found = {row.rank: row.cells[title].mean for row in rows if row.method == method and title in row.cells}
    return sorted((rank, value) for rank, value in found.items() if rank is not None)
