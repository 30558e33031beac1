"""MoRA's figures: a setting's runs on the left, the paper's plots (Fig. 2, Fig. 3, accuracy by step) on the right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot


def draw(setting: Any, folder: str | Path, stem: str = "") -> list[Path]:
    """Draws every figure that the setting has data for; returns the files.

    Args:
      setting: one of `uuid_rows.settings`.
      folder: made if absent.
      stem: put before each file's name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in setting.rows if row.seeds]
    ours = f"ours: {setting.base}" if setting.base else "ours"
    drawn = []
    if any(row.losses for row in rows):
        drawn.append(_two_panels(folder / f"{stem}losses.png", ours, "training loss", _loss_panels(rows)))
    lora = [row for row in rows if row.method in ("lora", "fft") and row.losses and not row.variant]
    if sum(row.method == "lora" for row in lora) > 1:
        drawn.append(_two_panels(folder / f"{stem}lora_ranks.png", ours, "training loss", _rank_panels(lora)))
    if any(row.accuracy for row in rows):
        panels = _accuracy_panels(rows)
        drawn.append(_two_panels(folder / f"{stem}accuracy.png", ours, "digits recalled, %", panels, chance=True))
    return drawn


def _loss_panels(rows: Sequence[Any]) -> tuple[Callable, Callable]:
    def ours(axes):
        for row in rows:
            look = {**style.line(row.method, row.rank, row.variant), "marker": None}
            axes.plot(*zip(*row.losses, strict=True), label=row.label, **look)

    def paper(axes):
        for (method, rank), losses in mora.FIG3.items():
            _points(axes, mora.FIG3_STEPS, losses, label=style.label(method, rank), **style.line(method, rank))

    return ours, paper


def _rank_panels(rows: Sequence[Any]) -> tuple[Callable, Callable]:
    def look(rank):
        colour = "#000000" if rank is None else style.RANK_COLOURS.get(rank, "#999999")
        return {"color": colour, "linewidth": 1.4, "linestyle": "--" if rank is None else "-"}

    def ours(axes):
        for row in sorted(rows, key=lambda row: row.rank or 10**6):
            axes.plot(*zip(*row.losses, strict=True), label=_rank_name(row.rank), **look(row.rank))

    def paper(axes):
        for rank, losses in mora.FIG2.items():
            _points(axes, mora.FIG2_STEPS, losses, label=_rank_name(rank), marker="o", markersize=4, **look(rank))
        fft = [(step, loss) for step, loss in zip(mora.FIG3_STEPS, mora.FIG3["fft", None], strict=True) if step >= 600]
        axes.plot(*zip(*fft, strict=True), label="FFT", marker="o", markersize=4, **look(None))

    return ours, paper


def _accuracy_panels(rows: Sequence[Any]) -> tuple[Callable, Callable]:
    def ours(axes):
        for row in rows:
            if row.accuracy:
                axes.plot(*zip(*row.accuracy.items(), strict=True), label=row.label, **style.line(row.method, row.rank))

    def paper(axes):
        for (method, rank), accuracy in mora.TABLE2.items():
            _points(axes, mora.TABLE2_STEPS, accuracy, label=style.label(method, rank), **style.line(method, rank))

    return ours, paper


def _two_panels(path: Path, ours: str, quantity: str, panels: tuple[Callable, Callable], chance: bool = False) -> Path:
    """Ours left, the paper right, one vertical scale, each with its own steps from 0."""
    theirs = f"paper: {mora.BASE_MODEL}" + ("" if chance else " (digitised)")
    figure, both = pyplot().subplots(1, 2, figsize=(9, 4.2), sharey=True)
    for axes, fill, title in zip(both, panels, (ours, theirs), strict=True):
        fill(axes)
        dress(axes, title, "optimizer step")
        axes.set_xlim(left=0)
        axes.tick_params(labelleft=True)
        if chance:
            axes.axhline(mora.CHANCE, color="#777777", linewidth=1, linestyle=":", zorder=0)
            where = {"xycoords": ("axes fraction", "data"), "va": "bottom"}
            axes.annotate("chance", (0.01, mora.CHANCE), fontsize=8, color="#555555", **where)
        columns = 5 if len(axes.get_legend_handles_labels()[0]) <= 5 else 4
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=columns, columnspacing=1.2
        )
    both[0].set_ylabel(quantity)
    both[0].set_ylim(bottom=0)
    return finish(figure, path)


def _points(axes: Any, steps: Sequence[int], values: Sequence[float | None], **look: Any) -> None:
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    axes.plot(*zip(*pairs, strict=True), **look)


def _rank_name(rank: int | None) -> str:
    return "FFT" if rank is None else f"LoRA r={rank}"
