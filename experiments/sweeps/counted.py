"""Keeps what programs of a sweep need (memory, parameters) in a file, for previews to compile each only once."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from experiments.records.json_files import write_json
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import parse

FILE = "preview.json"
MOST = 1_000  # programs that are kept; the oldest are dropped
PROGRESS = "program "  # how a line of experiments.room about its progress begins


class Counted:
    """What programs need, found by a digest of all that it depends on: code, versions, devices, shapes, config.

    Args:
      path: of the file; None keeps nothing. One that cannot be read or written counts as empty.
    """

    def __init__(self, path: str | Path | None):
        self.path = Path(path) if path else None
        self._found = self._read()

    def get(self, described: str) -> dict[str, Any] | None:
        """The needs of a program; None where it was not counted before."""
        found = self._found.get(_digest(described))
        if not isinstance(found, dict) or not isinstance(found.get("trainable"), int):
            return None
        return found if isinstance(found.get("bytes", ""), int | None) else None

    def put(self, described: str, needs: dict[str, Any]) -> None:
        """Keeps what a program needs, beside what other previews have counted meanwhile."""
        self._found = {**self._found, **self._read(), _digest(described): needs}
        if self.path:
            newest = list(self._found.items())[-MOST:]
            with contextlib.suppress(UserError, OSError):
                write_json(self.path, dict(newest))

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            there = parse(self.path.read_bytes()) if self.path else {}
            return there if isinstance(there, dict) else {}
        return {}


def _digest(described: str) -> str:
    return hashlib.sha256(described.encode()).hexdigest()
