"""The rows of a speed table, from a file of configs/suites, and the commands that measure them."""

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from experiments.config.files import call, load_module
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.patterns import check_pattern

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path("configs/suites")
OURS, PEER, COLD, WARM = "ours", "peer", "cold", "warm"  # sides of a row


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a suite; see configs/suites/h100.py.

    Attributes:
      name, work: for --only, and for the table.
      words: arguments of experiments.bench.
      peer: arguments of the peer's script; None where the peer has no such configuration.
      env: variables that are set for both sides, those of jax and XLA for ours alone; XLA_FLAGS are added to those
        already set.
      start: whether the start is measured, with an empty and with a filled compilation cache.
      claims: the table's comparisons, as read by `report.summarise`.
    """

    name: str
    work: str
    words: tuple[str, ...]
    peer: tuple[str, ...] | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start: bool = False
    claims: tuple[dict, ...] = ()

    @property
    def peer_env(self) -> dict[str, str]:
        """The variables that are set for the peer."""
        return {name: value for name, value in self.env.items() if not name.startswith(("JAX_", "XLA_"))}

    @property
    def commands(self) -> dict[str, str]:
        """Side -> what identifies its measurement: rows of one command share it."""
        ours = _command(self.env, "-m", "experiments.bench", *self.words)
        sides: dict[str, str] = dict.fromkeys((COLD, WARM) if self.start else (OURS,), ours)
        if self.peer is not None:
            sides[PEER] = _command(self.peer_env, "PEER", *self.peer)
        return sides


@dataclasses.dataclass(frozen=True)
class Suite:
    """The rows of a file; the peer's script below this repository, or None; and the peer's name in the table."""

    name: str
    rows: tuple[Row, ...]
    peer: str | None
    peer_name: str

    def select(self, only: str | None) -> tuple[Row, ...]:
        """The rows whose name matches a regular expression; None: all.

        Raises:
          UserError: none does, or `only` is no regular expression.
        """
        check_pattern("--only:", only or "")
        chosen = tuple(row for row in self.rows if re.search(only or "", row.name))
        if not chosen:
            raise UserError(f"--only={only} matches none of {', '.join(row.name for row in self.rows)}")
        return chosen


def _command(env: Mapping[str, str], *words: str) -> str:
    given = [f"{name}={shlex.quote(value)}" for name, value in sorted(env.items())]
    return " ".join([*given, shlex.join(["python", *words])])


def load_suite(name: str) -> Suite:
    """The suite of a name in configs/suites, or of a file.

    Raises:
      UserError: there is none, two rows have one name, or a claim is about a row that does not exist.
    """
    path = Path(name) if name.endswith(".py") else ROOT / FOLDER / f"{name}.py"
    if not path.is_file():
        known = sorted(p.stem for p in (ROOT / FOLDER).glob("[a-z]*.py"))
        raise UserError(f"no suite {name!r}; known: {', '.join(known)}, or a file like {FOLDER}/h100.py")
    module = load_module(path)
    if missing := [known for known in ("ROWS", "PEER", "PEER_NAME") if not hasattr(module, known)]:
        raise UserError(f"{path} defines no {missing[0]}; see {FOLDER}/h100.py")
    rows: tuple[Row, ...] = call(path, lambda: tuple(Row(**row) for row in module.ROWS))
    names = [row.name for row in rows]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UserError(f"{path.name} has two rows {twice[0]!r}; rename one")
    for row in rows:
        for claim in row.claims:
            if claim.get("to", PEER) not in (PEER, *names):
                raise UserError(f"{path.name}: row {row.name} compares with {claim['to']!r}, which is no row")
    return Suite(path.stem, rows, module.PEER, module.PEER_NAME)
