"""Claims: one program at a time may write a run, until it releases its claim or ends. Here with lock files."""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import parse

LENT_VARIABLE = "LOWRANK_JAX_LENT_CLAIMS"  # tokens of the claims lent by the program that started this one
RENEW_SECONDS = 10.0  # a loop renews at each record, far more often than a write is needed
RECORD_BYTES = 1024  # of fixed size: a renewal is one write, which no reader sees in part


class Held(UserError):
    """Another program holds the claim on the run."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """The holder of a claim, and since when."""

    program: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid} on {self.host}) since {self.since}"


class Claim(Protocol):
    """The right to write one run. A holder that dies loses it: a lock on a file at once, a lease by its age."""

    name: str
    token: str  # of this acquisition; a program that is started with it in LENT_VARIABLE takes the same claim

    def take(self) -> bool:
        """Takes the claim, or the part in it that the parent program lent; False if another program holds it."""
        ...

    def renew(self) -> None:
        """Shows that the holder is alive; called at every record and checkpoint.

        Raises:
          Held: it was lost to another program: this one must write no more.
        """

    def record(self, result: dict) -> None:
        """Shows a run's record, which its folder has, to workers that cannot see the folder.

        Raises:
          Held: the claim was lost, or the run has a record there already.
        """

    def release(self, why: str = "") -> None:
        """Releases the claim; a lent one for this program alone. Does nothing if it is not held.

        Args:
          why: the run failed, and other workers shall not try it again.
        """

    def holder(self) -> Holder | None:
        """Who holds it, this program or another; None: nobody, or one who left no word."""
        ...

    def inherited(self) -> Sequence[int]:
        """Descriptors that a program which it is lent to must inherit; none where a token is enough."""
        ...


class FileClaim:
    """A claim as an flock on a file next to the run's folder, which removing that folder leaves in place.

    The lock ends with the last process that has it open. The file names the holder, and is removed with the claim; one
    left by a killed process is free.
    """

    def __init__(self, path: str | Path, program: str):
        self.path, self.program = Path(path), program
        self.name, self.token = self.path.stem, ""
        self._file: int | None = None
        self._lent, self._since, self._renewed = False, "", 0.0

    def take(self) -> bool:
        """See `Claim`."""
        if self._file is not None:
            return True
        return self._try() or self._again()

    def renew(self) -> None:
        """See `Claim`; takes the lock again where someone removed its file."""
        if self._file is None or time.monotonic() - self._renewed < RENEW_SECONDS:
            return
        if not self._in_place(self._file):
            self._close()
            if not self.take():
                raise Held(f"{self.name} was lost to {self._who()}: {self.path} was removed; stop one of the two")
        if not self._lent:
            self._write()
        self._renewed = time.monotonic()

    def record(self, result: dict) -> None:
        """See `Claim`; whoever can take the lock can read the folder."""

    def release(self, why: str = "") -> None:
        """See `Claim`; the next sweep tries a run that failed again."""
        if self._file is None:
            return
        if not self._lent and self._in_place(self._file):
            self.path.unlink(missing_ok=True)  # before the lock is released: nobody else has it then
        self._close()

    def holder(self) -> Holder | None:
        """See `Claim`."""
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError:
            return None
        try:
            if self._file is None and _lock(file, fcntl.LOCK_SH):
                return None  # left by a killed process
            record = _read(file)
        finally:
            os.close(file)
        return holder_of(record)

    def inherited(self) -> Sequence[int]:
        """See `Claim`: with the lock's descriptor a run stays claimed even if the lending program is killed."""
        return () if self._file is None else (self._file,)

    def _again(self) -> bool:
        time.sleep(0.02)  # another program that reads the holder takes the lock for microseconds
        return self._try()

    def _try(self) -> bool:
        while True:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                locked = _lock(file, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(f"cannot write {self.path} ({error.strerror}); check --workdir") from error
            if not locked and (token := _read(file).get("token")) not in lent_tokens():
                os.close(file)
                return False
            if self._in_place(file):
                break
            os.close(file)  # its holder removed it between our open and our lock
        self._file, self._lent, self._renewed = file, not locked, time.monotonic()
        self.token = uuid.uuid4().hex if locked else token
        self._since = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        if locked:
            self._write()
        return True

    def _write(self) -> None:
        record = {
            "program": self.program, "pid": os.getpid(), "host": socket.gethostname(), "since": self._since,
            "token": self.token, "renewed": time.time(),
        }  # fmt: skip
        assert self._file is not None  # taken
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a word of whose it is
            os.pwrite(self._file, json.dumps(record).ljust(RECORD_BYTES - 1).encode() + b"\n", 0)

    def _in_place(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        assert self._file is not None  # taken
        os.close(self._file)
        self._file = None

    def _who(self) -> str:
        return str(self.holder() or "another process")


def holder_of(record: Mapping[str, Any]) -> Holder | None:
    """The holder that a claim's record names; None where it is incomplete."""
    try:
        return Holder(*(record[field.name] for field in dataclasses.fields(Holder)))
    except KeyError:
        return None


def lent_tokens() -> list[str]:
    """Tokens of the claims that the program which started this one has lent it."""
    return [token for token in os.environ.get(LENT_VARIABLE, "").split(",") if token]


def claim_of(folder: str | Path, program: str) -> Claim:
    """The claim on the run in `folder`, for a program under its name in messages."""
    folder = Path(folder)
    return FileClaim(folder.with_name(f"{folder.name}.lock"), program)


@contextlib.contextmanager
def held(claims: Sequence[Claim]) -> Iterator[None]:
    """Holds all the claims, or none.

    Raises:
      Held: another program holds one of them; says who, and since when.
    """
    with contextlib.ExitStack() as taken:
        for claim in claims:
            if not claim.take():
                raise Held(
                    f"{claim.name} is being written by {claim.holder() or 'another process'}; "
                    "wait for it to end, or choose another --name"
                )
            taken.callback(claim.release)
        yield


def lend(claims: Sequence[Claim], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Options of subprocess.Popen that lend these claims, which this program holds, to the program it starts."""
    tokens = ",".join(claim.token for claim in claims)
    return {
        "env": {**(os.environ if environment is None else environment), LENT_VARIABLE: tokens},
        "pass_fds": [file for claim in claims for file in claim.inherited()],
    }


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: int) -> dict[str, Any]:
    try:
        record = parse(os.pread(file, RECORD_BYTES, 0))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
