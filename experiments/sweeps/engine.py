"""Runs a sweep: each cell of a grid once, in a separate process or in a group, while other sweeps may run too."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.config.arguments import FILE, spoken
from experiments.config.faults import Faults
from experiments.config.json_flags import KEYS
from experiments.records import claims, data_record, json_files, leases, places, run_folder
from experiments.records.checks import is_finite
from experiments.records.store import StoreError
from experiments.records.text_table import clock
from experiments.sweeps import compiled
from experiments.sweeps.best import NotNeeded
from experiments.sweeps.child import started
from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Cell, Grid
from experiments.sweeps.known import Known
from experiments.sweeps.sizes import Sizes
from lowrank_jax.core.errors import INTERRUPTED, LOST, MENDABLE, UserError

RUN_PROGRAM = (sys.executable, "-m", "experiments.run")
TRIALS_PROGRAM = (sys.executable, "-m", "experiments.trials")
AGENT_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")
GROUP_VARIABLE = "WANDB_RUN_GROUP"  # train.tracking's, which imports jax
POLL_SECONDS = 5.0  # how often cells claimed by other sweeps are checked again
TRACEBACK = 1  # exit status of Python
NO_FAULT = (INTERRUPTED, LOST)  # exit statuses of a run that another worker may go on with


class Sweep:
    """Runs cells one after another; cells claimed by another sweep are checked again until they have a result.

    Args:
      grid: the cells.
      workdir: of their run folders.
      results: NAME or NAME.jsonl, to which each result is added.
      say: is told of each cell.
      asked: the cell of a W&B agent.
      together: how many cells share a program at most.
      room: how many of some (name, plain config) pairs fit in one program; where given, it decides, not `together`.
      group: of the runs in W&B.
      root: through which workers of several hosts share the cells.
      retry_failed: try cells again that had failed on another worker before.
    """

    def __init__(
        self,
        grid: Grid,
        workdir: str,
        results: str | None = None,
        say: Callable = print,
        asked: str | None = None,
        together: int = 1,
        root: leases.Root | None = None,
        retry_failed: bool = False,
        room: Callable[[Sequence[tuple[str, dict]]], int] | None = None,
        group: str | None = None,
    ):
        self.grid, self.asked, self.together = grid, asked, together
        self.root, self.room, self.group = root, room, group
        self.workdir = Path(workdir)
        self.say = say
        self.settled: dict[str, tuple[str, dict | None]] = {}  # name -> (state, result)
        self.holders: dict[str, str] = {}  # name -> holder of a cell's claim at the last check
        self.faults = Faults(self.workdir / f"fault-{os.uname().nodename}-{os.getpid()}.json")
        self.known = Known(self.workdir, results, root, retry_failed, self.faults)
        self.sizes = Sizes()

    def run(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Runs until every cell has a result or has failed.

        Returns:
          name -> "finished", "diverged", "failed: why" or "not needed: why".
        """
        self.known.begin()
        try:
            return self._run(cells)
        finally:
            self.known.end()

    def _run(self, cells: Sequence[Cell]) -> dict[str, str]:
        pending, told, unreached = list(cells), set(), False
        while pending:
            left = []
            for cell in pending:
                if any(trial not in self.settled for trial in cell.trials):
                    left.append(cell)
                    continue
                if cell.name in self.settled:  # with a group
                    continue
                rest = [*left, *pending[pending.index(cell) :]]
                try:
                    if self.together > 1 or self.room:
                        outcome = self.attempt_group(cell, pending[pending.index(cell) :], len(cells), rest)
                    else:
                        outcome = self.attempt(cell, len(cells), rest)
                    unreached = False
                except StoreError as error:  # nothing is lost: results stay in their run folders
                    if not unreached:
                        self.say(f"{cell.name}: {error}; looking again until it answers")
                    unreached, outcome = True, None
                    told.add(cell.name)
                except claims.Held as error:
                    self.say(f"{cell.name}: {error}")
                    outcome = None
                if outcome is None:
                    if cell.name not in told:
                        self.say(f"{cell.name}: claimed by {self.holders.get(cell.name)}; looking again later")
                    told.add(cell.name)
                    left.append(cell)
                else:
                    self.settled[cell.name] = outcome
            if len(left) == len(pending):
                time.sleep(POLL_SECONDS)
            pending = left
        return {cell.name: self.settled[cell.name][0] for cell in cells}

    def attempt(self, cell: Cell, total: int, remaining: list[Cell]) -> tuple[str, dict | None] | None:
        """Skips, runs or refuses one cell; None if another program holds its claim."""
        place = f"[{len(self.settled) + 1}/{total}]"
        try:
            ready = self.grid.resolve(cell, {name: result for name, (_, result) in self.settled.items()})
        except NotNeeded as why:
            self.say(f"{place} {cell.name}: {why}")
            return str(why), None
        if ready is None:
            ended = [self.settled[name][0] for name in cell.trials if name in self.settled]
            all_failed = all(status.startswith("failed") for status in ended)
            why = "all of its trials failed" if ended and all_failed else "none of its trials gave a finite loss"
            self.say(f"{place} {cell.name}: {why}")
            return f"failed: {why}", None
        try:
            if result := self.known.recorded(ready):
                self.say(f"{place} {ready.name}: {result['status']} already")
                return result["status"], result
            if refused := self.refusal(ready, place):
                return refused
            claim = self.claim(cell, ready)
            if claim is None:
                return None
            with contextlib.ExitStack() as held:
                held.callback(claim.release)
                if result := self.known.recorded(ready, claim):  # it ended between the check and the claim
                    self.say(f"{place} {ready.name}: {result['status']} by another program")
                    return result["status"], result
                if refused := self.refusal(ready, place):  # it failed in between
                    return refused
                self.say(f"{place} {ready.name}: running, {self.time_left(remaining)}")
                self.continue_trial(cell.trials, ready)
                status = self.spawn(ready, claim, mine=self.asked in (None, cell.name))
                result = self.known.recorded(ready, claim)
                self.known.share_offline(ready)
                if result is None:
                    sections = self.cause(status, ready)
                    self.known.fail(ready, fault_of(status), sections)
                    claim.release(fault_elsewhere(status, sections))
                    if status == LOST:
                        raise StoreError("its run could not reach the root")
        except data_record.DataChanged as error:
            self.say(f"{place} {ready.name}: refused; {error}")
            return f"failed: {error}", None
        if result:
            self.say(f"{place} {ready.name}: {result['status']} in {clock(result.get('wall_seconds') or 0)}")
            return result["status"], result
        why = f"exit status {status}" if status else "it ended without a result"
        remedy = "correct what it says, and sweep again" if status == MENDABLE else "a second sweep resumes it"
        self.say(f"{place} {ready.name}: failed ({why}); {remedy}")
        return f"failed: {why}", None

    def attempt_group(
        self, cell: Cell, pending: Sequence[Cell], total: int, remaining: list[Cell]
    ) -> tuple[str, dict | None] | None:
        """`attempt` for a cell with others of `pending` that can share its program.

        Where their program needs more memory than there is, or fails for an unknown cause, its cells are tried again in
        programs of half as many.
        """
        settled = {name: result for name, (_, result) in self.settled.items()}
        ready: list[tuple[Cell, Cell]] = []  # (as listed, as resolved)
        for other in pending:
            able = other.name not in self.settled and all(name in self.settled for name in other.trials)
            one = self.ready(other, settled) if able else None
            if one is None or (len(ready) >= self.together and not self.room) or self.settled_already(one):
                pass
            elif not ready or group_key(one.plain) == group_key(ready[0][1].plain):
                ready.append((other, one))
            if not ready:
                break  # the cell itself is done, or has no others to run with
        if not ready or ready[0][0] is not cell:
            return self.attempt(cell, total, remaining)
        if self.room and len(ready) > 1:
            try:
                ready = ready[: self.room([(one.name, one.plain) for _, one in ready])]
            except UserError as error:
                self.say(f"{cell.name} runs alone: {spoken(str(error))}")
                return self.attempt(cell, total, remaining)
        ready = ready[: self.sizes.fit([one for _, one in ready])]
        ready = ready[: places.going_on(self.workdir, [one.name for _, one in ready])]
        first = self.claim(*ready[0])
        if first is None:  # its holder is claiming the rest of its group: taking one of them now would split the group
            return None
        with contextlib.ExitStack() as held:
            held.callback(first.release)
            taken = [(ready[0], first)]
            for pair in ready[1:]:
                if (claim := self.claim(*pair)) is not None:
                    held.callback(claim.release)
                    taken.append((pair, claim))
            mine = [(pair, claim) for pair, claim in taken if not self.settled_already(pair[1], claim)]
            if len(mine) < 2 or mine[0][0][0] is not cell:
                held.close()
                return self.attempt(cell, total, remaining)
            place = f"[{len(self.settled) + 1}-{len(self.settled) + len(mine)}/{total}]"
            self.say(f"{place} {first.name} and {len(mine) - 1} more together: running, {self.time_left(remaining)}")
            status = self.spawn_group([one for (_, one), _ in mine], [claim for _, claim in mine])
            sections = self.cause(status, ready[0][1])
            if status == MENDABLE and (self.faults.short or sections == {}):
                most = self.sizes.halve([one for (_, one), _ in mine], self.faults.short)
                why = "short of memory" if self.faults.short else f"failed (exit status {status})"
                again = f"tried again with at most {most} in a program"
                self.say(f"{place} {first.name} and {len(mine) - 1} more together: {why}; {again}")
                held.close()
                return self.attempt_group(cell, pending, total, remaining)
            for (listed, one), claim in mine:
                why = f"exit status {status}" if status else "it ended without a result"
                try:
                    result = self.known.recorded(one, claim)
                except data_record.DataChanged as error:  # while it was trained
                    result, why = None, str(error)
                self.known.share_offline(one)
                if result is None:
                    self.known.fail(one, fault_of(status), sections)
                    claim.release(fault_elsewhere(status, sections))
                    if status == LOST:  # it could not reach the root
                        continue
                state = result["status"] if result else f"failed: {why}"
                self.say(f"{place} {one.name}: {state}")
                self.settled[listed.name] = (state, result)
            return self.settled.get(cell.name)

    def cause(self, status: int, cell: Cell) -> dict[str, Any] | None:
        """The config's sections that caused a failure; None where its cause may be this machine's alone.

        Such causes are a lack of memory or of a library, and what ends in a traceback, such as a broken GPU.
        """
        found = self.faults.take(cell.name, cell.plain)
        return None if status == TRACEBACK else found

    def refusal(self, ready: Cell, place: str) -> tuple[str, None] | None:
        """What `attempt` returns for a cell that is not tried: it failed on another worker, or would as another did."""
        if why := self.known.failure(ready):
            self.say(f"{place} {ready.name}: failed on a worker ({why}); --retry_failed tries it again")
            return f"failed: {why}", None
        if other := self.faults.shared_by(ready.plain):
            self.say(f"{place} {ready.name}: not run; it would end with the error of {other}")
            return f"failed: as {other}", None
        return None

    def ready(self, cell: Cell, results: dict[str, dict | None]) -> Cell | None:
        """The cell as it is to be run; None where there is nothing to run."""
        try:
            return self.grid.resolve(cell, results)
        except NotNeeded:
            return None

    def claim(self, cell: Cell, ready: Cell) -> claims.Claim | None:
        """The claim on a cell, taken; None if another program holds it (see `holders`)."""
        claim = leases.claim_of(run_folder.run_folder(self.workdir, ready.name), "experiments.sweep", self.root)
        if claim.take():
            if isinstance(claim, leases.Both) and claim.lease.taken_from:
                self.say(f"{ready.name}: taken over from {claim.lease.taken_from}, silent for its lease")
            return claim
        self.holders[cell.name] = str(claim.holder() or "another process")
        return None

    def spawn_group(self, cells: Sequence[Cell], held: Sequence[claims.Claim]) -> int:
        """Trains cells in one program, and waits for its end."""
        listed = [{"name": cell.name, "config": cell.plain, FILE: self.grid.config_path} for cell in cells]
        file = self.workdir / f"together-{zlib.crc32(' '.join(cell.name for cell in cells).encode()):08x}.json"
        json_files.write_json(file, listed)
        return self.wait([*TRIALS_PROGRAM, f"--cells={file}", f"--workdir={self.workdir}"], held)

    def continue_trial(self, trials: Sequence[str], cell: Cell) -> None:
        """Continues a full row from the trial that chose its rate, where that trial's steps are the row's first."""
        for trial in trials:
            source, target = (run_folder.run_folder(self.workdir, name) for name in (trial, cell.name))
            if run_folder.continue_from(source, target, cell.plain):
                self.say(f"{cell.name}: goes on from {trial}")

    def settled_already(self, cell: Cell, claim: claims.Claim | None = None) -> bool:
        """Whether `attempt` needs no training for a cell: it ended or failed, or is refused."""
        try:
            if self.known.recorded(cell, claim) is not None:
                return True
            return bool(self.known.failure(cell) or self.faults.shared_by(cell.plain))
        except data_record.DataChanged:
            return True

    def command(self, cell: Cell) -> list[str]:
        """The command of one cell."""
        arg = self.grid.full_arg(cell.arg)
        config = f"{self.grid.config_path}:{arg}" if arg else self.grid.config_path
        changes = [f"--config.{path}={as_flag(value, path)}" for path, value in cell.overrides.items()]
        return [*RUN_PROGRAM, f"--config={config}", *changes, f"--name={cell.name}", f"--workdir={self.workdir}"]

    def spawn(self, cell: Cell, claim: claims.Claim, mine: bool = True) -> int:
        """Runs a cell's process to its end; when the sweep is interrupted, the process saves first."""
        # A W&B agent's run id is for its cell, not for the trials that this cell needed first.
        environment = {key: value for key, value in os.environ.items() if mine or key not in AGENT_VARIABLES}
        return self.wait(self.command(cell), [claim], environment)

    def wait(self, command: Sequence[str], held: Sequence[claims.Claim], environment: dict | None = None) -> int:
        """Starts a program, lends it the claims of its runs, and waits for it, whatever signals come."""
        # If the sweep alone is killed, the cells stay claimed while their program lives.
        environment = compiled.shared(os.environ if environment is None else environment, self.workdir)
        environment |= self.faults.environment()
        if self.root:
            environment[leases.ROOT_VARIABLE] = self.root.url
        if self.group:
            environment.setdefault(GROUP_VARIABLE, self.group)
        with started(command, **claims.lend(held, environment)) as child:
            while self.root:
                try:
                    status = child.wait(POLL_SECONDS)
                    for claim in held:
                        leases.check(claim)
                    return status
                except subprocess.TimeoutExpired:
                    for claim in held:
                        claim.renew()
            return child.wait()

    def time_left(self, remaining: Sequence[Cell]) -> str:
        """The time left: remaining steps times the seconds that a step has taken in this grid so far.

        A record of a program of several runs has the time of all; a run's share of it counts.
        """
        ended = [(name, result) for name, (_, result) in self.settled.items() if result]
        done = [(one.get("wall_seconds"), one.get("together", 1), self.grid.cells[name].steps) for name, one in ended]
        done = [(wall / together, steps) for wall, together, steps in done if wall and is_finite(wall)]
        seconds, steps = math.fsum(wall for wall, _ in done), sum(count for _, count in done)
        if not steps:
            return "time left unknown"
        return f"about {clock(seconds / steps * sum(cell.steps for cell in remaining))} left"


def fault_of(status: int) -> str:
    """What other workers are told of a run without a result; "" where it is no fault: a signal, a lost process."""
    if status == 0:
        return "it ended without a result"
    return f"exit status {status}" if status > 0 and status not in NO_FAULT else ""


def fault_elsewhere(status: int, sections: dict[str, Any] | None) -> str:
    """`fault_of` for the workers of a root; "" where `cause` found no sections: it may be this machine's alone."""
    return "" if sections is None else fault_of(status)


def as_flag(value: Any, path: str = "") -> str:
    """A value in the syntax of ml_collections' flags, or JSON for the keys that take it."""
    if isinstance(value, str):  # of the command line, then JSON already
        return value
    if path in KEYS:
        return json.dumps(value)
    if isinstance(value, bool):
        return str(value).lower()
    return repr(tuple(value) if isinstance(value, list) else value)
