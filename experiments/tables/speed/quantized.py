"""The loss with a base of 4 or 8 bits: recorded runs compared with the one that differs only in base.quantize."""

import statistics
from collections.abc import Sequence
from typing import Any

from experiments.config.plain import BOOKKEEPING, config_hash
from experiments.records.text_table import number
from experiments.tables.table import Table, no_figures
from lowrank_jax.core.errors import UserError

KIND, NONE = "base.quantize", "none"  # ops.quantized.NONE, whose module imports jax
AIMS = {"int8": 0.01, "nf4": 0.03}  # largest rise of the loss with a quantised base
LAST = 10  # recorded training losses that are averaged


figures = no_figures


def table(results: Sequence[dict], options: Any) -> Table:
    """Every quantised run with the equal run without quantisation."""
    return shown(compared(results))


def compared(results: Sequence[dict]) -> list[dict[str, Any]]:
    """One row a run, for bases that have quantised and unquantised runs, the unquantised first.

    Args:
      results: records of finished runs.

    Returns:
      [{"base", "kind", "steps", "train", "held_out", "more"}]: the mean of the last recorded training losses, the
      last held-out loss (nats a token), and how much more than the unquantised run's it is (0.01: 1%).

    Raises:
      UserError: no quantised record has an equal one without quantisation.
    """
    groups: dict[str, dict[str, dict]] = {}
    for result in results:
        if result.get("status") == "finished" and _held_out(result) is not None and result.get("losses"):
            key = config_hash(result["config"], (*BOOKKEEPING, "name", KIND))
            groups.setdefault(key, {})[_base(result).get("quantize", NONE)] = result
    pairs = [group for group in groups.values() if NONE in group and len(group) > 1]
    if not pairs:
        raise UserError("--results has no run with base.quantize and the same run without")
    return [_row(group[kind], group[NONE]) for group in pairs for kind in (NONE, *sorted(set(group) - {NONE}))]


def _held_out(result: dict) -> float | None:
    return next((one["loss"] for one in reversed(result.get("evaluations") or []) if "loss" in one), None)


def _base(result: dict) -> dict[str, Any]:
    return result["config"].get("base") or {}


def _row(result: dict, plain: dict) -> dict[str, Any]:
    ours, theirs = _held_out(result), _held_out(plain)
    assert ours is not None  # only records that have one are paired
    assert theirs is not None
    losses = [loss for _, loss in result["losses"][-LAST:] if loss is not None]
    return {
        "base": (result.get("base") or _base(result)).get("name", "?"),
        "kind": _base(result).get("quantize", NONE),
        "steps": result["losses"][-1][0],
        "train": statistics.fmean(losses) if losses else None,
        "held_out": ours,
        "more": None if result is plain or not theirs else ours / theirs - 1,
    }


def shown(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as lines."""
    header = ["base", "layers' kernels", "steps", "training loss", "held-out loss", "more than unquantised", "aim"]
    caption = f"Training loss: mean of the last {LAST} that were recorded; losses in nats a token."
    return Table(lines=(header, *map(_line, rows)), captions=(caption,), data=rows)


def _line(row: dict[str, Any]) -> list[str]:
    aim, more = AIMS.get(row["kind"]), row["more"]
    return [
        row["base"],
        row["kind"] if row["kind"] != NONE else "as they are",
        f"{row['steps']}",
        number(row["train"], ".4f"),
        f"{row['held_out']:.4f}",
        number(more, "+.2%"),
        "-" if aim is None or more is None else f"<= {aim:.0%}: {'met' if more <= aim else 'missed'}",
    ]
