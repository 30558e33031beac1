"""Whole training states on disk: trainable tree, optimizer, data cursor; asynchronous saves, bit-equal restores."""

import contextlib
import errno
import json
import os
import re
import sys
import time
import zlib
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Any, NoReturn

import jax

from lowrank_jax.checkpoints.damage import Damaged, check_sums, together
from lowrank_jax.checkpoints.leaves import abstract, checksums, describe, listed, misfits, named, rebuild, storable
from lowrank_jax.checkpoints.quiet import quieten_orbax
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.fingerprints import same
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.shortage import is_short

FORMAT_VERSION = 1
POLL_SECONDS = 0.01  # between looks at a save, of several processes
# What a save finds where another process writes to the same folder: a step that it did not write, or its own
# half-written one gone.
TWO_WRITERS = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save and how many to keep.

    Attributes:
      every: steps between saves; 0 saves only at the end and on SIGTERM.
      keep: the newest saved steps that stay on disk.
    """

    every: Annotated[int, Range(least=0)] = 0
    keep: Annotated[int, Range(least=1)] = 2

    def __post_init__(self):
        check_ranges(self, "checkpoint")


class Checkpoints:
    """The checkpoints of one run, one folder per step. Use as a context manager; every process makes the same calls.

    A step is written to a temporary folder and renamed when complete: a killed save leaves the previous step. Older
    steps are deleted only after the newer one is committed. Each leaf's checksum is saved with it: a damaged file is
    refused even where the array format would read it as zeros.

    Args:
      folder: where the steps go; made if absent.
      keep: the newest steps that stay on disk.
      identity: what identifies the run, JSON-able. It must be equal when restoring; only "base", the fingerprint, may
        be an older one.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, identity: dict[str, Any]):
        import orbax.checkpoint as ocp

        quieten_orbax()
        self.folder = str(folder) if "://" in str(folder) else os.path.abspath(folder)
        self.identity = json.loads(json.dumps(identity))
        self._done: set[int] = set()  # steps that this process saved or restored
        self._saving = 0  # the step of the latest save
        try:
            self._manager = ocp.CheckpointManager(
                self.folder,
                # Lightweight: a damaged metadata file of one step must not stop the others from being listed.
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep, cleanup_tmp_directories=True, lightweight_initialize=True, create=True
                ),
                item_handlers={
                    "train": ocp.StandardCheckpointHandler(),
                    "opt": ocp.StandardCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise UserError(f"cannot use the checkpoint folder {self.folder} ({_reason(error)})") from error
        self._failed: list[BaseException] = []  # of the save in progress
        if jax.process_count() > 1:
            self._remember_failures()
        self._found = set(self.steps())  # an earlier run's; any other step is another process's

    def save(self, step: int, trainable: Any, rest: Any, cursor: dict[str, Any]) -> None:
        """Starts writing one step and returns as soon as the arrays are copied to the host.

        Args:
          step: updates done so far. A step that this process has saved or restored is not written again.
          trainable: tree of arrays.
          rest: any pytree of arrays: optimizer state, step, rng (typed PRNG keys included).
          cursor: JSON-able position in the data.

        Raises:
          UserError: this save or the one before it could not be written, an earlier run left this step in the folder,
            or another process writes to the same folder.
        """
        import orbax.checkpoint as ocp

        if step in self._done:
            return
        self.wait()
        if step in self.steps():
            if step not in self._found:
                raise UserError(self._second_writer(f"step {step} appeared there"))
            raise UserError(
                f"{self.folder} already has step {step} of an earlier run; delete {self._path(step)} to write it anew"
            )
        train, opt = storable(named(trainable)), storable(named(rest))
        meta = {
            "step": int(step),
            "cursor": cursor,
            "identity": self.identity,
            "leaves": {"train": describe(trainable), "opt": describe(rest)},
            "checksums": {"train": checksums(train), "opt": checksums(opt)},
        }
        meta |= {"format_version": FORMAT_VERSION, "crc32": _crc(meta)}
        arguments = ocp.args.Composite(
            train=ocp.args.StandardSave(unflatten(train)),
            opt=ocp.args.StandardSave(unflatten(opt)),
            meta=ocp.args.JsonSave(meta),
        )
        self._saving = step
        try:
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:
            self._raise(error)
        self._done.add(step)

    def restore(
        self, step: int | None, abstract_trainable: Any, abstract_rest: Any, mend: bool = False
    ) -> tuple[Any, Any, dict, int]:
        """Reads a step back, bit-equal, onto the shardings of the abstract leaves (any mesh).

        Args:
          step: which step; None takes the latest that is whole, and says which later ones are damaged.
          abstract_trainable: ShapeDtypeStructs (with sharding; without: the first local device) or arrays.
          abstract_rest: the same for the rest of the state. NumPy leaves are restored as NumPy arrays.
          mend: damaged later steps are renamed STEP.damaged, for a run to go on here and save those steps again.

        Returns:
          (trainable, rest, cursor, step).

        Raises:
          UserError: there is no such step, or it is damaged, of a newer format or another run, or its leaves do not
            fit.
        """
        self.wait()
        there = self.steps()
        if not there or (step is not None and step not in there):
            wanted = "" if step is None else f" of step {step}"
            raise UserError(f"no checkpoint{wanted} in {self.folder}; steps there: {there or 'none'}")
        damaged: dict[int, Damaged] = {}
        for one in reversed(there) if step is None else [step]:
            try:
                restored = self._read(one, abstract_trainable, abstract_rest)
            except Damaged as error:
                damaged[one] = error
                continue
            for later, error in damaged.items():
                self._pass_over(later, error, one, mend)
            self._done.add(one)
            return *restored, one
        newest, error = next(iter(damaged.items()))
        earlier = None if step is None else self._last_whole(newest, abstract_trainable, abstract_rest)
        remedy = "no earlier step is whole" if earlier is None else f"step {earlier} is whole and is taken next"
        raise UserError(
            f"the checkpoint of step {newest} in {self.folder} is damaged ({error}); "
            f"delete {self._path(newest)}: {remedy}"
        ) from error

    def steps(self) -> list[int]:
        """Steps that are committed on disk, ascending."""
        from orbax.checkpoint.utils import checkpoint_steps

        try:
            return sorted(checkpoint_steps(self.folder))
        except FileNotFoundError:  # another process removed the folder
            return []

    def latest(self) -> int | None:
        """The newest committed step, or None."""
        return max(self.steps(), default=None)

    def wait(self) -> None:
        """Blocks until the save in progress is committed.

        Raises:
          UserError: it could not be written (a full disk); the steps saved before are untouched.
        """
        try:
            while jax.process_count() > 1 and self._manager.is_saving_in_progress():
                if self._failed:
                    raise self._failed[0]
                time.sleep(POLL_SECONDS)
            self._manager.wait_until_finished()
        except Exception as error:
            self._raise(error)

    def _remember_failures(self) -> None:
        """Keeps the error of a save for `wait`: orbax shows it only after a barrier, which the others do not reach."""
        waited = self._manager._wait_for_checkpointers

        def remembered() -> None:
            try:
                waited()
            except BaseException as error:
                self._failed.append(error)
                raise

        self._manager._wait_for_checkpointers = remembered

    def close(self) -> None:
        """Commits the save in progress and stops orbax's threads (left open they print "Event loop is closed").

        Of several processes, one whose save failed does not wait for its threads: they wait for the others.

        Raises:
          UserError: as `wait`; orbax writes files of its own until its end.
        """
        try:
            self.wait()
        except BaseException:
            with contextlib.suppress(Exception):  # the save that failed tells more than what it leaves to be closed
                self._stop()
            raise
        try:
            self._stop()
        except Exception as error:
            self._raise(error)

    def _stop(self) -> None:
        if not self._failed:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except UserError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # the first error tells more than the failed save that followed it

    def _read(self, step: int, abstract_trainable: Any, abstract_rest: Any) -> tuple[Any, Any, dict]:
        meta = together(lambda: self._meta(step))
        trees = {"train": abstract_trainable, "opt": abstract_rest}
        wrong = [line for item, tree in trees.items() for line in misfits(meta["leaves"][item], describe(tree))]
        if wrong:
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} does not fit this run: {listed(wrong)}; "
                "use the config it was saved with, or start the run afresh"
            )
        wanted = {item: unflatten(abstract(named(tree))) for item, tree in trees.items()}
        loaded = together(lambda: {item: flatten(self._load(step, item, tree)) for item, tree in wanted.items()})
        together(lambda: check_sums({item: checksums(leaves) for item, leaves in loaded.items()}, meta["checksums"]))
        return *(rebuild(tree, loaded[item]) for item, tree in trees.items()), meta["cursor"]

    def _load(self, step: int, item: str, tree: Any = None) -> Any:
        # By the handlers: the manager's restore ends in a barrier, at which the others would wait for one that fails.
        import orbax.checkpoint as ocp
        from etils import epath

        place = epath.Path(self._path(step)) / item
        try:
            if tree is None:
                return ocp.JsonCheckpointHandler().restore(place)
            return ocp.StandardCheckpointHandler().restore(place, args=ocp.args.StandardRestore(tree))
        except jax.errors.JaxRuntimeError:
            raise  # the device's fault, not the file's
        except Exception as error:  # orbax and tensorstore raise any kind: ValueError, KeyError, ...
            if is_short(error):
                raise
            raise Damaged(_reason(error)) from error

    def _meta(self, step: int) -> Any:
        meta = self._load(step, "meta")
        if not isinstance(meta, dict) or not isinstance(version := meta.pop("format_version", None), int):
            raise Damaged("meta has no format version")
        if version > FORMAT_VERSION:
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} has format {version}, this code reads up "
                f"to {FORMAT_VERSION}; use the newer lowrank_jax that wrote it"
            )
        if meta.pop("crc32", None) != _crc(meta) or meta["step"] != step:
            raise Damaged("meta is not what was saved for this step")
        saved, ours = meta["identity"], self.identity
        differing = [key for key in sorted(saved.keys() | ours.keys()) if saved.get(key) != ours.get(key)]
        made, base = (str(identity.get("base")) for identity in (saved, ours))
        if "base" in differing and same(made, base, f"the checkpoint of step {step} in {self.folder}"):
            differing.remove("base")
        if differing:
            pairs = "; ".join(f"{key} was {_short(saved.get(key))}, now {_short(ours.get(key))}" for key in differing)
            raise UserError(f"the checkpoints in {self.folder} are of another run: {pairs}; give this run another name")
        return meta

    def _pass_over(self, step: int, error: Damaged, taken: int, mend: bool) -> None:
        """Says that a damaged step is not used, and renames it for `mend`."""
        line = f"the checkpoint of step {step} in {self.folder} is damaged ({error}); step {taken} before it is used"
        if mend:
            aside = f"{self._path(step)}.damaged"
            together(lambda: self._set_aside(step, aside))
            self._manager.reload()
            self._found = set(self.steps())
            line += f"; the damaged one is now {aside}"
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    def _set_aside(self, step: int, aside: str) -> None:
        from etils import epath

        if jax.process_index() == 0:
            try:
                if epath.Path(aside).exists():
                    epath.Path(aside).rmtree()
                epath.Path(self._path(step)).rename(aside)
            except OSError as error:
                raise UserError(f"{self._path(step)} is damaged and cannot be renamed; delete it") from error

    def _last_whole(self, before: int, abstract_trainable: Any, abstract_rest: Any) -> int | None:
        for step in reversed([s for s in self.steps() if s < before]):
            try:
                self._read(step, abstract_trainable, abstract_rest)
            except (Damaged, UserError):
                continue
            return step
        return None

    def _raise(self, error: Exception) -> NoReturn:
        # Storage faults are OSErrors, or tensorstore's ValueErrors "RESOURCE_EXHAUSTED: ..."; the rest is our fault.
        self._done.discard(self._saving)
        if is_short(error):
            raise error
        if not isinstance(error, OSError) and not re.match(r"[A-Z_]{5,}: ", str(error)):
            raise error
        code = _code(error)
        if code in TWO_WRITERS:
            raise UserError(self._second_writer(_reason(error))) from error
        remedy = "free space there or choose another folder" if code in NO_SPACE else "check the folder and its disk"
        raise UserError(
            f"the checkpoint of step {self._saving} could not be written to {self.folder} ({_reason(error)}); "
            f"{remedy}; steps saved before and untouched: {self.steps() or 'none'}"
        ) from error

    def _second_writer(self, seen: str) -> str:
        return (
            f"another process writes to {self.folder}, or clears it, at the same time ({seen}); stop one of them and "
            f"delete nothing: the steps there are whole: {self.steps() or 'none'}"
        )

    def _path(self, step: int) -> str:
        return f"{self.folder}/{step}"


def _code(error: BaseException) -> int | None:
    """The errno of a storage fault; of a tensorstore error by its first word or the system's message in it."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if text.startswith("RESOURCE_EXHAUSTED"):
        return errno.ENOSPC
    return next((code for code in (*NO_SPACE, *TWO_WRITERS) if os.strerror(code) in text), None)


def _crc(meta: dict) -> int:
    return zlib.crc32(json.dumps(json.loads(json.dumps(meta)), sort_keys=True).encode())


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _reason(error: BaseException) -> str:
    """One short line: tensorstore begins with the kind, ends with the cause, and appends its settings in brackets."""
    line = (str(error).strip().splitlines() or [""])[0].split(" [")[0]
    line = line if len(line) <= 160 else f"{line[:60]} ... {line[-90:]}"
    return f"{type(error).__name__}: {line}".rstrip(": ")
