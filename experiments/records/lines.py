"""Records as JSON lines: one file a grid, one complete line a run, appended by any number of sweeps at once."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import logging

from experiments.records import json_files, run_record
from experiments.records.checks import check_record
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_bytes, refuse_special
from lowrank_jax.core.json_text import NotJson, parse

SUFFIX = ".jsonl"
_told: set[str] = set()  # files whose torn lines have been reported


def read_lines(path: str | Path) -> dict[str, dict]:
    """Name -> record, in the file's order; of a repeated name the last complete line. Reports torn lines.

    Raises:
      UserError: it is not a regular file, or has a record with a field of another type than a run writes.
    """
    found, torn = {}, 0
    for number, line in enumerate(read_bytes(path).splitlines(keepends=True), 1):
        record = _parse(line)
        torn += record is None
        if isinstance(record, dict) and "name" in record and "status" in record:
            check_record(record, f"{path}, line {number}", "delete that line")
            found[record["name"]] = record
    if torn and str(path) not in _told:
        _told.add(str(path))
        logging.warning(
            "%s: %d torn line(s) left out; a run whose record is cut off counts as not recorded", path, torn
        )
    return found


def check_results(path: str | Path) -> None:
    """Makes sure that records may be added to a file: it is new, or holds records (and torn lines) alone.

    Raises:
      UserError: it has a line of something else, which may be a user's data.
    """
    if not Path(path).is_file():
        return
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        found = _parse(line.rstrip(b"\n") + b"\n")  # a user's last line may lack its end
        if found is not None and not (isinstance(found, dict) and "name" in found and "status" in found):
            raise UserError(
                f"{path}, line {number} is no record of a run: results are not added to it; name another file"
            )


def append(path: str | Path, records: Iterable[dict]) -> int:
    """Adds the records that the file lacks, in one write; returns how many.

    Several processes may append: the write is made under a lock, after reading the file again. A line torn by a killed
    process is ended first, and stays torn.

    Raises:
      UserError: the disk is full, the folder is not writable, or the file has something else; it is then unchanged.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing releases the lock
            check_results(path)
            there = read_lines(path)
            new = [record for record in map(json_files.finite, records) if there.get(record["name"]) != record]
            if new:
                _write(descriptor, "".join(map(line_of, new)).encode())
            return len(new)
        finally:
            os.close(descriptor)
    except OSError as error:
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy} and run again: it goes on") from error


def line_of(record: dict) -> str:
    """A record as its line."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


def _write(descriptor: int, lines: bytes) -> None:
    """One write at the end of a locked file; a partial one is undone."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        lines = b"\n" + lines
    try:
        if os.write(descriptor, lines) < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _parse(line: bytes) -> object:
    """The value of a line, None for a torn one."""
    try:
        return parse(line, finite=True) if line.endswith(b"\n") else None
    except NotJson:
        return None


class Recorded:
    """The recorded results of one grid: NAME.jsonl, and the older folder NAME with a .json file a run.

    Args:
      place: NAME or NAME.jsonl; new records go to NAME.jsonl.
    """

    def __init__(self, place: str | Path):
        self.path, self.folder = files_of(place)
        refuse_special(self.path)
        self._records: dict[str, dict] = {}
        self._state: Sequence | None = None  # of the file when it was read

    def get(self, name: str) -> dict | None:
        """The record of a run; the file is read again where another sweep has added to it."""
        state = None
        if self.path.is_file():
            status = self.path.stat()
            state = status.st_ino, status.st_size, status.st_mtime_ns
        if state != self._state:
            self._records, self._state = read_lines(self.path) if state else {}, state
        return self._records.get(name) or run_record.read_result(self.folder / f"{name}.json")

    def place(self, name: str) -> str:
        """Where the record of a run is, for messages: its line of the file, or a file of the older folder."""
        return f"the line of {name} in {self.path}" if name in self._records else f"{self.folder / name}.json"

    def put(self, record: dict) -> None:
        """Records a run, unless the file has the same record."""
        if self.get(record["name"]) != record:
            append(self.path, [record])


def files_of(place: str | Path) -> tuple[Path, Path]:
    """(NAME.jsonl, NAME) from either."""
    path = Path(place)
    folder = path.with_suffix("") if path.suffix == SUFFIX else path
    return folder.parent / (folder.name + SUFFIX), folder
