"""Claims below a shared root: races over a bad store, takeovers, records made once, what a root must be able to do."""

import errno
import os
import random
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from drills import workers

from experiments.records import claims, leases, store
from experiments.records.leases import Lease, Root
from lowrank_jax.core.errors import UserError


class BadBucket:
    """An object store in memory whose reads are late and whose requests fail, before or after they were carried out.

    Args:
      delay: seconds after which a write is seen by reads; creating is exact at once, as in real stores.
      failing: share of requests that fail.
    """

    def __init__(self, delay=0.0, failing=0.0, seed=0):
        self.objects, self.lock = {}, threading.Lock()
        self.delay, self.failing, self.draw = delay, failing, random.Random(seed)
        self.tried = 0

    def create(self, name, content):
        with self._request(), self.lock:
            if name in self.objects:
                raise FileExistsError(name)
            self.objects[name] = [(time.monotonic(), content)]

    def replace(self, name, content):
        with self._request(), self.lock:
            self.objects.setdefault(name, []).append((time.monotonic(), content))

    def read(self, name):
        with self._request(), self.lock:
            seen = [content for at, content in self.objects.get(name, ()) if at <= time.monotonic() - self.delay]
        if not seen:
            raise FileNotFoundError(name)
        return seen[-1]

    def names(self, folder):
        with self._request(), self.lock:
            return sorted(name for name in self.objects if name.startswith(f"{folder}/"))

    def _request(self):
        before, after = (self.draw.random() < self.failing / 2 for _ in range(2))
        self.tried += 1

        class Request:
            def __enter__(self):
                if before:
                    raise ConnectionError("503 SlowDown")

            def __exit__(self, kind, *_):
                if after and kind is None:
                    raise TimeoutError("no answer")

        return Request()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(store, "PAUSE_SECONDS", 0.002)


@pytest.fixture
def clock(monkeypatch):
    """clock[0], which `leases` takes for the time; no heartbeat comes by itself."""
    now = [0.0]
    monkeypatch.setattr(leases, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Lease, "_watch", lambda *_: None)
    return now


def rooted(files, seconds=60.0):
    return Root("memory", seconds, store.Store("memory", files))


def result(name, by):
    return {"name": name, "status": "finished", "message": str(by)}


def test_workers_race_over_a_store_that_is_late_and_fails(quick, monkeypatch):
    """Each cell is trained once and recorded once, although a fifth of all requests fail and reads are late."""
    monkeypatch.setattr(store, "TRIES", 12)
    files, names = BadBucket(delay=0.01, failing=0.2, seed=3), [f"cell-{i}" for i in range(5)]
    trained, faults = [], []

    def worker(number):
        try:
            root, left = rooted(files), set(names)
            while left:
                for name in sorted(left):
                    if root.result(name):
                        left.discard(name)
                        continue
                    lease = Lease(root, name, f"worker{number}")
                    if lease.take():
                        if not root.result(name):
                            trained.append(name)
                            lease.record(result(name, number))
                        lease.release()
                time.sleep(0.002)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert sorted(trained) == names
    assert all(len(writes) == 1 for name, writes in files.objects.items() if name.startswith("results/"))
    assert {one["name"] for one in rooted(files).results()} == {*names}


def test_a_silent_holder_is_taken_over_and_records_nothing_afterwards(clock):
    """By the observer's clock alone; a heartbeat in time keeps the claim; the second record is refused."""
    files = BadBucket()
    old, new = Lease(rooted(files), "cell", "old"), Lease(rooted(files), "cell", "new")
    assert old.take()
    for _ in range(3):
        assert not new.take()
        clock[0] += 59
        assert not new.take()
        old._beat()
        clock[0] += 59
    assert not new.take()
    clock[0] += 60
    assert new.take()
    assert new.taken_from.program == "old"
    assert rooted(files).holder("cell").program == "new"
    with pytest.raises(claims.Held, match=r"cell was taken over by new \(pid"):
        old.record(result("cell", "old"))
    with pytest.raises(claims.Held):
        old.renew()
    old.release("exit status 3")
    assert new.holder().program == "new"
    new.record(result("cell", "new"))
    new.release()
    assert rooted(files).result("cell")["message"] == "new"
    assert not any(name.endswith(".end") for name in files.objects)  # nobody may take what is done


def test_a_heartbeat_that_cannot_be_written_stops_nothing_but_the_record_waits_for_the_root(quick, clock):
    files = BadBucket()
    lease = Lease(rooted(files), "cell", "worker")
    assert lease.take()
    files.failing = 2.0
    lease.renew()
    with pytest.raises(store.StoreError, match=r"--root=memory cannot be used \(503 SlowDown\); check it"):
        lease.record(result("cell", 1))
    files.failing = 0.0
    lease.record(result("cell", 1))
    assert rooted(files).result("cell")


def test_a_failure_is_told_to_the_other_workers_and_tried_again_once(clock):
    files = BadBucket()
    lease = Lease(rooted(files), "cell", "worker")
    assert lease.take()
    lease.release("exit status 3")
    assert rooted(files).failure("cell") == "exit status 3"
    again = rooted(files)
    assert again.failure("cell", again=True) == ""
    second = Lease(again, "cell", "worker")
    assert second.take()
    second.release("exit status 4")
    assert again.failure("cell", again=True) == "exit status 4"
    freed = Lease(again, "cell", "worker")
    assert freed.take()
    freed.release()
    assert again.failure("cell") == ""
    assert again.holder("cell") is None


def test_a_run_takes_the_lease_that_its_sweep_lends(tmp_path, monkeypatch):
    """Through the environment, as `experiments.run` finds it; its part ends with it, and the sweep's goes on."""
    root = Root(str(tmp_path / "root"))
    ours = leases.claim_of(tmp_path / "one" / "cell", "sweep", root)
    assert ours.take()
    lent = claims.lend([ours], {leases.ROOT_VARIABLE: root.url})["env"]
    other = leases.claim_of(tmp_path / "two" / "cell", "run", Root(root.url))
    assert not other.take()
    assert not list((tmp_path / "two").iterdir())  # nor the lock on the folder
    for name, value in lent.items():
        monkeypatch.setenv(name, value)
    inner = leases.claim_of(tmp_path / "two" / "cell", "run")
    assert inner.take()
    inner.record(result("cell", "run"))
    inner.release()
    assert ours.holder().pid == os.getpid()
    with pytest.raises(claims.Held, match="has a record below"):
        ours.record(result("cell", "sweep"))
    ours.release()


@pytest.mark.parametrize("carried_out", [True, False])
def test_an_object_whose_creation_failed_is_known_by_its_content(quick, carried_out):
    """As of a request that timed out, or that fsspec has repeated by itself."""
    files, failed = BadBucket(), []

    class Once:
        read = files.read

        def create(self, name, content):
            if not failed:
                failed.append(name)
                if carried_out:
                    files.create(name, content)
                raise TimeoutError("no answer")
            files.create(name, content)

    shared = store.Store("memory", Once())
    assert shared.create("a", b"mine")
    assert not shared.create("a", b"other")


def test_a_root_must_refuse_to_create_an_object_twice(tmp_path, monkeypatch):
    store.Store("memory://here").probe()
    store.Store(str(tmp_path)).probe()
    careless = BadBucket()
    careless.create = careless.replace
    with pytest.raises(UserError, match="without If-None-Match"):
        store.Store("s3://mine", careless).probe()

    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(UserError, match="has no hard links, by which claims are made; use another --root"):
        store.Store(str(tmp_path)).probe()


def test_wrong_roots_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for url, words in (
        (f"{tmp_path}/file", "is not a folder"),
        ("s3://", "names no bucket"),
        ("s3://mine/sweep", r"pip install 'lowrank_jax\[s3\]'"),
        ("nothing://x/y", "nothing"),
    ):
        with pytest.raises(UserError, match=words):
            Root(url)


def test_killed_workers_leave_one_record_a_cell(tmp_path):
    """Processes, as of four hosts, killed -9 alone or with their run; `python -m tests.drills.workers` kills 50."""
    found = workers.drill(tmp_path, str(tmp_path / "root"), workers=4, cells=4, kills=3, seed=2, seconds=0.3, lease=3.0)
    assert found["records"] == 4
    assert found["workers that ended well"] == 4
    assert found["begun again after their record"] == found["files that differ from the root"] == 0
    assert found["runs begun"] >= found["runs recorded"]
