"""One writer a run: who is refused, what a sweep lends, and what a loop sees of a lost claim."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.records import claims, run_folder
from experiments.records.results import load_results
from experiments.session.experiment import Experiment

ROOT = Path(__file__).parents[2]
# Takes the claim on a run's folder and waits.
HOLD = """
import sys, time
from experiments.records import claims
claim = claims.claim_of(sys.argv[1], "experiments.hold")
print(claim.take(), flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def holder(start):
    """holder(folder) -> a process that holds the claim on it."""

    def call(folder):
        process = start(None, HOLD, folder, 600)
        assert process.stdout.readline() == "True\n", process.stderr.read()
        return process

    return call


def refused(ended) -> str:
    """The one line of a refusal."""
    assert ended.status == 2, ended
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1, ended.err
    return ended.err


# ---- programs ----


def test_a_second_run_of_one_name_is_refused_and_the_first_ones_record_is_whole(
    start, run, toy, records, tmp_path, monkeypatch
):
    """Two processes of one config: the second, --fresh or not, says who holds the run, and writes nothing."""
    folder, words = tmp_path / "run", toy(tmp_path, train__eval_steps="()")
    place, batches = Experiment.place, []

    def meanwhile(self, batch):
        batches.append(batch)
        for more in ((), ("--fresh",)) if len(batches) == 4 else ():
            second = start("run", *words, *more)
            _, err = second.communicate(timeout=120)
            line = refused(SimpleNamespace(status=second.returncode, err=err))
            assert f"run is being written by experiments.run (pid {os.getpid()} on {socket.gethostname()}) sin" in line
            assert "--name" in line
        return place(self, batch)

    monkeypatch.setattr(Experiment, "place", meanwhile)
    first = run(train__eval_steps="()")
    assert first.status == 0, first.err
    assert "run: finished" in first.out
    assert len(batches) == 6
    assert [line["step"] for line in records(folder) if "loss" in line] == [*range(1, 7)]
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert len(result["losses"]) == 6
    assert result["evaluations"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # the claim leaves nothing behind


def test_a_killed_holder_frees_its_claim(run, holder, tmp_path):
    held = holder(tmp_path / "run")
    assert f"experiments.hold (pid {held.pid} on " in refused(run())
    assert not (tmp_path / "run").exists()
    held.kill()
    held.wait()
    assert (tmp_path / "run.lock").exists()
    assert claims.claim_of(tmp_path / "run", "test").holder() is None
    ended = run()
    assert ended.status == 0, ended.err
    assert not (tmp_path / "run.lock").exists()


def test_a_finished_run_is_read_without_its_claim(run, straight, holder, tmp_path):
    ended = straight()
    holder(ended.folder)
    again = run()
    assert (again.status, again.err) == (0, "")
    assert again.out.startswith("run: finished already")
    assert "experiments.hold" in refused(run("--fresh"))
    assert json.loads((ended.folder / "result.json").read_text())["status"] == "finished"
    assert [found["name"] for found in load_results([tmp_path])] == ["run"]  # and not its lock


def test_trials_claim_every_name_or_none(program, tmp_path, monkeypatch):
    from experiments import trials
    from experiments.cli import complete_file
    from experiments.config.plain import to_plain

    monkeypatch.setattr(trials, "train", lambda *_: pytest.fail("it trained"))
    monkeypatch.chdir(ROOT)
    plain = to_plain(complete_file("configs/mora_uuid.py:method=lora"))
    cells = tmp_path / "cells.json"
    cells.write_text(json.dumps([{"name": name, "config": plain} for name in ("one", "two")]))
    other = claims.claim_of(tmp_path / "two", "experiments.run")
    assert other.take()
    line = refused(program("trials", f"--cells={cells}", f"--workdir={tmp_path}", "--fresh"))
    assert f"two is being written by experiments.run (pid {os.getpid()} on " in line
    other.release()
    assert [path.name for path in tmp_path.iterdir()] == ["cells.json"]


def test_the_loop_renews_at_records_and_checkpoints_and_ends_where_the_claim_is_lost(run, records, monkeypatch):
    calls = []

    def renew(self):
        calls.append(self.name)
        if len(calls) > 4:
            raise claims.Held("run was lost to experiments.run; stop one of the two")

    monkeypatch.setattr(claims.FileClaim, "renew", renew)
    ended = run(checkpoint__every=2, train__eval_steps="()")
    assert ended.status == 2
    assert "run was lost to experiments.run" in ended.err
    # Two records, the checkpoint of step 2, one more record; the fifth is lost.
    assert [line["step"] for line in records(ended.folder)] == [1, 2, 3]
    assert not (ended.folder / "result.json").exists()


# ---- the claim itself ----


def child(code: str, folder, **options) -> str:
    """What a program prints that sees the project."""
    words = [sys.executable, "-c", "import sys; from experiments.records import claims\n" + code, str(folder)]
    environment = {**options.pop("env", os.environ), "PYTHONPATH": str(ROOT)}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=environment, **options).stdout.strip()


def test_a_claim_is_lent_to_a_program_and_its_part_goes_with_it(tmp_path):
    """As a sweep lends a cell: the program takes it, others do not, and the lender still holds it afterwards."""
    take = "claim = claims.claim_of(sys.argv[1], 'child'); print(claim.take()); claim.renew(); claim.release()"
    claim = claims.claim_of(tmp_path / "cell", "experiments.sweep")
    assert claim.take()
    assert child(take, tmp_path / "cell") == "False"
    assert child(take, tmp_path / "cell", **claims.lend([claim])) == "True"
    assert child(take, tmp_path / "cell") == "False"
    assert claim.holder().pid == os.getpid()
    stale = claims.lend([claim])["env"]
    claim.release()
    other = claims.claim_of(tmp_path / "cell", "another")
    assert other.take()
    assert child(take, tmp_path / "cell", env=stale) == "False"  # that token is of a claim that is over
    other.release()


def test_several_claims_are_held_together_or_not_at_all(tmp_path):
    one, two = (claims.claim_of(tmp_path / name, "test") for name in ("one", "two"))
    other = claims.claim_of(tmp_path / "two", "another")
    assert other.take()
    with pytest.raises(claims.Held, match="two is being written by another"), claims.held([one, two]):
        pass
    assert not (tmp_path / "one.lock").exists()
    other.release()
    with claims.held([one, two]):
        assert not claims.claim_of(tmp_path / "one", "another").take()
    assert not list(tmp_path.iterdir())


def test_a_removed_file_is_taken_anew_or_the_claim_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "RENEW_SECONDS", 0)
    claim = claims.claim_of(tmp_path / "run", "first")
    assert claim.take()
    (tmp_path / "run.lock").unlink()
    claim.renew()
    assert claim.holder().program == "first"
    (tmp_path / "run.lock").unlink()
    other = claims.claim_of(tmp_path / "run", "second")
    assert other.take()
    with pytest.raises(claims.Held, match="run was lost to second"):
        claim.renew()
    claim.release()
    assert other.holder().program == "second"  # what is not ours is left
    other.release()


def test_a_lock_on_a_file_that_its_holder_removed_is_no_claim(tmp_path, monkeypatch):
    """The holder releases between our open and our lock: the lock would be on a file that nobody else sees."""
    lock, seen = claims._lock, []

    def late(file, kind):
        if not seen:
            (tmp_path / "run.lock").unlink()
        seen.append(kind)
        return lock(file, kind)

    monkeypatch.setattr(claims, "_lock", late)
    claim = claims.claim_of(tmp_path / "run", "test")
    assert claim.take()
    assert len(seen) == 2
    assert not claims.claim_of(tmp_path / "run", "another").take()
    claim.release()


def test_a_place_without_locks_is_named(tmp_path, monkeypatch):
    def none(file, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(claims.UserError, match=r"run\.lock \(Operation not supported\); check --workdir"):
        claims.claim_of(tmp_path / "run", "test").take()


def test_a_run_called_as_anothers_claim(tmp_path):
    claim = claims.claim_of(tmp_path / "run", "test")
    assert claim.take()
    with pytest.raises(claims.UserError, match="is a file; choose another --name"):
        run_folder.look(tmp_path / "run.lock", {})
    claim.release()
