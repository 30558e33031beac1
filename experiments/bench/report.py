"""The medians, ratios and table of a speed suite's measurements."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.rows import COLD, OURS, PEER, WARM, Row
from experiments.records import run_folder
from experiments.records.text_table import lay_out, number
from lowrank_jax.core.errors import UserError

# Name here -> names in the records of our bench and of a peer's script.
FIELDS = {
    "ms": ("ms",),
    "tokens_per_second": ("tokens_per_second", "tokens_s"),
    "peak_gib": ("peak_gib",),
    "flops_per_token": ("flops_per_token",),
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
        if not place.exists():
            raise UserError(f"--results: there is no {str(place)!r}")
        for path in sorted(place.rglob("*_suite.json")) if place.is_dir() else (place,):
            data = run_folder.read_json(path, remedy="name another --results")
            if isinstance(data, dict) and {"suite", "rows"} <= data.keys():
                found.append(data)
    if not found:
        raise UserError("--results holds no record of a suite; make one: python -m experiments.bench --suite=cpu")
    return found


def summarise(rows: Sequence[Row], measurements: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each row: medians of every side, what each claim comes to, and why a side is missing.

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
        return None if None in (cold, warm) else cold / warm
    other = own.get(PEER, {}) if to == PEER else sides[to][OURS] if to else None
    name = "loss" if what == "loss" else RATIOS[what]
    mine, theirs = own[OURS].get(name), 1.0 if other is None else other.get(name)
    if None in (mine, theirs):
        return None
    return abs(mine - theirs) if what == "loss" else mine / (theirs * claim.get("times", 1))


def _flops_ratio(row: Row, sides: Mapping[str, Mapping[str, dict]]) -> float | None:
    """The row's FLOPs a token over those of the row that it is compared with in time."""
    for claim in row.claims:
        if claim["what"] == "time" and claim["to"] != PEER:
            mine, theirs = (sides[name][OURS].get("flops_per_token") for name in (row.name, claim["to"]))
            return None if None in (mine, theirs) else round(mine / theirs, 4)
    return None


def render(data: Mapping[str, Any], form: str = "text") -> str:
    """The table of a result file, as aligned text or Markdown, from the file alone; rows of which ours was measured.

    Args:
      data: as `suite.Record` writes it.
      form: "text" or "markdown".
    """
    rows = [row for row in data["rows"] if any(s.get("error") != MISSING for n, s in row["sides"].items() if n != PEER)]
    header = ["work", data["peer"], "ours", "ratio", "memory, GiB", "FLOP ratio"]
    lines = [header, *map(_cells, rows)]
    return "\n".join([lay_out(lines, form), "", *_captions(data, len(data["rows"]) - len(rows))])


def _cells(row: Mapping[str, Any]) -> list[str]:
    sides = row["sides"]
    if COLD in sides:
        starts = [_start(side, sides[side]) for side in (COLD, WARM)]
        return [row["work"], "-", ", ".join(starts), _claims(row), "-", "-"]
    memory = [number(sides.get(side, {}).get("peak_gib"), ".2f") for side in (PEER, OURS)]
    memory = memory[1] if PEER not in sides else f"{memory[1]} (peer {memory[0]})"
    return [
        row["work"],
        _step(sides[PEER]) if PEER in sides else "-",
        _step(sides[OURS]),
        _claims(row),
        memory,
        number(row["flops_ratio"], ".2f"),
    ]


def _step(side: Mapping[str, Any]) -> str:
    if "error" in side:
        return _missing(side)
    return f"{side['ms']:.1f} ms, {side['tokens_per_second']:,.0f} tok/s"


def _start(name: str, side: Mapping[str, Any]) -> str:
    return f"{name} {_missing(side)}" if "error" in side else f"{name} {side['start_seconds']:.1f} s"


def _missing(side: Mapping[str, Any]) -> str:
    return "-" if side["error"] == MISSING else "not available"


def _claims(row: Mapping[str, Any]) -> str:
    return "; ".join(_claim_text(claim) for claim in row["claims"] if claim["value"] is not None) or "-"


def _claim_text(claim: Mapping[str, Any]) -> str:
    what, value, to = claim["what"], claim["value"], claim.get("to")
    unit = {"start": " s", "loss": ""}.get(what, "x" if to or what == "warm" else " GiB")
    text = f"{what} {value:.4f}" if what == "loss" else f"{what} {value:.2f}{unit}"
    if to and to != PEER:
        text += f" of {claim['times']} {to}" if "times" in claim else f" of {to}"
    if claim["met"] is None:
        return text
    aim = f">= {claim['least']:g}" if "least" in claim else f"<= {claim['most']:g}"
    return f"{text} ({aim}: {'met' if claim['met'] else 'missed'})"


def _captions(data: Mapping[str, Any], left_out: int) -> list[str]:
    repeats = [side["repeats"] for row in data["rows"] for side in row["sides"].values() if "repeats" in side]
    lines = []
    if repeats:
        span = f"{min(repeats)}" if min(repeats) == max(repeats) else f"{min(repeats)} to {max(repeats)}"
        lines.append(f"Medians of {span} processes a cell, rows and peer in turn; memory is the most in use.")
    lines += map(_place, data["places"])
    if sum("git" in place for place in data["places"]) > 1:
        lines.append("These are of more than one commit or machine; the file says which is of which.")
    if data["peer_note"]:
        lines.append(f"Without the peer: {data['peer_note']}.")
    errors = {}
    for row in data["rows"]:
        for name, side in row["sides"].items():
            if side.get("error", MISSING) != MISSING:
                errors.setdefault(f"{row['name']} ({name})", side["error"])
    lines += [f"Not available: {name}: {error}" for name, error in errors.items()]
    if left_out:
        lines.append(f"{left_out} rows of the suite were not measured.")
    return lines


def _place(place: Mapping[str, Any]) -> str:
    """Hardware, versions and commit in one line; a peer has versions alone."""
    words = []
    if hardware := place.get("hardware"):
        devices = [f"{n} x {kind}" if n > 1 else kind for kind, n in hardware["devices"].items()]
        words.append(f"{', '.join(devices)} ({hardware['cpu']}, {hardware['cores']} cores)")
    words.append(", ".join(f"{name} {version}" for name, version in place["versions"].items() if version))
    if git := place.get("git"):
        words.append(f"commit {(git['commit'] or 'unknown')[:12]}{' with changes' if git['dirty'] else ''}")
    return "; ".join(words) + "."
