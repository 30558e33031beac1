"""The table of decoding speed: milliseconds a token for each way of reading the weights, and for transformers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records.checks import is_finite
from experiments.records.text_table import number
from experiments.tables.speed.lines import is_above_0, is_count, is_text, read
from experiments.tables.speed.settings import place_of, table_per_setting
from experiments.tables.table import Table, no_figures

figures = no_figures
FILE = "speed/decoding.jsonl"  # below a folder of results
# Fields of a record of `experiments.decode`, each with a check of its value.
FIELDS = {
    **dict.fromkeys(("shape", "weights"), is_text),
    **dict.fromkeys(("batch", "prompt", "new", "rank"), is_count),
    **dict.fromkeys(("first_ms", "compile_seconds"), is_finite),
    "ms": is_above_0,
}
OPTIONAL = {"bandwidth": is_finite}


def load(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Reads the records of `experiments.decode`.

    Args:
      places: files of records, and folders that have FILE.

    Raises:
      UserError: there is none, or a line is no such record.
    """
    return read(places, FILE, "experiments.decode --out", FIELDS, OPTIONAL)


def table(results: Sequence[dict[str, Any]], options: Any) -> Table:
    """One row a record, by shape and batch."""
    del options
    return table_per_setting(results, _caption, _table)


def _table(results: Sequence[dict[str, Any]]) -> Table:
    lines = [
        ("shape", "rows", "weights", "ms a token", "first token, ms", "tokens/s", "of the bandwidth", "compiled in")
    ]
    for one in sorted(results, key=lambda one: (one["shape"], one["batch"])):
        share = one.get("bandwidth")
        lines.append(
            (
                one["shape"],
                str(one["batch"]),
                one["weights"],
                number(one["ms"], ".2f"),
                number(one["first_ms"], ".1f"),
                f"{one['batch'] / one['ms'] * 1e3:,.0f}",
                "-" if share is None else f"{share:.0%}",
                f"{number(one['compile_seconds'], '.0f')} s",
            )
        )
    captions = [_caption(results[0]), *sorted({place_of(one) for one in results})]
    captions.append("Bandwidth: bytes of the weights by a step's time, as a share of what the data sheet says.")
    return Table("Decoding", tuple(lines), tuple(captions))


def _caption(one: dict[str, Any]) -> str:
    return f"Prompts of {one['prompt']} tokens, {one['new']} new ones, LoRA r={one['rank']}, greedy."
