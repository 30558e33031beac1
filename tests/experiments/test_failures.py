"""Sweeps that share a folder: a cell that failed in one is not tried by others that run at the same time."""

import fcntl
import sys

import pytest
from fakes import FAKE_TRIALS
from sweeps import behave, make, ran

from experiments.config import faults
from experiments.config.faults import Faults
from experiments.records import claims
from experiments.records.failures import MOST, Failures
from experiments.sweeps import engine, preview
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError, memory_named
from lowrank_jax.train.compiled.memory import TooLarge

FAILING = {"fft-lr0.0003": "fail", "lora-r8-lr0.003": "silent"}


def worker(place, again=False, together=1):
    grid, said = Grid(str(place / "config.py"), str(place / "grid.py")), []
    return engine.Sweep(grid, str(place / "runs"), None, said.append, retry_failed=again, together=together), said


@pytest.fixture
def trials(place, monkeypatch):
    (place / "fake_trials.py").write_text(FAKE_TRIALS)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    return place


def during(sweep, act):
    """Calls `act` when all cells of a sweep have a state, before it ends."""
    end = sweep.known.end
    sweep.known.end = lambda: (act(), end())


def test_one_try_is_enough_for_sweeps_that_run_together(place):
    """One that began before, and one that comes while the first still runs: each counts the cells as failed."""
    behave(place, **FAILING)
    (first, _), (second, told), late, again = worker(place), worker(place), [], []

    def meanwhile():
        late.append(worker(place))
        again.append(worker(place, again=True)[0])

    during(first, meanwhile)
    cells = [cell for cell in first.grid.select() if not cell.trials]
    states = first.run(cells)
    names = ran(place)
    failed = [name for name, state in states.items() if state.startswith("failed")]
    assert len(failed) == 2
    for other, said in ((second, told), *late):
        found = other.run(cells)
        assert [name for name, state in found.items() if state.startswith("failed: ")] == failed
        assert [
            line.split("failed on a worker (")[1].split(" in process ")[0] for line in said if "worker" in line
        ] == [
            "exit status 3",
            "it ended without a result",
        ]
        assert sum(line.endswith("; --retry_failed tries it again") for line in said) == 2
    assert ran(place) == names
    behave(place)
    assert set(again[0].run(cells).values()) == {"finished"}
    assert ran(place)[len(names) :] == failed
    assert not [*(place / "runs").glob("*.failed*")]


def test_a_sweep_that_starts_later_tries_again(place):
    """What was wrong may be mended: failures of sweeps that have ended do not count, though their files are there."""
    behave(place, **FAILING)
    first, _ = worker(place)
    cells = [cell for cell in first.grid.select() if not cell.trials]
    first.run(cells)
    before = len(ran(place))
    second, said = worker(place)
    assert sum(state.startswith("failed") for state in second.run(cells).values()) == 2
    assert len(ran(place)) == before + 2
    assert not any("on a worker" in line for line in said)


def test_cells_of_the_same_mistake_are_not_tried_by_another_sweep_either(place):
    """All cells have the base and the task of the one that failed: one sweep tries one cell, and prints one line."""
    behave(place, **{"": "mistake"})
    (first, _), (second, said) = worker(place), worker(place)
    cells = [cell for cell in first.grid.select() if not cell.trials]
    name = cells[0].name
    for sweep in (first, second):
        states = sweep.run(cells)
        assert states[name].startswith("failed: exit status 2")
        assert {states[cell.name] for cell in cells[1:]} == {f"failed: as {name}"}
    assert ran(place) == [name]
    assert said[1] == f"[2/5] {cells[1].name}: not run; it would end with the error of {name}"


@pytest.mark.parametrize("ending", ["here", "traceback"])
def test_what_one_device_lacks_is_tried_by_another_sweep(place, ending):
    """A sweep on a broken or a full GPU ends its own cells alone."""
    behave(place, **{"": ending})
    first, _ = worker(place)
    cells = [cell for cell in first.grid.select() if not cell.trials]

    def meanwhile():
        behave(place)
        assert set(worker(place)[0].run(cells).values()) == {"finished"}

    during(first, meanwhile)
    assert all(state.startswith("failed: exit status") for state in first.run(cells).values())
    assert len(ran(place)) == 2 * len(cells)


def test_a_lack_of_memory_is_told_as_of_this_machine(tmp_path, monkeypatch):
    file = tmp_path / "fault.json"
    monkeypatch.setenv(faults.VARIABLE, str(file))
    with pytest.raises(UserError) as short, memory_named("a step"):
        raise MemoryError
    for error in (short.value, TooLarge("needs more")):
        faults.tell(error)
        assert Faults(file).take("a", {"base": 1}) is None
    faults.tell(UserError("a wrong value"))
    assert not file.exists()


def test_a_group_that_failed_is_not_tried_by_another_sweep(trials):
    behave(trials, **{"x": "y"})
    (first, _), (second, said) = worker(trials, together=8), worker(trials, together=8)
    cells = [cell for cell in first.grid.select() if not cell.trials]
    for sweep in (first, second):
        assert all(state.startswith("failed: exit status 3") for state in sweep.run(cells).values())
    assert len((trials / "runs" / "groups.txt").read_text().splitlines()) == 2
    assert all("failed on a worker (exit status 3 in process " in line for line in said)


def test_a_failure_between_the_look_and_the_claim_counts(place, monkeypatch):
    grid, sweep, said = make(place)
    cell = grid.select()[0]
    other = Failures(place / "runs")
    take = claims.FileClaim.take
    monkeypatch.setattr(
        claims.FileClaim, "take", lambda self: (other.tell(self.name, "exit status 1", {}), take(self))[1]
    )
    assert sweep.run([cell])[cell.name].startswith("failed: exit status 1")
    assert ran(place) == []
    assert "failed on a worker" in said[0]
    assert claims.claim_of(place / "runs" / cell.name, "test").holder() is None


def test_a_run_that_was_stopped_is_no_failure(place):
    """A signal, or a process that was lost: another worker goes on with it."""
    sweep, _ = worker(place)
    cell = sweep.grid.select()[0]
    for status in (130, 75, -15):
        sweep.known.fail(cell, engine.fault_of(status), {})
    assert not [*(place / "runs").glob("*.failed*")]


def test_the_preview_shows_what_failed_while_its_sweep_runs(place):
    behave(place, **FAILING)
    first, _ = worker(place)
    cells, shown = [cell for cell in first.grid.select() if not cell.trials], []

    def ask(pairs, joined=()):
        return {name: {"trainable": 1, "bytes": 1} for name, _ in pairs}

    during(first, lambda: shown.append(preview.preview(worker(place)[0], cells, ask)))
    first.run(cells)
    assert "3 finished, 2 failed" in shown[0].splitlines()[-1]
    assert "3 finished, 2 to run" in preview.preview(worker(place)[0], cells, ask).splitlines()[-1]


def test_failures_that_cannot_be_written_or_read_do_not_count(tmp_path):
    ours = Failures(tmp_path / "runs")
    ours.tell("a", "why", {})  # no such folder
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "folder.failed").mkdir()
    ours.tell("folder", "why", {})
    (tmp_path / "runs" / "text.failed").write_text("{")
    (tmp_path / "runs" / "list.failed").write_text("[1]")
    assert [Failures(tmp_path / "runs").of(name) for name in ("a", "folder", "text", "list")] == [{}] * 4
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "folder.failed",
        "list.failed",
        "text.failed",
    ]
    for number in range(MOST + 3):  # only MOST files are kept open; the others are written all the same
        ours.tell(f"run{number}", "why", {})
    assert len(ours._mine) == MOST
    assert len([*(tmp_path / "runs").glob("run*.failed")]) == MOST + 3


def test_what_a_killed_sweep_left_half_written_is_removed(place):
    """When a sweep starts; what a living one writes stays, and so do files and folders of other names."""
    runs, token = place / "runs", "0123456789abcdef" * 2
    left, living = (runs / f"{name}.failed-{token}" for name in ("left", "living"))
    others = [runs / f"notes.failed-{word}" for word in ("2", token[1:], f"{token}0")]
    for path in (left, living, *others):
        path.write_text("{")
    (runs / f"folder.failed-{token}").mkdir()
    sweep, _ = worker(place)
    assert left.exists()  # a preview makes no more than this
    with living.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sweep.run([sweep.grid.select()[0]])
    assert sorted(runs.glob("*.failed-*")) == sorted([living, *others, runs / f"folder.failed-{token}"])


def test_a_failure_is_told_though_its_file_is_removed_before_it_is_locked(tmp_path, monkeypatch):
    """As by a sweep that starts at that moment."""
    ours, lock, removed = Failures(tmp_path), fcntl.flock, []

    def late(file, kind):
        if kind == fcntl.LOCK_EX and not removed:
            removed.append(Failures(tmp_path).tidy())
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    ours.tell("run", "why", {})
    assert removed
    assert Failures(tmp_path).of("run")["why"] == "why"
    assert [path.name for path in tmp_path.iterdir()] == ["run.failed"]


@pytest.mark.parametrize(
    "damaged", ['{"token": "t", "sections": 5}', '{"token": "t", "sections": [1]}', '{"why": "w"}']
)
def test_a_damaged_verdict_counts_as_none(place, damaged):
    sweep, _ = worker(place)
    cell = sweep.grid.select()[0]
    (place / "runs").mkdir(exist_ok=True)
    (place / "runs" / f"{cell.name}.failed").write_text(damaged)
    assert sweep.run([cell])[cell.name] == "finished"


def test_what_an_earlier_process_of_the_same_id_left_is_no_fault_of_a_cell(place):
    """In containers process ids repeat."""
    behave(place, **{"": "fail"})
    sweep, _ = worker(place)
    sweep.faults.file.parent.mkdir(exist_ok=True)
    sweep.faults.file.write_text('["base"]')
    cells = [cell for cell in sweep.grid.select() if not cell.trials]
    assert set(sweep.run(cells).values()) == {"failed: exit status 3"}
    assert len(ran(place)) == len(cells)


@pytest.mark.parametrize("damaged", ["5", "null", '[["base"]]', '{"base": 1}'])
def test_a_damaged_fault_counts_as_none(tmp_path, damaged):
    found = Faults(tmp_path / "fault.json")
    found.file.write_text(damaged)
    assert found.take("a", {"base": 1}) == {}
    assert found.shared_by({"base": 1}) == ""
