"""MoRA's Table 3 and Figs. 4 and 5: perplexity of pre-training from scratch, ours beside the paper's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.papers import mora_pretrain as paper
from experiments.records.text_table import number
from experiments.tables import style
from experiments.tables.figures import dress, finish, pyplot
from experiments.tables.mora import order
from experiments.tables.mora.merges import rounding
from experiments.tables.mora.pretrain import PretrainRow, Setting, settings
from experiments.tables.table import Table

STEM = "mora_table3"


def table(results: Sequence[dict], options: Any) -> Table:
    """The setting with most runs, its Fig. 5, and below these of other settings."""
    del options
    found = settings(results)
    tables = [part for setting in found for part in _shown(setting, found)]
    return dataclasses.replace(tables[0], parts=tuple(tables[1:]))


def figures(table: Table, folder: str | Path) -> list[Path]:
    """Loss curves (Fig. 4) and the numbers of large singular values (Fig. 5) of each setting."""
    found = []
    Path(folder).mkdir(parents=True, exist_ok=True)
    for place, part in enumerate(part for part in (table, *table.parts) if isinstance(part.data, Setting)):
        stem = STEM if not place else f"{STEM}_{place + 1}"
        rows = [row for row in part.data.rows if row.scores]
        if any(row.losses for row in rows):
            found.append(_curves(rows, part.data.name, Path(folder) / f"{stem}_losses.png"))
        if any(row.counts for row in rows):
            found.append(_bars(rows, part.data.name, Path(folder) / f"{stem}_updates.png"))
    return found


def _shown(setting: Setting, found: Sequence[Setting]) -> list[Table]:
    header = ("method", "r", "merges", "trainable", "lr (tried: perplexity)", "perplexity", "seeds")
    lines: list[tuple[str, ...]] = [(*header, *(f"paper {size}" for size in paper.SIZES), "note")]
    for row in setting.rows:
        theirs = paper.TABLE3.get(row.method, (None,) * len(paper.SIZES))
        cells = (number(row.rank, "d"), str(row.merges or "-"), number(row.parameters, ",d"), _rates(row))
        seeds = str(len(row.scores) or "-")
        lines.append(
            (style.name_of(row.method), *cells, _score(row), seeds, *(number(one, ".2f") for one in theirs), row.note)
        )
    keep = [i for i in range(len(lines[0])) if i + 1 < len(lines[0]) or any(line[i] for line in lines[1:])]
    captions = (
        "Perplexity of held-out text after the last step: mean and standard deviation over seeds, of the rate with the "
        "lowest one. Embeddings, head and norms are trained beside the adapters; everything else is as it was drawn.",
        f"The paper's columns are {paper.DATA} with t5-base's tokens and {paper.TOKENS / 1e9:.2f}B of them"
        + (f" (here {_tokens(setting)})" if setting.positions else "")
        + ": compare the order of the methods, not the numbers.",
        *order.remarks(setting, found),
        *rounding({row.label: row.runs for row in setting.rows}),
    )
    title = "MoRA Table 3: pre-training from scratch" + (f", {setting.name}" if setting.name else "")
    shown = Table(title, tuple(tuple(line[i] for i in keep) for line in lines), captions, data=setting)
    return [shown, *([_fig5(setting)] if any(row.counts for row in setting.rows) else [])]


def _tokens(setting: Setting) -> str:
    """What was read, as in "0.025B of another text, whose tokens are bytes"."""
    text = f"of {paper.DATA}" if setting.data.startswith(paper.DATA_SOURCES) else "of another text"
    text = f"{setting.positions / 1e9:.3f}B {text}" + (
        ", whose tokens are bytes" if setting.scale == order.SMALL else ""
    )
    return f"fewer than {text}, as each row is one document, cut or padded" if setting.padded else text


def _fig5(setting: Setting) -> Table:
    lines: list[tuple[str, ...]] = [("method", *paper.FIG5_KINDS)]
    for row in (row for row in setting.rows if row.counts):
        lines.append((row.label, *(number(row.counts.get(kind), ".1f") for kind in paper.FIG5_KINDS)))
    caption = (
        f"Mean over layers and seeds of the number of singular values above {paper.FIG5_ABOVE} of the final weights "
        "minus the initial ones. The paper prints no numbers."
    )
    return Table("MoRA Fig. 5: singular values of the whole update", tuple(lines), (caption,))


def _score(row: PretrainRow) -> str:
    if row.mean is None:
        return "-"
    return f"{row.mean:.3f}" + ("" if row.deviation is None else f"+-{row.deviation:.3f}")


def _rates(row: PretrainRow) -> str:
    if row.rate is None:
        return "-"
    if len(row.tried) < 2:
        return f"{row.rate:g}"
    tried = ", ".join(f"{rate:g}: {'lost' if one is None else f'{one:.3f}'}" for rate, one in row.tried.items())
    return f"{row.rate:g} ({tried})"


def _curves(rows: Sequence[PretrainRow], title: str, path: Path) -> Path:
    figure, axes = pyplot().subplots(figsize=(6, 3.8))
    for row in rows:
        if row.losses:
            look = {"color": style.METHODS.get(row.method, style.UNKNOWN).colour, "linewidth": 1.2}
            axes.plot(*zip(*row.losses.items(), strict=True), label=row.label, **look)
    dress(axes, title, "optimizer step")
    axes.set_ylabel("training loss")
    axes.set_yscale("log")
    axes.legend(fontsize=8, frameon=False)
    return finish(figure, path)


def _bars(rows: Sequence[PretrainRow], title: str, path: Path) -> Path:
    figure, axes = pyplot().subplots(figsize=(7.5, 3.8))
    shown, kinds = [row for row in rows if row.counts], paper.FIG5_KINDS
    width = 0.8 / len(shown)
    for place, row in enumerate(shown):
        at = [i + width * (place - (len(shown) - 1) / 2) for i in range(len(kinds))]
        colour = style.METHODS.get(row.method, style.UNKNOWN).colour
        axes.bar(at, [row.counts.get(kind, 0.0) for kind in kinds], width, label=row.label, color=colour)
    axes.set_xticks(range(len(kinds)), kinds)
    dress(axes, title, "kind of matrix")
    axes.set_ylabel(f"singular values > {paper.FIG5_ABOVE}")
    axes.legend(fontsize=8, frameon=False)
    return finish(figure, path)
