"""The speed of training steps: each suite's rows compared with the peer's, and the aims met or missed."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.suites.report import MISSING, load_suites
from experiments.bench.suites.rows import COLD, OURS, PEER, WARM
from experiments.records.text_table import number
from experiments.tables.table import Table, no_figures
from lowrank_jax.core.errors import UserError

figures = no_figures
UNITS = {"start": " s", "second": " s", "memory": " GiB", "speed": " tok/s", "time": " ms"}  # of what is no ratio
DIGITS = {" tok/s": ",.0f", " ms": ".1f"}
# Raised where a record lacks a value or has one of another type than a suite writes.
MISSHAPEN = (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, ZeroDivisionError)


def load(places: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The records of suites; see `report.load_suites`.

    Raises:
      UserError: as there, or a record that cannot be shown.
    """
    found = load_suites(places)
    for data in found:
        check_shown(data, f"--results: a record of the suite {str(data['suite'])[:60]!r}")
    return found


def check_shown(data: Mapping[str, Any], where: str) -> None:
    """Refuses a record that the table cannot show, by trying to show it.

    Raises:
      UserError: names the first value that is missing or of the wrong type.
    """
    try:
        shown(data).text()
    except MISSHAPEN as error:
        raise UserError(f"{where} is damaged ({type(error).__name__}: {error}); name another --results") from error


def table(results: Sequence[Mapping[str, Any]], options: Any) -> Table:
    """The suites' tables, one below the other."""
    first, *others = map(shown, results)
    return dataclasses.replace(first, parts=tuple(others))


def shown(data: Mapping[str, Any]) -> Table:
    """The table of a result file, from the file alone; only rows whose side "ours" was measured.

    Args:
      data: as `suite.Record` writes it.
    """
    rows = [row for row in data["rows"] if any(s.get("error") != MISSING for n, s in row["sides"].items() if n != PEER)]
    header = ["work", data["peer"], "ours", "ratio", "memory, GiB", "FLOP ratio"]
    captions = tuple(_captions(data, len(data["rows"]) - len(rows)))
    return Table(lines=(header, *map(_cells, rows)), captions=captions, data=data)


def _cells(row: Mapping[str, Any]) -> list[str]:
    sides = row["sides"]
    if COLD in sides:
        starts = [_start(side, sides[side]) for side in (COLD, WARM)]
        return [row["work"], "-", ", ".join(starts), _claims(row), "-", "-"]
    memory = [number(sides.get(side, {}).get("peak_gib"), ".2f") for side in (PEER, OURS)]
    memory = memory[1] if PEER not in sides else f"{memory[1]} (peer {memory[0]})"
    published = f"{row['published']}; another card" if "published" in row else "-"
    return [
        row["work"],
        _step(sides[PEER]) if PEER in sides else published,
        _step(sides[OURS]),
        _claims(row),
        memory,
        number(row["flops_ratio"], ".2f"),
    ]


def _step(side: Mapping[str, Any]) -> str:
    if "error" in side:
        return _missing(side)
    mfu = f", MFU {side['mfu']:.2f}" if "mfu" in side else ""  # older records have none
    return f"{side['ms']:.1f} ms, {side['tokens_per_second']:,.0f} tok/s{mfu}"


def _start(name: str, side: Mapping[str, Any]) -> str:
    return f"{name} {_missing(side)}" if "error" in side else f"{name} {side['start_seconds']:.1f} s"


def _missing(side: Mapping[str, Any]) -> str:
    return "-" if side["error"] == MISSING else "not available"


def _claims(row: Mapping[str, Any]) -> str:
    return "; ".join(_claim_text(claim) for claim in row["claims"] if claim["value"] is not None) or "-"


def _claim_text(claim: Mapping[str, Any]) -> str:
    what, value, to = claim["what"], claim["value"], claim.get("to")
    unit = "x" if to or what == "warm" else UNITS.get(what, "")
    text = f"{what} {value:{DIGITS.get(unit, '.2f')}}{unit}" if what != "loss" else f"{what} {value:.4f}"
    if to and to != PEER:
        text += f" of {claim['times']} {to}" if "times" in claim else f" of {to}"
    if claim["met"] is None:
        return text
    aim = f">= {claim['least']:,g}" if "least" in claim else f"<= {claim['most']:,g}"
    return f"{text} ({aim}: {'met' if claim['met'] else 'missed'})"


def _captions(data: Mapping[str, Any], left_out: int) -> list[str]:
    sides = [side for row in data["rows"] for side in row["sides"].values() if "repeats" in side]
    repeats = [side["repeats"] for side in sides]
    lines = []
    if repeats:
        span = f"{min(repeats)}" if min(repeats) == max(repeats) else f"{min(repeats)} to {max(repeats)}"
        counted = "One process a cell" if span == "1" else f"Medians of {span} processes a cell, rows and peer in turn"
        timed = "; some of them timed their steps several times" if any("timings" in side for side in sides) else ""
        lines.append(f"{counted}{timed}; memory is the most in use.")
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
    """Hardware, versions and commit in one line; a peer has only versions."""
    words = []
    if hardware := place.get("hardware"):
        devices = [f"{n} x {kind}" if n > 1 else kind for kind, n in hardware["devices"].items()]
        words.append(f"{', '.join(devices)} ({hardware['cpu']}, {hardware['cores']} cores)")
    words.append(", ".join(f"{name} {version}" for name, version in place["versions"].items() if version))
    if git := place.get("git"):
        words.append(f"commit {(git['commit'] or 'unknown')[:12]}{' with changes' if git['dirty'] else ''}")
    return "; ".join(words) + "."
