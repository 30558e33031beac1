"""Claims on runs that workers of several hosts race for: objects below a shared root, with a heartbeat and a lease.

Of run NAME, claims/NAME/000001.json says who took it; its holder writes .beat again and again, and .end where it ends
without a record. A claim is created only if absent, and a dead holder's run is taken by creating the next number: one
worker gets it. Which holder is dead is told by a heartbeat that does not change for the length of the lease by the
observer's own clock, so hosts' clocks may differ. results/NAME.json, created only if absent too, ends the race: there
is one record a run.
"""

import dataclasses
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.records import claims, json_files
from experiments.records.checks import check_record
from experiments.records.store import Store, StoreError
from lowrank_jax.core.errors import LOST
from lowrank_jax.core.json_text import NotJson, parse

ROOT_VARIABLE = "LOWRANK_JAX_ROOT"  # a sweep's root, for the runs that it starts
LEASE_SECONDS = 120.0
BEATS = 6  # heartbeats in the length of a lease
CLAIMS, RESULTS = "claims", "results"
RELEASED, FAILED = "released", "failed"


class LostRoot(StoreError):
    """A run of a sweep cannot reach the root; the sweep starts it again."""

    status = LOST


class Root:
    """What workers share below a root: claims, with what this process has seen of them, and results.

    Args:
      url: a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX.
      lease_seconds: of the claims that are taken here; a holder that is silent for so long counts as dead.
      store: by default that of the url.
    """

    def __init__(self, url: str, lease_seconds: float = LEASE_SECONDS, store: Store | None = None):
        self.url, self.lease_seconds = url, lease_seconds
        self.store = store or Store(url)
        self._results: dict[str, dict] = {}  # they never change
        self._numbers: dict[str, int] = {}  # name -> the newest claim seen
        self._beats: dict[str, tuple[int, bytes | None, float]] = {}  # name -> claim, its heartbeat, seen first when
        self._first: dict[str, int] = {}  # name -> the newest claim when this process first looked

    def newest(self, name: str) -> int:
        """The number of a run's newest claim; 0 where it has none."""
        number = self._numbers.get(name, 0)
        while self.store.read(_claim(name, number + 1)) is not None:
            number += 1
        self._numbers[name] = number
        self._first.setdefault(name, number)
        return number

    def record_of(self, name: str, number: int) -> dict[str, Any]:
        """Who took a claim; {} where it cannot be read yet."""
        return _parsed(self.store.read(_claim(name, number)))

    def end_of(self, name: str, number: int) -> dict[str, Any]:
        """How a claim ended, {"state", "why"}; {} while it is held."""
        return _parsed(self.store.read(_claim(name, number, "end")))

    def silent(self, name: str, number: int, seconds: float) -> bool:
        """Whether this process has watched a claim's heartbeat for so long without a change."""
        beat = self.store.read(_claim(name, number, "beat"))
        if self._beats.get(name, (0, None, 0.0))[:2] != (number, beat):
            self._beats[name] = (number, beat, time.monotonic())
        return time.monotonic() - self._beats[name][2] >= seconds

    def failure(self, name: str, again: bool = False) -> str:
        """Why a run failed, where no worker shall try it again; "" for any other run.

        Args:
          again: runs that had failed before this process first looked may be tried once more.
        """
        number = self.newest(name)
        if number and (not again or number > self._first[name]):
            end = self.end_of(name, number)
            return str(end.get("why") or "no reason is recorded") if end.get("state") == FAILED else ""
        return ""

    def holder(self, name: str) -> claims.Holder | None:
        """Who holds a run, alive or dead; None: nobody."""
        number = self.newest(name)
        if not number or self.end_of(name, number):
            return None
        return claims.holder_of(self.record_of(name, number))

    def result(self, name: str) -> dict | None:
        """A run's record; None where it has none.

        Raises:
          UserError: it has a field of another type than a run writes.
        """
        if name not in self._results:
            record = _parsed(self.store.read(_result(name)))
            if not record:
                return None
            check_record(record, f"{self.url}/{_result(name)}", "remove it, and the run is trained again")
            self._results[name] = record
        return self._results[name]

    def results(self) -> list[dict]:
        """Every record below the root, by name."""
        names = [Path(name).stem for name in self.store.names(RESULTS)]
        return [record for name in names if (record := self.result(name))]


class Lease:
    """A `Claim` on a run below a root. A thread writes its heartbeat from `take` to `release`."""

    def __init__(self, root: Root, name: str, program: str):
        self.root, self.name, self.program, self.token = root, name, program, ""
        self.taken_from: claims.Holder | None = None  # a dead one
        self._number, self._lent, self._lost, self._recorded = 0, False, False, False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self) -> bool:
        """See `Claim`; a claim whose holder has been silent for its lease is taken over.

        Raises:
          LostRoot: a program that lends its claims waits for this one, and the root cannot be reached.
          StoreError: the root cannot be reached.
        """
        try:
            return bool(self._number) or self._take()
        except StoreError as error:
            if claims.lent_tokens():
                raise LostRoot(str(error)) from error
            raise

    def _take(self) -> bool:
        number = self.root.newest(self.name)
        record = self.root.record_of(self.name, number) if number else {}
        if number and record.get("token", "") in claims.lent_tokens():
            return self._begin(number, record, lent=True)
        if number and not self.root.end_of(self.name, number):
            if not self.root.silent(self.name, number, record.get("lease", self.root.lease_seconds)):
                return False
            self.taken_from = claims.holder_of(record)
        record = {
            **dataclasses.asdict(claims.Holder(self.program, os.getpid(), socket.gethostname(), _now())),
            "token": uuid.uuid4().hex,
            "lease": self.root.lease_seconds,
        }
        if not self.root.store.create(_claim(self.name, number + 1), json.dumps(record).encode()):
            return False
        return self._begin(number + 1, record, lent=False)

    def renew(self) -> None:
        """See `Claim`. While the root cannot be reached, the holder goes on: what it may record is decided there."""
        if self._number and self._lost:
            raise claims.Held(
                f"{self.name} was taken over by {self.holder() or 'another worker'}: this one was silent for longer "
                "than its lease; it goes on there"
            )

    def check(self) -> None:
        """`renew` after asking the root.

        Raises:
          Held: the claim is another worker's by now.
          StoreError: the root cannot be reached.
        """
        if self._number:
            self._look()
        self.renew()

    def record(self, result: dict) -> None:
        """See `Claim`: creates the run's record, if there is none.

        Raises:
          Held: the claim is another worker's by now.
          StoreError: the root cannot be reached.
        """
        self.check()
        content = json.dumps(json_files.finite(result), allow_nan=False).encode()
        if not self.root.store.create(_result(self.name), content):
            raise claims.Held(f"{self.name} has a record below {self.root.url} already; this one is left out")
        self._recorded = True

    def release(self, why: str = "") -> None:
        """See `Claim`. A lent one stays the lender's, and lives on through its heartbeat, or ends with its lease."""
        if not self._number:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        done = self._recorded or (not why and self.root.result(self.name) is not None)
        if not (self._lent or self._lost or done):  # of a run with a record, which another worker may not see yet, none
            end = {"state": FAILED if why else RELEASED, "why": why}
            self.root.store.create(_claim(self.name, self._number, "end"), json.dumps(end).encode())
        self._number = 0

    def holder(self) -> claims.Holder | None:
        """See `Claim`."""
        return self.root.holder(self.name)

    def inherited(self) -> Sequence[int]:
        """See `Claim`."""
        return ()

    def _begin(self, number: int, record: dict[str, Any], lent: bool) -> bool:
        self._number, self._lent, self.token = number, lent, record["token"]
        self._beat()
        self._thread = threading.Thread(target=self._watch, args=(record["lease"] / BEATS,), daemon=True)
        self._thread.start()
        return True

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds) and not self._lost:
            try:
                self._look()
                self._beat()
            except StoreError:  # an outage: the next heartbeat may get through
                continue

    def _look(self) -> None:
        """Notes whether another worker has taken the run over."""
        if self.root.store.read(_claim(self.name, self._number + 1)) is not None:
            self._lost = True

    def _beat(self) -> None:
        self.root.store.replace(_claim(self.name, self._number, "beat"), uuid.uuid4().hex.encode())


class Both:
    """The lock on a run's folder and the lease on its name as one claim: this host's programs, and other hosts'."""

    def __init__(self, lock: claims.Claim, lease: Lease):
        self.lock, self.lease, self.name = lock, lease, lease.name
        self.token = ""

    def take(self) -> bool:
        """See `Claim`: the lock first, which asks no server."""
        if not self.lock.take():
            return False
        try:
            taken = self.lease.take()
        except BaseException:
            self.lock.release()
            raise
        if not taken:
            self.lock.release()
        self.token = f"{self.lock.token},{self.lease.token}"
        return taken

    def renew(self) -> None:
        """See `Claim`."""
        self.lock.renew()
        self.lease.renew()

    def record(self, result: dict) -> None:
        """See `Claim`."""
        self.lease.record(result)

    def release(self, why: str = "") -> None:
        """See `Claim`."""
        try:
            self.lease.release(why)
        finally:
            self.lock.release()

    def holder(self) -> claims.Holder | None:
        """See `Claim`."""
        return self.lease.holder() or self.lock.holder()

    def inherited(self) -> Sequence[int]:
        """See `Claim`."""
        return self.lock.inherited()


def claim_of(folder: str | Path, program: str, root: Root | None = None) -> claims.Claim:
    """The claim on the run in `folder`: its lock, and with a root, or below a sweep that has one, its lease too.

    Args:
      root: by default that of the sweep which started this program, if one did.
    """
    lock = claims.claim_of(folder, program)
    if root is None and (url := os.environ.get(ROOT_VARIABLE)):
        root = Root(url)
    return Both(lock, Lease(root, Path(folder).name, program)) if root else lock


def check(claim: claims.Claim) -> None:
    """`Lease.check` of a claim that has a lease."""
    if isinstance(claim, Both):
        claim.lease.check()


def _claim(name: str, number: int, kind: str = "json") -> str:
    return f"{CLAIMS}/{name}/{number:06d}.{kind}"


def _result(name: str) -> str:
    return f"{RESULTS}/{name}.json"


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = parse(content, finite=True) if content else {}
    except NotJson:
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
