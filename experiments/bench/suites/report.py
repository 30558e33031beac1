"""The medians, ratios and claims of a speed suite's measurements."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.suites.rows import COLD, OURS, PEER, WARM, Row, Side
from experiments.records import json_files
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
STARTS = {"start": COLD, "second": WARM}  # a claim in seconds -> its side
MISSING = "not measured"
MOST_TIMINGS = 1_000  # of a process; a record with more is damaged


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
            data = json_files.read_json(path, remedy="name another --results")
            if isinstance(data, dict) and {"suite", "rows"} <= data.keys():
                found.append(data)
    if not found:
        raise UserError("--results has no record of a suite; make one: python -m experiments.bench --suite=cpu")
    return found


def summarise(rows: Sequence[Row], measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each row: medians of every side, the value of each claim, and why a side is missing.

    A ratio is of two sides that one call has measured; of several such calls it is the median.

    Args:
      rows: of a suite, all of them.
      measurements: {"command", "side", "repeat", "call", "record" or "error"} each.

    Returns:
      [{"name", "work", "sides": {side: medians or {"error"}}, "claims", "flops_ratio"}], "published" where a row has
      it; a claim is {"what", "to", "value", "least" or "most", "met"}, its value None where no call has both sides.
    """
    found: dict[Side, list[Mapping[str, Any]]] = {}
    for one in measurements:
        found.setdefault((one["command"], one["side"]), []).append(one)
    named = {row.name: row for row in rows}
    entries = []
    for row in rows:
        entry = {
            "name": row.name,
            "work": row.work,
            "sides": {side: _medians(found.get(row.side(side), ())) for side in row.commands},
            "claims": [_claim(claim, row, named, found) for claim in row.claims],
            "flops_ratio": _flops_ratio(row, named, found),
        }
        entries.append(entry | ({"published": row.published} if row.published else {}))
    return entries


def _medians(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [m for m in group if "record" in m]
    if not done:
        return {"error": group[-1]["error"] if group else MISSING}
    values: dict[str, Any] = {"repeats": len(done)}
    if (timings := sum(_timings(m) for m in done)) > len(done):
        values["timings"] = timings
    for name, keys in FIELDS.items():
        if given := [value for m in done for key in keys for value in _each(m, key)]:
            values[name] = statistics.median(given)
    if losses := [m["record"]["losses"][0] for m in done if "losses" in m["record"]]:
        values["loss"] = statistics.median(losses)
    if starts := [m["start_seconds"] for m in done if "start_seconds" in m]:
        values["start_seconds"] = statistics.median(starts)
    return values


def _timings(measurement: Mapping[str, Any]) -> int:
    """How often a process timed its steps.

    Raises:
      ValueError: no such number.
    """
    count = len(measurement["record"].get("timings_ms", ())) or measurement.get("timings", 1)
    if count not in range(1, MOST_TIMINGS + 1):
        raise ValueError(f"timings={count}")
    return count


def _each(measurement: Mapping[str, Any], key: str) -> list[float]:
    """The value of each of a process's timings; one that it gives once, as often as it timed its steps."""
    record = measurement["record"]
    if record.get(key) is None:
        return []
    if "timings_ms" in record and key == "ms":
        return record["timings_ms"]
    if "timings_ms" in record and key == "tokens_per_second":
        return [record[key] * record["ms"] / ms for ms in record["timings_ms"]]
    return [record[key]] * _timings(measurement)


def _claim(claim: Mapping[str, Any], row: Row, named: Mapping[str, Row], found: Mapping[Side, list]) -> dict:
    value = _value(claim, row, named, found)
    met = None
    if value is not None and ("least" in claim or "most" in claim):
        met = claim.get("least", value) <= value <= claim.get("most", value)
    return {**claim, "value": None if value is None else round(value, 4), "met": met}


def _value(claim: Mapping[str, Any], row: Row, named: Mapping[str, Row], found: Mapping[Side, list]) -> float | None:
    what, to = claim["what"], claim.get("to")
    if what in STARTS:
        return _medians(found.get(row.side(STARTS[what]), ())).get("start_seconds")
    if what == "warm":
        cold, warm, name = row.side(COLD), row.side(WARM), "start_seconds"
        return _compared(found.get(cold, ()), found.get(warm, ()), name, lambda mine, theirs: mine / theirs)
    name = "loss" if what == "loss" else RATIOS[what]
    mine = found.get(row.side(OURS), ())
    if not to:
        return _medians(mine).get(name)
    theirs = found.get(row.side(PEER) if to == PEER else named[to].side(OURS), ())
    if what == "loss":
        return _compared(mine, theirs, name, lambda mine, theirs: abs(mine - theirs))
    times = claim.get("times", 1)
    return _compared(mine, theirs, name, lambda mine, theirs: mine / (theirs * times))


def _compared(
    mine: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    name: str,
    compare: Callable[[float, float], float],
) -> float | None:
    """The comparison of two sides' medians within a call; of several calls the median, a call for each of its timings.

    Returns:
      None where no call has measured both.
    """
    values: list[float] = []
    calls = [{one.get("call") for one in side if "record" in one} for side in (mine, theirs)]
    for call in calls[0] & calls[1]:
        own, other = ([one for one in side if one.get("call") == call] for side in (mine, theirs))
        one, two = (_medians(side).get(name) for side in (own, other))
        if one is not None and two is not None:
            values += [compare(one, two)] * sum(_timings(measured) for measured in own if "record" in measured)
    return statistics.median(values) if values else None


def _flops_ratio(row: Row, named: Mapping[str, Row], found: Mapping[Side, list]) -> float | None:
    """The row's FLOPs a token over those of the row with which its time is compared."""
    for claim in row.claims:
        if claim["what"] == "time" and claim["to"] != PEER:
            sides = (found.get(one.side(OURS), ()) for one in (row, named[claim["to"]]))
            mine, theirs = (_medians(side).get("flops_per_token") for side in sides)
            return None if mine is None or theirs is None else round(mine / theirs, 4)
    return None
