"""The table `codes`: gradients and losses with a quantised base beside those with the unquantised one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records.checks import is_finite
from experiments.tables.speed.lines import is_above_0, is_count, is_text, read
from experiments.tables.speed.settings import devices_of
from experiments.tables.table import Table, no_figures

figures = no_figures
WHENS = ("start", "end")
COSINES = tuple(f"{when}_{name}" for when in WHENS for name in ("cosine", "row"))
FIELDS = {
    **dict.fromkeys(("base", "method", "codes"), is_text),
    **dict.fromkeys((*(name for name in COSINES if name.endswith("cosine")), "loss_weights"), is_finite),
    "loss_codes": is_above_0,
    **dict.fromkeys(("seed", "rank", "steps"), is_count),
    "batch": lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_count, value)),
}
OPTIONAL = dict.fromkeys((name for name in COSINES if name.endswith("row")), is_finite)  # of losses a token
HEADER = ("adapter", "codes", "cosine at the start", "of a row", "cosine after the steps", "of a row", "loss", "seeds")


def load(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The records at the places.

    Raises:
      UserError: as `lines.read`.
    """
    return read(places, "speed/codes.jsonl", "experiments.gradients --record", FIELDS, OPTIONAL)


def table(results: Sequence[dict[str, Any]], options: Any) -> Table:
    """A row for each adapter and way to round, with the worst of its seeds; of records of the same run the last."""
    del options
    newest = {(_adapter(one), one["codes"], one["seed"], _work(one)): one for one in results}
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for (adapter, codes, *_), one in newest.items():
        rows.setdefault((adapter, codes), []).append(one)
    lines: list[tuple[str, ...]] = [HEADER]
    for names, found in rows.items():
        cosines = (_lowest([one.get(name) for one in found]) for name in COSINES)
        changes = [one["loss_codes"] / one["loss_weights"] - 1 if one["loss_weights"] else 0.0 for one in found]
        lines.append((*names, *cosines, format(max(changes, key=abs), "+.2%"), str(len(found))))
    captions = sorted({_work(one) for one in results})
    captions.append(
        "Cosine: between all adapters' gradients with the quantised base and with the unquantised one, of a batch; "
        "of a row: of each of its rows alone, the median; the lowest of the seeds. Loss: how much higher the mean of "
        "the last ten steps is; of the seeds the furthest from 0."
    )
    return Table("Training with a quantised base", tuple(lines), tuple(captions))


def _lowest(values: Sequence[float | None]) -> str:
    return "-" if None in values else format(min(value for value in values if value is not None), ".4f")


def _adapter(one: dict[str, Any]) -> str:
    return f"{one['method']} r={one['rank']}"


def _work(one: dict[str, Any]) -> str:
    rows, length = one["batch"]
    work = f"{one['base']}, {one['steps']} steps of {rows} x {length} tokens"
    return f"{work}; {devices_of(one)}, jax {one['versions']['jax']}."
