"""Milliseconds and launches of a traced GPU step, by kind of kernel."""

import collections
import math
import re
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError

STEPS = 3  # traced by experiments.bench
LONGEST_NAME = 80


def find(place: str | None) -> Path:
    """The newest .xplane.pb at or below a place.

    Raises:
      UserError: there is none.
    """
    path = Path(place or "")
    found = [path] if path.suffix == ".pb" and path.is_file() else sorted(path.rglob("*.xplane.pb")) if place else []
    if not found:
        raise UserError(f"--profile: no .xplane.pb at {str(place)!r}; make one with experiments.bench --trace=FOLDER")
    return max(found, key=lambda one: one.stat().st_mtime)


def summarise(data: Any, top: int) -> dict[str, Any]:
    """Times of the first GPU's streams: kernels whose names differ only in numbers are one kind.

    Args:
      data: jax.profiler.ProfileData of STEPS steps.
      top: number of kinds in the list.

    Raises:
      UserError: a trace without a GPU.
    """
    plane = next((one for one in data.planes if "GPU" in one.name), None)
    events = [event for line in plane.lines if "Stream" in line.name for event in line.events] if plane else []
    if not events:
        raise UserError("--profile: the trace has no kernels of a GPU")
    kinds: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for event in events:
        kind = kinds[re.sub(r"[._]?\d+", "#", event.name)[:LONGEST_NAME]]
        kind[0] += event.duration_ns / 1e6
        kind[1] += 1
    span = max(event.end_ns for event in events) - min(event.start_ns for event in events)
    ranked = sorted(kinds.items(), key=lambda item: -item[1][0])[:top]
    return {
        "span_ms": round(span / 1e6 / STEPS, 3),
        "busy_ms": round(math.fsum(ms for ms, _ in kinds.values()) / STEPS, 3),
        "launches": round(len(events) / STEPS),
        "kernels": [[kind, round(ms / STEPS, 3), round(count / STEPS, 1)] for kind, (ms, count) in ranked],
    }
