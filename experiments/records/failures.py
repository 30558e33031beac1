"""Records which runs of a folder failed: other sweeps that run there at the same time do not try them again."""

import collections
import contextlib
import fcntl
import io
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.json_text import parse

ENDING = ".failed"  # of a file beside the run's folder
PART = re.compile(rf"{re.escape(ENDING)}-[0-9a-f]{{32}}$")  # end of the name of a file that is being written
MOST = 64  # most files that a sweep keeps open and locked; the ones that it wrote first are released


class Failures:
    """Which runs of a folder failed, and why. A failure counts for sweeps that run while the one that wrote it does.

    That one keeps the failure's file locked until it ends. A sweep that starts later tries the run again: the cause
    may be mended by then.

    Args:
      folder: of the run folders.
      again: runs that had failed before this object was made are tried again in any case.
    """

    def __init__(self, folder: str | Path, again: bool = False):
        self.folder = Path(folder)
        self._mine: collections.deque[io.TextIOWrapper] = collections.deque()
        there = {path.name: path for path in self.folder.glob(f"*{ENDING}")}
        self._void = {name: _read(path).get("token") for name, path in there.items() if again or not _is_held(path)}

    def of(self, name: str) -> dict[str, Any]:
        """{"why", "by", "sections"} of a run's failure that counts here; {} where there is none."""
        path = self._path(name)
        found = _read(path)
        return {} if found.get("token") == self._void.get(path.name) else found

    def tell(self, name: str, why: str, sections: Mapping[str, Any]) -> None:
        """Records a run's failure for the other sweeps; the caller holds the run's claim.

        Args:
          why: in a few words.
          sections: those of its config that alone cause it, with their values; {} where they are not known.
        """
        token = uuid.uuid4().hex
        record = {"token": token, "why": why, "by": os.getpid(), "sections": sections}
        path = self._path(name)
        part = path.with_name(f"{path.name}-{token}")
        try:
            file = _locked(part)
        except OSError:  # a full disk, for example: the others try the run, and see for themselves
            return
        try:
            json.dump(record, file)
            file.flush()
            os.replace(part, path)
        except OSError:
            file.close()
            part.unlink(missing_ok=True)
            return
        self._mine.append(file)
        if len(self._mine) > MOST:
            self._mine.popleft().close()

    def tidy(self) -> None:
        """Removes what sweeps that were killed while they wrote a failure have left: files that nobody has locked."""
        for part in self.folder.glob(f"*{ENDING}-*"):
            if PART.search(part.name) and part.is_file() and not part.is_symlink():
                with contextlib.suppress(OSError), part.open("r+b") as file:  # BlockingIOError: it is being written
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    part.unlink()

    def drop(self, name: str) -> None:
        """Forgets a failure of a run that has a result by now."""
        with contextlib.suppress(OSError):
            self._path(name).unlink()

    def close(self) -> None:
        """Releases the locks: sweeps that start from now on try again what failed here."""
        while self._mine:
            self._mine.popleft().close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{ENDING}"


def _locked(part: Path) -> io.TextIOWrapper:
    """A new file, locked; made again where `tidy` of another sweep removed it before it was locked."""
    while True:
        file = part.open("w", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if part.exists():  # under a name that nobody else gives
                return file
        except OSError:
            part.unlink(missing_ok=True)
            file.close()
            raise
        file.close()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse(path.read_bytes())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("token"), str) and isinstance(found.get("sections"), dict)
    return found if whole else {}


def _is_held(path: Path) -> bool:
    """Whether the sweep that wrote a failure still runs. The lock that is tried is shared: several can ask at once."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
