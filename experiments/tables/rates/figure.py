"""Figures of the comparison at tuned rates: U-curves by method and rank, and what each row reaches at its best rate."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot
from experiments.tables.rates.rows import RateRow, Setting

VARIANTS = {"rotation": {"linestyle": "--", "color": "#56B4E9"}}  # beside MoRA's own look


def draw(setting: Setting, rows: Sequence[RateRow], folder: str | Path) -> list[Path]:
    """Draws the setting's figures; [] where no row has a loss.

    Args:
      setting: names the files.
      rows: of it.
      folder: made if absent.
    """
    rows = [row for row in rows if row.best]
    if not rows:
        return []
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^A-Za-z0-9]+", "_", f"rates_{setting.task}_{Path(setting.base).name}_{setting.steps}")
    return [
        _curves(setting, rows, folder / f"{stem}_curves.png"),
        _reached(setting, rows, folder / f"{stem}_best.png"),
    ]


def _curves(setting: Setting, rows: Sequence[RateRow], path: Path) -> Path:
    """Loss against rate: a panel a method, a line a rank; full fine-tuning in all of them."""
    full = [row for row in rows if row.method == "fft"]
    kinds = list(dict.fromkeys((row.method, row.variant) for row in rows if row.method != "fft")) or [("fft", "")]
    figure, panels = pyplot().subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3.6), sharey=True, squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        for row in [*full, *(row for row in rows if (row.method, row.variant) == kind and row not in full)]:
            points = [(point.rate, point.loss.mean) for point in row.points if point.loss]
            colour = "#000000" if row.rank is None else style.RANK_COLOURS.get(row.rank, "#999999")
            name = "FFT" if row.rank is None else f"r={row.rank}"
            dash = ":" if row.rank is None else "-"
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        dress(axes, style.label(kind[0], None, kind[1]), "peak learning rate")
        axes.legend(fontsize=7, frameon=False)
    highest = max(point.loss.mean for row in rows for point in (row.points[0], row.best) if point and point.loss)
    lowest = min(row.best.loss.mean for row in rows if row.best and row.best.loss)
    margin = 0.05 * (highest - lowest) or 0.05
    panels[0][0].set_ylim(lowest - margin, highest + margin)  # a rate far too large would flatten every curve
    panels[0][0].set_ylabel("held-out loss" if setting.held_out else "training loss")
    return finish(figure, path)


def _reached(setting: Setting, rows: Sequence[RateRow], path: Path) -> Path:
    """Panels at the best rates: loss against parameters, rate against rank, forgetting or digits recalled."""
    panels: list[Callable] = [_parameters, _ranks]
    if any(point.rise is not None for row in rows for point in row.points):
        panels.append(_forgetting)
    if any(len(row.best.digits) > 1 for row in rows if row.best):
        panels.append(_digits)
    figure, each = pyplot().subplots(1, len(panels), figsize=(4.4 * len(panels), 3.9))
    for axes, panel in zip(each, panels, strict=True):
        panel(axes, rows)
    each[0].set_ylabel("held-out loss" if setting.held_out else "training loss")
    return finish(figure, path)


def _parameters(axes: Any, rows: Sequence[RateRow]) -> None:
    for (method, variant), group in _by_kind(rows).items():
        points = sorted((row.parameters, row.best.loss.mean) for row in group if row.parameters and row.best.loss)
        if points:
            axes.plot(*zip(*points, strict=True), label=style.label(method, None, variant), **_look(method, variant))
    axes.set_xscale("log")
    dress(axes, "best loss by size", "trainable parameters")
    axes.legend(fontsize=7, frameon=False)


def _ranks(axes: Any, rows: Sequence[RateRow]) -> None:
    for (method, variant), group in _by_kind(rows).items():
        points = sorted((row.rank, row.best.rate) for row in group if row.rank)
        if points:
            axes.plot(*zip(*points, strict=True), label=style.label(method, None, variant), **_look(method, variant))
        elif method == "fft":
            axes.axhline(group[0].best.rate, color="#000000", linestyle=":", linewidth=1, label="FFT")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if ranks := sorted({row.rank for row in rows if row.rank}):
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
    dress(axes, "best rate by rank", "rank r")
    axes.set_ylabel("peak learning rate")


def _forgetting(axes: Any, rows: Sequence[RateRow]) -> None:
    """Every rate of a row is a point, its best one is large."""
    for (method, variant), group in _by_kind(rows).items():
        large = {**_look(method, variant), "linestyle": "none"}
        best = [(row.best.rise, row.best.loss.mean) for row in group if row.best.rise is not None]
        all_rates = [
            (point.rise, point.loss.mean)
            for row in group
            for point in row.points
            if point.loss and point.rise is not None
        ]
        if best:
            axes.plot(*zip(*all_rates, strict=True), **{**large, "markersize": 2.5, "alpha": 0.5})
            axes.plot(*zip(*best, strict=True), **large)
    most = max((row.best.rise for row in rows if row.best and row.best.rise is not None), default=0.0)
    losses = [row.best.loss.mean for row in rows if row.best and row.best.loss]
    span = max(losses) - min(losses) or 0.05
    axes.set_xlim(right=2 * most if most > 0 else None)
    axes.set_ylim(min(losses) - 0.2 * span, max(losses) + span)
    dress(axes, "learning against forgetting", "rise of the loss on other text, nats a token")


def _digits(axes: Any, rows: Sequence[RateRow]) -> None:
    for row in rows:
        if row.best and row.best.digits:
            variant = "" if row.variant == "sharing" else row.variant
            axes.plot(
                *zip(*row.best.digits.items(), strict=True),
                label=row.label,
                **style.line(row.method, row.rank, variant),
            )
    axes.axhline(mora.CHANCE, color="#777777", linewidth=1, linestyle=":", zorder=0)
    dress(axes, "digits recalled at the best rate, %", "optimizer step")
    axes.legend(fontsize=7, frameon=False)


def _by_kind(rows: Sequence[RateRow]) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.method, row.variant), []).append(row)
    return found


def _look(method: str, variant: str) -> dict[str, Any]:
    return {**style.point(method), "markersize": 5, "linestyle": "-", "linewidth": 1.2, **VARIANTS.get(variant, {})}
