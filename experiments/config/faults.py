"""Tells a sweep which sections of a config an error is of: cells that share these sections would all end with it."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError

HERE, MACHINE = "here", "machine"  # instead of sections: `UserError.here`, `UserError.machine`
VARIABLE = "LOWRANK_JAX_FAULT_FILE"  # where a run's program writes its error, for the sweep that has started it


def tell(error: UserError) -> None:
    """Writes which sections alone decide that the error is raised, MACHINE or HERE, where a sweep asks for it."""
    found = MACHINE if error.machine else HERE if error.here else list(error.sections)
    if found and (path := os.environ.get(VARIABLE)):
        Path(path).write_text(json.dumps(found), encoding="utf-8")


class Faults:
    """What a sweep's cells have failed with.

    Args:
      file: that the programs of cells write, one after another.
    """

    def __init__(self, file: Path):
        self.file = file
        self.short = self.machine = False  # whether the error that `take` read last is a lack of memory, of a library
        self._known: list[tuple[str, dict[str, Any]]] = []  # (name of a cell, its sections)

    def environment(self) -> dict[str, str]:
        """What the program of a cell, which is started next, is given besides its own environment."""
        with contextlib.suppress(OSError):  # of a sweep that was killed, and had the same process id
            self.file.unlink()
        return {VARIABLE: str(self.file)}

    def take(self, name: str, plain: Mapping[str, Any]) -> dict[str, Any] | None:
        """The config sections that a cell's program has named as the cause of its error, with their values; or {}.

        None where the error is of this machine alone. Where every run on this machine ends with it, `shared_by` answers
        with this cell for all others.
        """
        self.short = self.machine = False
        try:
            sections = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        self.file.unlink(missing_ok=True)
        self.short, self.machine = sections == HERE, sections == MACHINE
        if self.machine:
            self.learn(name, {})  # without sections: any other cell has this error too
        if sections in (HERE, MACHINE):
            return None
        if not isinstance(sections, list) or not all(isinstance(section, str) for section in sections):
            return {}
        found = {section: plain.get(section) for section in sections}
        self.learn(name, found)
        return found

    def learn(self, name: str, sections: Mapping[str, Any]) -> None:
        """Adds the error of a cell, also of one that another sweep has run."""
        if all(name != known for known, _ in self._known):
            self._known.append((name, dict(sections)))

    def shared_by(self, plain: Mapping[str, Any]) -> str:
        """The first cell whose error this one would end with too; "" where none is known."""
        for name, sections in self._known:
            if all(plain.get(section) == value for section, value in sections.items()):
                return name
        return ""
