"""Figures: a table's runs beside the paper's plots (Fig. 2, Fig. 3, accuracy by step), and the curves of one run."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora

# Okabe and Ito's palette, told apart by the colour-blind; each method keeps its colour family, each row its dash.
STYLES = {
    ("fft", None): ("#000000", "-", "s"),
    ("lora", 8): ("#E69F00", "-", "o"),
    ("lora", 32): ("#D55E00", "--", "^"),
    ("lora", 256): ("#CC79A7", "-.", "v"),
    ("mora", 8): ("#56B4E9", "-", "D"),
    ("mora", 32): ("#0072B2", "--", "P"),
    ("mora", 256): ("#009E73", "-.", "X"),
}
SPARE = ("#F0E442", "#999999", "#882255", "#117733")
RANK_COLOURS = {8: "#E69F00", 16: "#56B4E9", 32: "#D55E00", 64: "#0072B2", 128: "#009E73", 256: "#CC79A7"}
DPI = 110  # 9 inches at 110 dots: sharp in a README, under 100 kB


def draw(table: Any, folder: str | Path, stem: str = "") -> list[Path]:
    """Draws every figure that the table has data for; returns the files.

    Args:
      table: a `tables.Table` (that file imports this one), as `tables.mora_table2` gives it.
      folder: made if absent.
      stem: put before each file's name.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in table.rows if row.seeds]
    ours = f"ours: {table.base}" if table.base else "ours"
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


def draw_run(result: dict, path: str | Path) -> Path:
    """Draws one run's training loss, and its evaluated scores that lie in [0, 1], against its steps.

    Args:
      result: as result.json holds it.
      path: of the PNG.
    """
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(6, 3.6))
    axes.plot(*zip(*result["losses"], strict=True), color="#000000", linewidth=1.4)
    axes.set(xlabel="optimizer step", ylabel="training loss", title=result["name"])
    axes.title.set_fontsize(9)
    evaluations = result.get("evaluations") or []
    names = [name for name in (evaluations[0] if evaluations else {}) if name != "step"]
    scores = {name: [(e["step"], e[name]) for e in evaluations if e.get(name) is not None] for name in names}
    scores = {name: points for name, points in scores.items() if points and all(0 <= y <= 1 for _, y in points)}
    if scores:
        right = axes.twinx()
        for (name, points), colour in zip(scores.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False):
            right.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
        right.set(ylim=(-0.02, 1.02))
        right.legend(loc="center right", fontsize=8, frameon=False)
    save_small(figure, Path(path))
    plots.close(figure)
    return Path(path)


def style(method: str, rank: int | None, variant: str = "") -> dict[str, Any]:
    """Colour, dash and marker of a row, the same in every figure."""
    if not variant and (method, rank) in STYLES:
        colour, dash, marker = STYLES[method, rank]
    else:
        colour, dash, marker = SPARE[sum(map(ord, f"{method}{rank}{variant}")) % len(SPARE)], ":", "*"
    return {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.4}


def _loss_panels(rows: Sequence[Any]) -> tuple[Callable, Callable]:
    def ours(axes):
        for row in rows:
            look = {**style(row.method, row.rank, row.variant), "marker": None}
            axes.plot(*zip(*row.losses, strict=True), label=row.label, **look)

    def paper(axes):
        for (method, rank), losses in mora.FIG3.items():
            _points(axes, mora.FIG3_STEPS, losses, label=_name(method, rank), **style(method, rank))

    return ours, paper


def _rank_panels(rows: Sequence[Any]) -> tuple[Callable, Callable]:
    def look(rank):
        colour = "#000000" if rank is None else RANK_COLOURS.get(rank, "#999999")
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
                axes.plot(*zip(*row.accuracy.items(), strict=True), label=row.label, **style(row.method, row.rank))

    def paper(axes):
        for (method, rank), accuracy in mora.TABLE2.items():
            _points(axes, mora.TABLE2_STEPS, accuracy, label=_name(method, rank), **style(method, rank))

    return ours, paper


def _two_panels(path: Path, ours: str, quantity: str, panels: tuple[Callable, Callable], chance: bool = False) -> Path:
    """Ours left, the paper right, one vertical scale, each with its own steps from 0."""
    plots = pyplot()
    theirs = f"paper: {mora.BASE_MODEL}" + ("" if chance else " (digitised)")
    figure, both = plots.subplots(1, 2, figsize=(9, 4.2), sharey=True)
    for axes, fill, title in zip(both, panels, (ours, theirs), strict=True):
        fill(axes)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=True)
        if chance:
            axes.axhline(mora.CHANCE, color="#777777", linewidth=1, linestyle=":", zorder=0)
            axes.annotate(
                "chance",
                (0.01, mora.CHANCE),
                xycoords=("axes fraction", "data"),
                va="bottom",
                fontsize=8,
                color="#555555",
            )
        columns = 5 if len(axes.get_legend_handles_labels()[0]) <= 5 else 4
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=columns, columnspacing=1.2
        )
    both[0].set_ylabel(quantity)
    both[0].set_ylim(bottom=0)
    figure.tight_layout()
    save_small(figure, path)
    plots.close(figure)
    return path


def pyplot() -> Any:
    """matplotlib's pyplot without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plots

    return plots


def save_small(figure: Any, path: Path) -> None:
    """PNG with a palette: a third of the size, with no difference to the eye."""
    import io

    from PIL import Image

    full = io.BytesIO()
    figure.savefig(full, dpi=DPI, bbox_inches="tight")
    Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


def _points(axes: Any, steps: Sequence[int], values: Sequence[float | None], **look: Any) -> None:
    pairs = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    axes.plot(*zip(*pairs, strict=True), **look)


def _name(method: str, rank: int | None) -> str:
    return "FFT" if rank is None else f"{'LoRA' if method == 'lora' else 'MoRA'} {rank}"


def _rank_name(rank: int | None) -> str:
    return "FFT" if rank is None else f"LoRA r={rank}"
