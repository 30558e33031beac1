"""What figures share: panels in one style, and small PNG files; and the curves of one run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.config.labels import methods_apart
from lowrank_jax.core import libraries

MATPLOTLIB = ("matplotlib", "figures need", "matplotlib")
DPI = 110  # 9 inches at 110 dots: sharp in a README, under 100 kB


def draw_run(result: dict, path: str | Path) -> Path:
    """Draws one run's training and held-out loss, and its evaluated scores that lie in [0, 1], against its steps.

    Args:
      result: the content of result.json.
      path: of the PNG.
    """
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(6, 3.6))
    axes.plot(*zip(*result["losses"], strict=True), color="#000000", linewidth=1.4)
    axes.set(xlabel="optimizer step", ylabel="training loss", title=result["name"])
    axes.title.set_fontsize(9)
    evaluations = result.get("evaluations") or []
    names = dict.fromkeys(name for one in evaluations for name in one if name != "step")
    scores = {name: [(e["step"], e[name]) for e in evaluations if e.get(name) is not None] for name in names}
    if held := scores.pop("loss", None):
        axes.plot(*zip(*held, strict=True), color="#000000", linestyle=":", marker="o", markersize=4, label="held-out")
        axes.set(ylabel="loss")
        axes.legend(loc="upper right", fontsize=8, frameon=False)
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


def draw_losses(results: Sequence[dict], path: str | Path) -> Path:
    """Draws the training losses of several runs against their steps, a colour for each method and variant.

    Args:
      results: contents of result.json.
      path: of the PNG.
    """
    plots = pyplot()
    figure, axes = plots.subplots(figsize=(6, 3.6))
    each = methods_apart([result.get("labels") or {} for result in results])
    methods = list(dict.fromkeys(each))
    named: set[str] = set()
    for result, method in zip(results, each, strict=True):
        points = [point for point in result.get("losses") or [] if point[1] is not None]
        if points:
            label = None if method in named else method
            axes.plot(*zip(*points, strict=True), color=f"C{methods.index(method)}", linewidth=1.0, label=label)
            named.add(method)
    dress(axes, f"{len(results)} runs", "optimizer step")
    axes.set_ylabel("training loss")
    if named:
        axes.legend(loc="upper right", fontsize=8, frameon=False)
    return finish(figure, Path(path))


def dress(axes: Any, title: str, below: str) -> None:
    """Gives a panel its title, the horizontal axis's name, a light grid and no frame."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(below)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def finish(figure: Any, path: Path) -> Path:
    """Writes a figure of panels and closes it."""
    figure.tight_layout()
    save_small(figure, path)
    pyplot().close(figure)
    return path


def pyplot() -> Any:
    """matplotlib's pyplot without a screen.

    Raises:
      UserError: matplotlib is missing, or broken.
    """
    module, *words = MATPLOTLIB
    libraries.load(module, *words).use("Agg")
    return libraries.load(f"{module}.pyplot", *words)


def save_small(figure: Any, path: Path) -> None:
    """PNG with a palette: a third of the size, with no difference to the eye."""
    import io

    from PIL import Image

    full = io.BytesIO()
    figure.savefig(full, dpi=DPI, bbox_inches="tight")
    Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
