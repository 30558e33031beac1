"""The rows of a speed table, from a file of configs/suites, and the commands that measure them."""

import dataclasses
import fnmatch
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.config.files import call, file_meant, load_module
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.patterns import check_pattern

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path("configs/suites")
OURS, PEER, COLD, WARM = "ours", "peer", "cold", "warm"  # sides of a row
STEPS = "--steps="  # of a peer's script, as of ours

Side = tuple[str, str]  # (command, side): what one process measures


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a suite; see configs/suites/h100.py.

    Attributes:
      name, work: for --only, and for the table.
      words: arguments of experiments.bench.
      peer: arguments of the peer's script; None where the peer has no such configuration. A first word that ends in .py
        is another script in the same folder.
      env: variables that are set for both sides, those of jax and XLA for ours alone; XLA_FLAGS are added to those
        already set.
      start: whether the start is measured, with an empty and with a filled compilation cache.
      claims: the table's comparisons, as read by `report.summarise`.
      timings: for each process of a side, how often it times its steps; --repeats=N overrides it by N processes.
      published: instead of a peer, what others have published of this work, on a card of theirs: shown, not compared.
    """

    name: str
    work: str
    words: tuple[str, ...]
    peer: tuple[str, ...] | None = None
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start: bool = False
    claims: tuple[dict, ...] = ()
    timings: tuple[int, ...] = (1, 1, 1)
    published: str | None = None

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

    def side(self, name: str) -> Side:
        """What identifies a side's measurements."""
        return self.commands[name], name

    def peer_words(self, timings: int) -> list[str]:
        """The peer's arguments without a script's name; it takes `timings` times its steps, and has their median."""
        words = [word for word in self.peer or () if not word.endswith(".py")]
        return [f"{STEPS}{int(word[len(STEPS) :]) * timings}" if word.startswith(STEPS) else word for word in words]

    @property
    def peer_script(self) -> str | None:
        """The name of another script than the one that --peer names; None: that one."""
        return self.peer[0] if self.peer and self.peer[0].endswith(".py") else None


@dataclasses.dataclass(frozen=True)
class Suite:
    """The rows of a file.

    Attributes:
      name, rows: the file's.
      peer: the peer's script below this repository, or None.
      peer_name: in the table.
      record: the first part of the name of its default record, RECORD_suite.json.
    """

    name: str
    rows: tuple[Row, ...]
    peer: str | None
    peer_name: str
    record: str

    def select(self, only: str | None, names: Sequence[str] | None = None) -> tuple[Row, ...]:
        """The rows whose name matches a regular expression, and is one of some names; None: all.

        Args:
          only: the regular expression.
          names: of rows, in which * stands for any text.

        Raises:
          UserError: none does, a name is of no row, or `only` is no regular expression.
        """
        check_pattern("--only:", only or "")
        known = [row.name for row in self.rows]
        for name in names or ():
            if not fnmatch.filter(known, name):
                raise UserError(f"--rows: {name!r} is none of {', '.join(known)}")
        named = [row for row in self.rows if not names or any(fnmatch.fnmatch(row.name, name) for name in names)]
        chosen = tuple(row for row in named if re.search(only or "", row.name))
        if not chosen:
            raise UserError(f"--only={only} matches none of {', '.join(row.name for row in named)}")
        return chosen

    def compared(self, row: Row, peer: bool) -> list[tuple[Side, ...]]:
        """The groups of sides that one call has to measure for a row: each side, and the two sides of each ratio.

        Args:
          peer: whether there is one.
        """
        others = {one.name: one for one in self.rows}
        groups = [tuple(row.side(side) for side in (COLD, WARM))] if row.start else []
        groups += [(row.side(side),) for side in row.commands]
        for claim in row.claims:
            if to := claim.get("to"):
                groups.append((row.side(OURS), row.side(PEER) if to == PEER else others[to].side(OURS)))
        return [group for group in groups if peer or all(side != PEER for _, side in group)]

    def rows_of(self, rows: Sequence[Row]) -> dict[Side, Row]:
        """A row for each side that is measured for some rows: their own, and of those that they are compared with."""
        others = {one.name: one for one in self.rows}
        beside = [others[claim["to"]] for row in rows for claim in row.claims if claim.get("to", PEER) != PEER]
        return {row.side(side): row for row in (*beside, *rows) for side in row.commands}


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
        if name.endswith(".py"):
            raise UserError(f"no suite {name!r}; {file_meant(name, FOLDER / 'h100.py')}")
        raise unknown_name("suite", name, known)
    module = load_module(path)
    if missing := [known for known in ("ROWS", "PEER", "PEER_NAME") if not hasattr(module, known)]:
        raise UserError(f"{path} defines no {missing[0]}; see {FOLDER}/h100.py")
    rows: tuple[Row, ...] = call(path, lambda: tuple(Row(**row) for row in module.ROWS))
    names = [row.name for row in rows]
    if twice := sorted({one for one in names if names.count(one) > 1}):
        raise UserError(f"{path.name} has two rows {twice[0]!r}; rename one")
    sides = {row.name: row.commands for row in rows}
    for row in rows:
        for claim in row.claims:
            to = claim.get("to")
            if to and not (PEER in sides[row.name] if to == PEER else OURS in sides.get(to, ())):
                raise UserError(f"{path.name}: row {row.name} compares with {to!r}, which is no row with steps")
    return Suite(path.stem, rows, module.PEER, module.PEER_NAME, getattr(module, "RECORD", path.stem))
