"""Figures of the comparison at tuned rates: U-curves by method and rank, and what each row reaches at its best rate."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot
from experiments.tables.rates.rows import RateRow, Setting

VARIANTS = {"rotation": {"linestyle": "--", "color": "#56B4E9", "marker": "d"}}  # beside MoRA's own look
DASHES = {2: ":", 8: "-", 32: "--", 128: "-."}  # line styles by rank, in the panel where a colour is a method's
BESIDE = 0.08  # shift between methods at one rank, in powers of two: otherwise equal best rates hide each other
SMALL = {"fontsize": 7, "frameon": False}  # legends


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
        finish(curves(setting, rows), folder / f"{stem}_curves.png"),
        finish(reached(setting, rows), folder / f"{stem}_best.png"),
    ]


def curves(setting: Setting, rows: Sequence[RateRow]) -> Any:
    """The figure of loss against rate, not yet written: a panel a method, a line a rank; full fine-tuning in all.

    Args:
      setting: of the rows.
      rows: those that have a best rate.
    """
    full = [row for row in rows if row.method == "fft"]
    kinds = list(dict.fromkeys((row.method, row.variant) for row in rows if row.method != "fft")) or [("fft", "")]
    figure, panels = pyplot().subplots(1, len(kinds), figsize=(3.2 * len(kinds) + 0.7, 3.6), sharey=True, squeeze=False)
    for axes, kind in zip(panels[0], kinds, strict=True):
        for row in [*full, *(row for row in rows if (row.method, row.variant) == kind and row not in full)]:
            points = [(point.rate, point.loss.mean) for point in row.points if point.loss]
            colour = "#000000" if row.rank is None else style.RANK_COLOURS.get(row.rank, "#999999")
            name = "FFT" if row.rank is None else f"r={row.rank}"
            dash = ":" if row.rank is None else "-"
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker="o", markersize=3, label=name)
        axes.set_xscale("log")
        dress(axes, style.label(kind[0], None, kind[1]), "peak learning rate")
    lines = {line.get_label(): line for axes in panels[0] for line in axes.get_lines()}
    panels[0][-1].legend([*lines.values()], [*lines], loc="upper left", bbox_to_anchor=(1.0, 1.0), **SMALL)
    highest = max(point.loss.mean for row in rows for point in (row.points[0], row.best) if point and point.loss)
    lowest = min(row.best.loss.mean for row in rows if row.best and row.best.loss)
    margin = 0.05 * (highest - lowest) or 0.05
    panels[0][0].set_ylim(lowest - margin, highest + margin)  # a rate far too large would flatten every curve
    panels[0][0].set_ylabel(_loss_name(setting))
    return figure


def reached(setting: Setting, rows: Sequence[RateRow]) -> Any:
    """The figure of the best rates, not yet written: loss by parameters, rate by rank, forgetting, digits recalled.

    Args:
      setting: of the rows.
      rows: those that have a best rate.
    """
    panels: list[Callable] = [_parameters, _ranks]
    if any(point.rise is not None for row in rows for point in row.points):
        panels.append(_forgetting)
    if any(len(row.best.digits) > 1 for row in rows if row.best):
        panels.append(_digits)
    figure, each = pyplot().subplots(1, len(panels), figsize=(4.4 * len(panels), 3.9))
    for axes, panel in zip(each, panels, strict=True):
        panel(axes, rows)
        if not axes.get_ylabel():
            axes.set_ylabel(_loss_name(setting))
    return figure


def _parameters(axes: Any, rows: Sequence[RateRow]) -> None:
    for (method, variant), group in _by_kind(rows).items():
        points = sorted((row.parameters, row.best.loss.mean) for row in group if row.parameters and row.best.loss)
        if points:
            axes.plot(*zip(*points, strict=True), label=style.label(method, None, variant), **_look(method, variant))
    axes.set_xscale("log")
    ticker = pyplot().matplotlib.ticker
    counts = [row.parameters for row in rows if row.parameters] or [1]
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if max(counts) < 100 * min(counts) else (1, 3)))
    axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))  # 200k, 1M; powers of ten would run into each other
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    dress(axes, "best loss by size", "trainable parameters")
    axes.legend(**SMALL)


def _ranks(axes: Any, rows: Sequence[RateRow]) -> None:
    kinds = _by_kind(rows)
    for place, ((method, variant), group) in enumerate(kinds.items()):
        aside = 2 ** (BESIDE * (place - (len(kinds) - 1) / 2))
        points = sorted((row.rank * aside, row.best.rate) for row in group if row.rank)
        if points:
            axes.plot(*zip(*points, strict=True), label=style.label(method, None, variant), **_look(method, variant))
        elif method == "fft":
            axes.axhline(group[0].best.rate, color="#000000", linestyle=":", linewidth=1, label="FFT")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if ranks := sorted({row.rank for row in rows if row.rank}):
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.set_xlim(ranks[0] / 2, ranks[-1] * 2)
    dress(axes, "best rate by rank", "rank r")
    axes.set_ylabel("peak learning rate")
    axes.legend(**SMALL)


def _forgetting(axes: Any, rows: Sequence[RateRow]) -> None:
    """Every rate of a row is a point, its best one is large; those with a loss far above the best ones are left out."""
    losses = [row.best.loss.mean for row in rows if row.best and row.best.loss]
    span = max(losses) - min(losses) or 0.05
    highest, least = max(losses) + span, 0.0
    for (method, variant), group in _by_kind(rows).items():
        large = {**_look(method, variant), "linestyle": "none"}
        best = [(row.best.rise, row.best.loss.mean) for row in group if row.best.rise is not None]
        all_rates = [
            (point.rise, point.loss.mean)
            for row in group
            for point in row.points
            if point.loss and point.rise is not None and point.loss.mean <= highest
        ]
        if best:
            least = min(least, *(rise for rise, _ in all_rates))
            axes.plot(*zip(*all_rates, strict=True), **{**large, "markersize": 2.5, "alpha": 0.5})
            axes.plot(*zip(*best, strict=True), **large)
    most = max((row.best.rise for row in rows if row.best and row.best.rise is not None), default=0.0)
    if most > 0:
        axes.set_xlim(least - 0.1 * most, 2 * most)
    axes.set_ylim(min(losses) - 0.2 * span, highest)
    dress(axes, "learning against forgetting (large: best rate)", "rise of the loss on other text, nats a token")


def _digits(axes: Any, rows: Sequence[RateRow]) -> None:
    for row in rows:
        if row.best and row.best.digits:
            look = {**_look(row.method, row.variant), "linestyle": DASHES.get(row.rank or 0, "-")}
            axes.plot(*zip(*row.best.digits.items(), strict=True), label=row.label, **look)
    axes.axhline(mora.CHANCE, color="#777777", linewidth=1, linestyle=":", zorder=0, label="chance")
    dress(axes, "digits recalled at the best rate", "optimizer step")
    axes.set_ylabel("digits recalled, %")
    axes.legend(**SMALL)


def _loss_name(setting: Setting) -> str:
    return "held-out loss" if setting.held_out else "training loss"


def _by_kind(rows: Sequence[RateRow]) -> dict[tuple[str, str], list[Any]]:
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.method, row.variant), []).append(row)
    return found


def _look(method: str, variant: str) -> dict[str, Any]:
    return {**style.point(method), "markersize": 5, "linestyle": "-", "linewidth": 1.2, **VARIANTS.get(variant, {})}
