"""The medians, ratios and claims of a speed suite's measurements."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.suites.rows import COLD, OURS, PEER, WARM, Row
from experiments.records import run_folder
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of

# Name here -> names in the records of our benchmark and of a peer's script.
FIELDS = {
    "ms": ("ms",),
    "tokens_per_second": ("tokens_per_second", "tokens_s"),
    "peak_gib": ("peak_gib",),
    "flops_per_token": ("flops_per_token",),
    "mfu": ("mfu",),
    "compile_seconds": ("compile_seconds", "warmup_s"),
}
RATIOS = {"speed": "tokens_per_second", "time": "ms", "memory": "peak_gib"}
MISSING = "not measured"


def load_suites(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The records of suites among files and below folders, by path.

    Raises:
      UserError: there is no such file or folder, or no record in it.
    """
    found = []
    for place in map(Path, places):
        if kind_of(place) is None:
            raise UserError(f"--results: there is no {str(place)!r}")
        for path in sorted(place.rglob("*_suite.json")) if place.is_dir() else (place,):
            data = run_folder.read_json(path, remedy="name another --results")
            if isinstance(data, dict) and {"suite", "rows"} <= data.keys():
                found.append(data)
    if not found:
        raise UserError("--results has no record of a suite; make one: python -m experiments.bench --suite=cpu")
    return found


def summarise(rows: Sequence[Row], measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each row: medians of every side, the value of each claim, and why a side is missing.

    Args:
      rows: of a suite, all of them.
      measurements: {"command", "side", "repeat", "record" or "error"} each.

    Returns:
      [{"name", "work", "sides": {side: medians or {"error"}}, "claims", "flops_ratio"}]; a claim is {"what", "to",
      "value", "least" or "most", "met"}, its value None where a side is missing.
    """
    found = {(m["command"], m["side"]): [] for m in measurements}
    for one in measurements:
        found[one["command"], one["side"]].append(one)
    sides = {row.name: {s: _medians(found.get((c, s), ())) for s, c in row.commands.items()} for row in rows}
    return [
        {
            "name": row.name,
            "work": row.work,
            "sides": sides[row.name],
            "claims": [_claim(claim, sides[row.name], sides) for claim in row.claims],
            "flops_ratio": _flops_ratio(row, sides),
        }
        for row in rows
    ]


def _medians(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [m for m in group if "record" in m]
    if not done:
        return {"error": group[-1]["error"] if group else MISSING}
    values = {"repeats": len(done)}
    for name, keys in FIELDS.items():
        given = [m["record"][key] for m in done for key in keys if m["record"].get(key) is not None]
        if given:
            values[name] = statistics.median(given)
    if losses := [m["record"]["losses"][0] for m in done if "losses" in m["record"]]:
        values["loss"] = statistics.median(losses)
    if starts := [m["start_seconds"] for m in done if "start_seconds" in m]:
        values["start_seconds"] = statistics.median(starts)
    return values


def _claim(claim: Mapping[str, Any], own: Mapping[str, dict], sides: Mapping[str, Mapping[str, dict]]) -> dict:
    value = _value(claim, own, sides)
    met = None
    if value is not None and ("least" in claim or "most" in claim):
        met = claim.get("least", value) <= value <= claim.get("most", value)
    return {**claim, "value": None if value is None else round(value, 4), "met": met}


def _value(claim: Mapping[str, Any], own: Mapping[str, dict], sides: Mapping[str, Mapping[str, dict]]) -> float | None:
    what, to = claim["what"], claim.get("to")
    if what == "start":
        return own[COLD].get("start_seconds")
    if what == "warm":
        cold, warm = (own[side].get("start_seconds") for side in (COLD, WARM))
        return None if cold is None or warm is None else cold / warm
    other = own.get(PEER, {}) if to == PEER else sides[to][OURS] if to else None
    name = "loss" if what == "loss" else RATIOS[what]
    mine, theirs = own[OURS].get(name), 1.0 if other is None else other.get(name)
    if mine is None or theirs is None:
        return None
    return abs(mine - theirs) if what == "loss" else mine / (theirs * claim.get("times", 1))


def _flops_ratio(row: Row, sides: Mapping[str, Mapping[str, dict]]) -> float | None:
    """The row's FLOPs a token over those of the row with which its time is compared."""
    for claim in row.claims:
        if claim["what"] == "time" and claim["to"] != PEER:
            mine, theirs = (sides[name][OURS].get("flops_per_token") for name in (row.name, claim["to"]))
            return None if mine is None or theirs is None else round(mine / theirs, 4)
    return None
