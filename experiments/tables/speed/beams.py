"""The table of beam search's speed: seconds of decoding for E2E's test inputs, ours and transformers'."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.records.checks import is_finite
from experiments.records.text_table import number
from experiments.tables.speed.lines import is_above_0, is_count, is_text, read
from experiments.tables.speed.settings import place_of, table_per_setting
from experiments.tables.table import Table, no_figures

figures = no_figures
FILE = "speed/beams.jsonl"  # below a folder of results
OURS = "ours"
# What must be equal where two programs are compared.
SETTING = ("base", "dtype", "batch", "beams", "length_penalty", "no_repeat_ngram", "new", "inputs")
# Fields of a record of `experiments.decode --beams`, each with a check of its value.
FIELDS = {
    **dict.fromkeys(("program", "base", "dtype"), is_text),
    **dict.fromkeys(("batch", "beams", "no_repeat_ngram", "new", "inputs"), is_count),
    **dict.fromkeys(("compile_seconds", "length_penalty"), is_finite),
    "seconds": is_above_0,
}
OPTIONAL = {"equal_texts": is_finite, "remark": is_text}


def load(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Reads the records of `experiments.decode --beams`.

    Args:
      places: files of records, and folders that have FILE.

    Raises:
      UserError: there is none, or a line is no such record.
    """
    return read(places, FILE, "experiments.decode --beams --out", FIELDS, OPTIONAL)


def table(results: Sequence[dict[str, Any]], options: Any) -> Table:
    """One row a program: the last of its records, and how much faster ours is at the same setting."""
    del options
    return table_per_setting(results, _caption, _table)


def _table(results: Sequence[dict[str, Any]]) -> Table:
    newest = {(_setting(one), one["program"]): one for one in results}
    shown = sorted(newest.values(), key=_setting)
    lines = [("base", "program", "inputs", "seconds", "ours is faster by", "equal texts", "compiled in")]
    for one in shown:
        own = newest.get((_setting(one), OURS))
        share = one.get("equal_texts")
        lines.append(
            (
                one["base"],
                one["program"],
                str(one["inputs"]),
                number(one["seconds"], ".2f"),
                "-" if own is None or one is own else f"{one['seconds'] / own['seconds']:.1f}x",
                "-" if share is None else f"{share:.1%}",
                f"{number(one['compile_seconds'], '.0f')} s",
            )
        )
    captions = [_caption(shown[0]), *sorted({place_of(one) for one in shown})]
    captions += list(dict.fromkeys(one["remark"] for one in shown if one.get("remark")))
    return Table("Beam search", tuple(lines), tuple(captions))


def _setting(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in SETTING)


def _caption(record: dict[str, Any]) -> str:
    return (
        f"{record['beams']} beams, batches of {record['batch']}, up to {record['new']} new tokens, length penalty "
        f"{record['length_penalty']:g}, no repeated {record['no_repeat_ngram']}-gram, {record['dtype']}."
    )
