"""Measures a speed table: rows of experiments.bench and of a peer's script, alternately in separate processes."""

import importlib.metadata
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.bench.suites import report
from experiments.bench.suites.rows import COLD, PEER, ROOT, WARM, Row, Side, Suite, load_suite
from experiments.records import json_files
from experiments.tables.speed import suite as speed
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import NotJson, parse

RESULTS = ROOT / "experiments" / "results" / "speed"
PEER_PACKAGES = ("torch", "transformers", "peft")
LIMIT_SECONDS = 1_800  # of one process; the longest known, PEFT's 7B shape under torch.compile, takes 230 on one H100
PLACE = ("hardware", "versions", "git")  # keys of a record that are stored once for all measurements that share them


def suite_main(options: Any) -> None:
    """Measures the chosen rows that are missing, writes the file after every process, and prints the table.

    Args:
      options: flags of experiments.bench: suite, results, table, join, rows, only, again, repeats, peer, seconds,
        format.

    Raises:
      UserError: an unknown suite, row or file; no row at all could be measured.
    """
    suite = load_suite(options.suite)
    path = Path(options.results or RESULTS / f"{suite.record}_suite.json")
    record = Record(path, suite)
    if options.table:
        if not path.is_file():
            raise UserError(f"there is no {path} to print; run the suite without --table")
        print(speed.shown(record.data).text(options.format))
        return
    if options.join:
        for other in options.join:
            record.take(other)
        print(speed.shown(record.data).text(options.format))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the child ends too
    rows = suite.select(options.only, options.rows)
    peer, note = find_peer(suite, options.peer)
    if note:
        print(f"without the peer: {note}", flush=True)
    record.data["peer_note"] = note
    record.forget(rows if options.again else ())
    deadline = time.monotonic() + options.seconds if options.seconds else float("inf")
    measure(rows, record, peer, options.repeats, deadline)
    print(speed.shown(record.data).text(options.format))


def find_peer(suite: Suite, given: str | None) -> tuple[Path | None, str]:
    """The peer's script, or None and the reason.

    Raises:
      UserError: `given` names no file.
    """
    if given and not Path(given).is_file():
        raise UserError(f"--peer: there is no file {given!r}")
    script = given or (suite.peer and ROOT / suite.peer)
    if not script:
        return None, "no --peer was given"
    if importlib.util.find_spec("torch") is None:
        return None, "torch is not installed (the extra [parity])"
    return Path(script).resolve(), ""


def measure(rows: Sequence[Row], record: "Record", peer: Path | None, repeats: int | None, deadline: float) -> None:
    """Measures all rows and the peer once, then all again: a drift of the machine then affects every side.

    Args:
      peer: its script; None: without the peer's sides.
      repeats: processes a side; None: as each row's `timings` say.
      deadline: of time.monotonic(), after which none is started.
    """
    failed = set()  # a configuration that a machine refuses once would be refused again
    of = record.suite.rows_of(rows)
    timings = {row.name: row.timings if repeats is None else (1,) * repeats for row in (*of.values(), *rows)}
    rounds = max(len(timings[row.name]) for row in rows)
    for repeat in range(rounds):
        with tempfile.TemporaryDirectory(prefix="compilations_") as folder:
            for number, row in enumerate(rows, 1):
                for side in missing_sides(row, record, repeat, peer) if repeat < len(timings[row.name]) else ():
                    command, name = side
                    if command in failed:
                        continue
                    if time.monotonic() > deadline:
                        print("time is up; the same command goes on from here", flush=True)
                        return
                    own = of[side]
                    times = timings[own.name][repeat] if repeat < len(timings[own.name]) else 1
                    found = run_side(own, name, peer, Path(folder) / own.name, times)
                    record.add(command, name, repeat, found)
                    if "error" in found:
                        failed.add(command)
                    place = f"[{repeat + 1}/{rounds}, {number}/{len(rows)}]"
                    print(f"{place} {own.name}, {name}: {_told(found)}, {found['seconds']:.0f} s", flush=True)


def missing_sides(row: Row, record: "Record", repeat: int, peer: Path | None) -> list[Side]:
    """The sides that one repeat has still to measure for a row, of those that it is compared with too.

    What is compared, one call measures: where no call has both sides, this one measures both. Of a start likewise, as
    the cold one fills the other's cache.
    """
    missing: list[Side] = []
    for group in record.suite.compared(row, peer is not None):
        if not record.together(group, repeat):
            whole = {side for _, side in group} == {COLD, WARM}
            missing += [one for one in group if one not in missing and (whole or not record.has(*one, repeat))]
    return missing


def run_side(row: Row, side: str, peer: Path | None, cache: Path, timings: int = 1) -> dict[str, Any]:
    """{"record", "seconds"} of one process, "start_seconds" with it for ours; or {"error": one line, "seconds"}.

    A separate process, because peak memory and an allocator's reserve belong to a process.

    Args:
      cache: the compilation cache for a start, empty where `side` is COLD.
      timings: how often the process times its steps.
    """
    if side == PEER:
        assert peer is not None  # then there is no such side
        script = peer.with_name(row.peer_script or peer.name)
        if row.peer_script and not script.is_file():
            return {"error": f"there is no {script.name} beside the script of --peer", "seconds": 0.0}
        found = run_process([sys.executable, str(script), *row.peer_words(timings)], row.peer_env)
        return found | ({"timings": timings} if timings > 1 else {})
    env = dict(row.env)
    if side in (COLD, WARM):
        # 0 s: jax keeps compilations of a second and more by default, and a start has many short ones.
        env |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    words = [*row.words, *([f"--timings={timings}"] if timings > 1 else [])]
    return run_process([sys.executable, "-m", "experiments.bench", *words], env)


def run_process(argv: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Runs a program whose last line is a JSON record; see `run_side`."""
    whole = {**os.environ, **env}
    if "XLA_FLAGS" in env:
        whole["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {env['XLA_FLAGS']}".strip()
    began = time.time()
    try:
        done = subprocess.run(
            argv, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {LIMIT_SECONDS} s", "seconds": float(LIMIT_SECONDS)}
    found: dict[str, Any] = {"seconds": round(time.time() - began, 1)}
    records = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not records:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1].removeprefix("error: ") if lines else f"ended with status {done.returncode} and said nothing"
        return {"error": _without_places(last), **found}
    try:
        record = parse(records[-1])
    except NotJson as error:
        return {"error": f"its last line is no record ({error})", **found}
    if "first_step_at" in record:
        found["start_seconds"] = round(record.pop("first_step_at") - began, 2)
    return {"record": record, **found}


def _without_places(line: str) -> str:
    """A line without this machine's folders, for a record that others read."""
    for place in (str(ROOT), sys.prefix, str(Path.home())):
        line = line.replace(place, "...")
    return line[:400]


def _told(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return f"not available: {found['error']}"
    record = found["record"]
    memory = "" if record.get("peak_gib") is None else f", {record['peak_gib']:.2f} GiB"
    return f"{record['ms']:.1f} ms{memory}"


class Record:
    """The result file of a suite: every measurement, and the summary from which the table is printed.

    Attributes:
      call: what this process's measurements are marked with; ratios are of one call's.

    Args:
      path: an existing file's measurements are kept.
      suite: its rows.

    Raises:
      UserError: the file is of another suite.
    """

    def __init__(self, path: str | Path, suite: Suite):
        self.path, self.suite = Path(path), suite
        self.call = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}-{secrets.token_hex(2)}"
        self.data: dict[str, Any] = {"suite": suite.name, "peer": suite.peer_name, "peer_note": ""}
        self.data |= {"rows": [], "places": [], "measurements": []}
        if self.path.exists():
            self.data = json_files.read_json(self.path, remedy="name another --results")
            if not isinstance(self.data, dict) or self.data.get("suite") != suite.name:
                raise UserError(f"{path} is no record of the suite {suite.name}; name another --results")
            try:
                report.summarise(suite.rows, _in_full(self.data))
                set(map(_key, _in_full(self.data)))
            except speed.MISSHAPEN as error:
                said = f"{type(error).__name__}: {error}"
                raise UserError(f"{path} is a damaged record ({said}); name another --results") from error
            speed.check_shown(self.data, str(path))

    def has(self, command: str, side: str, repeat: int) -> bool:
        """Whether this call has measured a process; a failed one it has not."""
        return self.call in self._calls((command, side), repeat)

    def together(self, group: Sequence[Side], repeat: int) -> bool:
        """Whether one call has measured these sides, this one or an earlier one."""
        return bool(set.intersection(*(self._calls(side, repeat) for side in group)))

    def _calls(self, side: Side, repeat: int) -> set[str | None]:
        """The calls that have measured a process; records before there were calls count as one, None."""
        done = [one for one in self.data["measurements"] if "record" in one]
        return {one.get("call") for one in done if (one["command"], one["side"], one["repeat"]) == (*side, repeat)}

    def forget(self, rows: Sequence[Row]) -> None:
        """Drops the measurements of these rows, and those of commands that the suite no longer has."""
        known, gone = ({pair for row in some for pair in row.commands.items()} for some in (self.suite.rows, rows))
        self.data["measurements"] = [
            one for one in self.data["measurements"] if (one["side"], one["command"]) in known - gone
        ]

    def add(self, command: str, side: str, repeat: int, found: Mapping[str, Any]) -> None:
        """Adds a measurement, or replaces that of the same process; writes the file."""
        entry = {"command": command, "side": side, "repeat": repeat, "call": self.call, **found}
        if "record" in found:
            record = dict(found["record"])
            place = {name: record.pop(name) for name in PLACE if name in record}
            if side == PEER:
                place = {"versions": {name: _version(name) for name in PEER_PACKAGES}}
            entry |= {"record": record, "place": place}
        self._put([entry])

    def take(self, path: str | Path) -> None:
        """Adds the measurements of another record of the suite; writes.

        Raises:
          UserError: there is no such file, or it is of another suite.
        """
        if not Path(path).is_file():
            raise UserError(f"--join: there is no {str(path)!r}")
        self._put(_in_full(Record(path, self.suite).data))

    def _put(self, entries: Sequence[dict[str, Any]]) -> None:
        keys = {_key(entry) for entry in entries}
        others = [one for one in _in_full(self.data) if _key(one) not in keys]
        self.data["places"], self.data["measurements"] = _share_places([*others, *entries])
        self.data["rows"] = report.summarise(self.suite.rows, self.data["measurements"])
        json_files.write_json(self.path, self.data)


def _in_full(data: Mapping[str, Any]) -> list[dict]:
    """The measurements of a record, each with its place instead of the number of it."""
    places = data["places"]
    return [{**one, "place": places[one["place"]]} if "place" in one else one for one in data["measurements"]]


def _share_places(measurements: Sequence[dict[str, Any]]) -> tuple[list[dict], list[dict]]:
    """The distinct places, and the measurements with the number of theirs."""
    places: list[dict] = []
    for one in measurements:
        if "place" in one and one["place"] not in places:
            places.append(one["place"])
    return places, [{**one, "place": places.index(one["place"])} if "place" in one else one for one in measurements]


def _key(entry: Mapping[str, Any]) -> tuple[str, str, int, str | None]:
    return entry["command"], entry["side"], entry["repeat"], entry.get("call")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
