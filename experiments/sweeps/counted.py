"""Keeps what programs of a sweep need (memory, parameters) in a file, for previews to compile each only once."""

import contextlib
import hashlib
from pathlib import Path
from typing import Any

from experiments.records.run_folder import write_json
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
        self._found: dict[str, Any] = {}
        if self.path:
            with contextlib.suppress(OSError, ValueError):
                there = parse(self.path.read_bytes())
                self._found = there if isinstance(there, dict) else {}

    def get(self, described: str) -> dict[str, Any] | None:
        """The needs of a program; None where it was not counted before."""
        found = self._found.get(_digest(described))
        return found if isinstance(found, dict) and "trainable" in found and "bytes" in found else None

    def put(self, described: str, needs: dict[str, Any]) -> None:
        """Keeps what a program needs."""
        self._found[_digest(described)] = needs
        if self.path:
            newest = list(self._found.items())[-MOST:]
            with contextlib.suppress(UserError, OSError):
                write_json(self.path, dict(newest))


def _digest(described: str) -> str:
    return hashlib.sha256(described.encode()).hexdigest()
