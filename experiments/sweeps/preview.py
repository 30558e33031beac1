"""What a sweep would do (--preview): its cells, what each trains and needs, how long it takes, and its state."""

import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.arguments import spoken
from experiments.config.labels import methods_apart
from experiments.records import data_record, json_files, leases, run_folder
from experiments.records.text_table import clock, format_table
from experiments.sweeps.best import NotNeeded
from experiments.sweeps.compatible import group_key, shapes_key
from experiments.sweeps.counted import FILE, PROGRESS
from experiments.sweeps.engine import Sweep
from experiments.sweeps.grid import Cell
from experiments.sweeps.joined import programs
from lowrank_jax.core.errors import UserError

ROOM_PROGRAM = (sys.executable, "-m", "experiments.room")
GIB = 2**30
UNKNOWN = "unknown"
NOT_NEEDED = "not needed"  # how the words of NotNeeded begin
AUTO = "auto"
NAMING = ("path", "task")  # keys of a task's config that say which data it has


def parse_together(text: str) -> int:
    """The number of --together; 1 for auto.

    Raises:
      UserError: it is neither.
    """
    if text == AUTO:
        return 1
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UserError(f"--together={text[:60]!r}: write a whole number above 0, or {AUTO}")
    return int(text)


def tell(line: str) -> None:
    """Prints a line about the progress to stderr: stdout has the table."""
    print(line, file=sys.stderr, flush=True)


def room(
    cells: Sequence[tuple[str, dict]],
    fits: bool = False,
    known: Path | None = None,
    say: Callable[[str], None] = tell,
    joined: Mapping[str, Sequence[dict]] = {},
) -> dict[str, Any]:
    """The answer of `experiments.room` on (name, plain config) pairs, from a process that then frees the device.

    Args:
      cells: that are asked about.
      fits: asks how many trials of one program fit, not what each cell needs.
      known: file of what was counted before; new programs are added.
      say: called with each line about the progress.
      joined: of a cell that is asked about, the plain configs of the others in its program.

    Raises:
      UserError: with the program's own line.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "cells.json"), Path(folder, "answer.json")
        asked = [{"name": name, "config": plain, "joined": [*joined.get(name, ())]} for name, plain in cells]
        json_files.write_json(file, asked)
        # Another program may have most of the device's memory: nothing is loaded here.
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        words = [
            *ROOM_PROGRAM,
            f"--cells={file}",
            *(["--fits"] if fits else []),
            *([f"--known={known}"] if known else []),
        ]
        said = [""]
        with out.open("w") as answer, _started(words, environment, answer) as process:
            for line in process.stderr or ():
                if line.startswith(PROGRESS):
                    say(line.rstrip())
                elif line.strip():
                    said = [*said[-20:], line.strip()]
            status = process.wait()
        if status:
            why = (said[-1] or f"exit status {status}").removeprefix("error: ")
            raise UserError(f"what the cells need cannot be counted: {why}")
        return json.loads(out.read_text().strip().splitlines()[-1])


@contextlib.contextmanager
def _started(words: Sequence[str], environment: Mapping[str, str], out: Any) -> Iterator[subprocess.Popen]:
    """A running program whose stderr can be read; it is killed where the block raises."""
    with subprocess.Popen(words, env=environment, stdout=out, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def trials_that_fit(say: Callable[[str], None]) -> Callable[[Sequence[tuple[str, dict]]], int]:
    """How many of some cells fit in one program (--together=auto): asked once for each program, and told."""
    known: dict[tuple, int] = {}

    def count(cells: Sequence[tuple[str, dict]]) -> int:
        key = (group_key(cells[0][1]), max(_rank(plain) for _, plain in cells))
        if key not in known:
            say(f"--together=auto: counting how many cells like {cells[0][0]} fit in one program; it is compiled twice")
            found = room(cells, fits=True)
            gib = {name: f"{found[name] / GIB:.2f} GiB" for name in ("one", "more", "limit")}
            say(
                f"--together=auto: the first trial needs {gib['one']} a device, each further one {gib['more']}, of "
                f"{gib['limit']}: {found['fits']:,} fit in one program"
            )
            known[key] = found["fits"]
        return known[key]

    return count


def preview(sweep: Sweep, cells: Sequence[Cell], ask: Callable[..., dict] | None = None) -> str:
    """The cells as a table, and a line with counts and the time that is left.

    Args:
      sweep: over them; it runs nothing.
      ask: what cells need; by default `room`, with what earlier previews of the folder have counted.
    """
    plains = {cell.name: sweep.grid.stand_in(cell) for cell in cells}
    shapes = {cell.name: shapes_key(plains[cell.name]) for cell in cells}
    shared = {name: names for names in programs(cells, plains, sweep.together, sweep.room) for name in names}
    asked: dict[tuple[str, ...], list[str]] = {}  # shapes of a program's cells -> the cells of the first such program
    for names in shared.values():
        asked.setdefault(tuple(shapes[name] for name in names), names)
    tell(
        f"counting what {len(cells)} cells need: each of their {len(asked)} programs is compiled, unless {FILE} "
        f"has it; nothing is run"
    )
    ask = ask or functools.partial(room, known=sweep.workdir / FILE)
    needs = ask(
        [(first, plains[first]) for first, *_ in asked.values()],
        joined={first: [plains[name] for name in rest] for first, *rest in asked.values()},
    )
    found: dict[str, tuple[str, dict | None]] = {}  # trials come before those that wait for them
    for cell in cells:
        found[cell.name] = _look(sweep, cell, found)
    seconds: dict[str, list[float]] = {}
    for cell in cells:
        result = found[cell.name][1]
        if result and result.get("wall_seconds"):
            share = result["wall_seconds"] / result.get("together", 1)  # a program's time, of all its trials
            seconds.setdefault(shapes[cell.name], []).append(share / cell.steps)
    lines, left, unknown, states = [], 0.0, 0, {}
    data = data_apart([plains[cell.name] for cell in cells])
    lines.append(["cell", "method", "rank", *(["data"] if any(data) else []), "trainable", "memory", "time", "state"])
    methods = methods_apart([plains[cell.name].get("labels") or {} for cell in cells])
    for cell, method, of in zip(cells, methods, data, strict=True):
        names, (state, result) = shared[cell.name], found[cell.name]
        need = needs[asked[tuple(shapes[name] for name in names)][0]]
        trained = [need["trainable"], *need.get("joined", ())][names.index(cell.name)] if "trainable" in need else None
        steps = seconds.get(shapes[cell.name])
        time = result.get("wall_seconds") if result else statistics.median(steps) * cell.steps if steps else None
        kind = state.split(":")[0].split(" by ")[0]
        states[kind] = states.get(kind, 0) + 1
        if not result and kind not in ("failed", NOT_NEEDED):
            left, unknown = left + (time or 0), unknown + (time is None)
        rank = (plains[cell.name].get("labels") or {}).get("rank")
        lines.append([
            cell.name, method, "-" if rank is None else str(rank), *([of] if any(data) else []),
            UNKNOWN if trained is None else f"{trained:,}", _memory(need, len(names)),
            UNKNOWN if time is None else clock(time), state,
        ])  # fmt: skip
    counted = ", ".join(f"{count} {kind}" for kind, count in states.items())
    rest = f"about {clock(left)} left on one worker" if left or not unknown else "time left unknown"
    rest += f", {unknown} cells of unknown length aside" if left and unknown else ""
    errors = dict.fromkeys(need["error"] for need in needs.values() if "error" in need)
    notes = [f"unknown: {spoken(error)}" for error in errors]
    if most := max((len(names) for names in shared.values()), default=1) - 1:
        count = len({names[0] for names in shared.values()})
        notes.append(f"--together: {count} programs of up to {most + 1} cells; memory is the whole program's")
    total = f"{len(cells)} cells: {counted}; {rest}"
    return "\n".join([format_table(lines, "text"), *notes, total])


def data_apart(plains: Sequence[dict]) -> list[str]:
    """What tells the data of several configs apart: "path=other.jsonl, rows=100"; "" for each where all are alike.

    As few keys as that needs; those that follow from a task or a path, such as its buckets, are left out first.

    Args:
      plains: configs.
    """
    tasks = [plain.get("task") or {} for plain in plains]

    def kinds(keys: Sequence[str]) -> int:
        return len({json.dumps([task.get(key) for key in keys], sort_keys=True) for task in tasks})

    apart = sorted({key for task in tasks for key in task} - {"seed"})
    for key in sorted(apart, key=lambda key: key in NAMING):
        rest = [other for other in apart if other != key]
        apart = rest if kinds(rest) == kinds(apart) else apart
    return [", ".join(f"{key}={_said(task[key])}" for key in apart if key in task) for task in tasks]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _rank(plain: dict) -> int:
    return (plain.get("adapter") or {}).get("rank") or 0


def _look(sweep: Sweep, cell: Cell, found: Mapping[str, tuple[str, dict | None]]) -> tuple[str, dict | None]:
    """(a cell's state in words, its result), of those before it as `found`."""
    try:
        states = {name: found[name] for name in cell.trials if name in found}
        ended = [result or state.startswith(NOT_NEEDED) for state, result in states.values()]
        known = len(ended) == len(cell.trials) and all(ended)
        ready = sweep.grid.resolve(cell, {name: result for name, (_, result) in states.items()}) if known else None
        if ready is None:
            return f"waits for {len(cell.trials)} trials", None
        if result := sweep.known.recorded(ready):
            return result["status"], result
    except NotNeeded as why:
        return str(why), None
    except data_record.DataChanged as error:
        return f"refused: {error}", None
    if why := sweep.known.failure(ready):
        return f"failed: {why}", None
    holder = leases.claim_of(run_folder.run_folder(sweep.workdir, ready.name), "preview", sweep.root).holder()
    return (f"claimed by {holder}" if holder else "to run"), None


def _memory(need: dict, cells: int) -> str:
    if need.get("bytes") is None:
        return UNKNOWN
    words = f"{need['bytes'] / GIB:.2f} GiB" + (f" for {cells}" if cells > 1 else "")
    return f"{words} (too much)" if need.get("limit") and need["bytes"] > need["limit"] else words
