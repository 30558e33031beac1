"""Sweeps on a shared root: workers of several hosts, and a run whose claim is lost."""

import json
import subprocess
import sys

import pytest
from fakes import FAKE_TRIALS
from sweeps import behave, make, ran

from experiments.records import claims, leases, store
from experiments.records.lines import read_lines
from experiments.sweeps import engine
from lowrank_jax.core.errors import LOST, MENDABLE, report


def test_workers_of_two_hosts_share_a_root(place, swept):
    """What one has ended counts for the other; a failure too, until --retry_failed; each has all results."""
    root, kept = str(place / "root"), [place / f"kept{i}.jsonl" for i in range(2)]
    behave(place, **{"fft-lr0.0003": "fail", "lora-r8-lr0.003": "silent"})
    first = swept(root=root, results=str(kept[0]))
    assert first.status == 1, first
    names = ran(place)
    (place / "host2").mkdir()
    (place / "host2" / "behave.json").write_text("{}")
    other = dict(root=root, results=str(kept[1]), workdir=str(place / "host2"))
    second = swept(**other)
    assert second.status == 1, second
    assert "failed on a worker (exit status 3); --retry_failed tries it again" in second.out
    assert "failed on a worker (it ended without a result)" in second.out
    assert not (place / "host2" / "ran.txt").exists()
    assert read_lines(kept[1]) == read_lines(kept[0])
    third = swept(**other, retry_failed=True)
    assert third.status == 0, third
    again = (place / "host2" / "ran.txt").read_text().split()
    assert len(again) == 3  # the two that failed, and fft's full run at the better rate that they found
    assert {name for name in again if "rates" in name} < {*names}
    assert len(read_lines(kept[1])) == 8  # both full runs of fft, of which the better one counts


def test_a_run_whose_claim_is_lost_is_stopped_and_its_record_is_anothers(place, monkeypatch):
    """As of a host that was cut off for longer than its lease."""
    behave(place, **{"": "sleep 30"})
    grid, _, said = make(place)
    root = leases.Root(str(place / "root"))
    sweep = engine.Sweep(grid, str(place / "runs"), None, said.append, root=root)
    cell, wait = grid.select()[0], subprocess.Popen.wait

    def taken_over(process, timeout=None):
        if ran(place) and timeout and not root.newest(cell.name) > 1:
            taken = f"claims/{cell.name}/000002.json"
            root.store.create(taken, json.dumps({"token": "x", "lease": 60.0}).encode())
            record = {"name": cell.name, "status": "finished", "config": cell.plain, "losses": [[1, 0.5]]}
            root.store.create(f"results/{cell.name}.json", json.dumps(record).encode())
            sweep.held._look()
        return wait(process, timeout)

    claim = sweep.claim
    monkeypatch.setattr(sweep, "claim", lambda *pair: [c := claim(*pair), setattr(sweep, "held", c.lease)][0])
    monkeypatch.setattr(subprocess.Popen, "wait", taken_over)
    assert sweep.run([cell]) == {cell.name: "finished"}
    assert ran(place) == [cell.name]
    assert any("was taken over by another worker" in line for line in said), said
    assert not (place / "runs" / cell.name / "result.json").exists()


@pytest.mark.parametrize("together", [1, 3])
def test_a_run_that_cannot_reach_the_root_is_no_failure_and_is_started_again(place, together, monkeypatch):
    """Status 75, as below a sweep where the root is full or out of reach: of a cell alone, and of some together."""
    (place / "fake_trials.py").write_text(FAKE_TRIALS)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    grid, _, said = make(place)
    cells = [cell for cell in grid.select() if not cell.trials][:together]
    root = leases.Root(str(place / "root"))
    sweep = engine.Sweep(grid, str(place / "runs"), None, said.append, root=root, together=together)
    wait, lost = sweep.wait, []

    def waited(*arguments):
        if lost:
            return wait(*arguments)
        lost.append(arguments)
        return LOST

    monkeypatch.setattr(sweep, "wait", waited)
    assert sweep.run(cells) == {cell.name: "finished" for cell in cells}
    assert lost
    assert not any("failed" in line for line in said), said


def test_a_run_of_a_sweep_ends_with_another_status_where_the_root_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PAUSE_SECONDS", 0.0)
    (tmp_path / "root").write_text("")
    bad = leases.Root("bad", store=store.Store("bad", store.Folder(tmp_path / "root")))
    ours = leases.claim_of(tmp_path / "runs" / "cell", "sweep")
    assert ours.take()
    for lent, kind in (({}, store.StoreError), (claims.lend([ours], {})["env"], leases.LostRoot)):
        for name, value in lent.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(store.StoreError, match="--root=bad cannot be used") as told:
            leases.Lease(bad, "cell", "run").take()
        assert type(told.value) is kind
        assert report(told.value) == (LOST if lent else MENDABLE)
    ours.release()


@pytest.mark.parametrize("together", [1, 3])
def test_what_one_machine_lacks_fails_no_cell_for_the_others(place, together, monkeypatch):
    """A worker without a library tries one cell, or one program, and leaves all to the other hosts."""
    (place / "fake_trials.py").write_text(FAKE_TRIALS)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    behave(place, **({"": "machine"} if together == 1 else {"machine": True}))
    grid, _, said = make(place)
    cells = [cell for cell in grid.select() if not cell.trials][:3]
    bare, whole = (
        engine.Sweep(grid, str(place / name), None, said.append, root=leases.Root(str(place / "root")), together=count)
        for name, count in (("runs", together), ("host2", 1))
    )
    assert {state.partition(":")[0] for state in bare.run(cells).values()} == {"failed"}
    (place / "host2").mkdir(exist_ok=True)
    assert set(whole.run(cells).values()) == {"finished"}, said


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("ending", ["here", "traceback"])
def test_a_lack_of_memory_on_one_host_fails_no_cell_for_the_others(place, together, ending, monkeypatch):
    """As in one folder: each worker tries the cell once, and none a second time. A traceback may be a broken GPU's."""
    program = FAKE_TRIALS if ending == "here" else "import sys; sys.exit(1)"
    (place / "fake_trials.py").write_text(program)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    behave(place, **{"": ending}, room=0)
    grid, _, said = make(place)
    cells = [cell for cell in grid.select() if not cell.trials][:3]
    root = lambda: leases.Root(str(place / "root"))  # noqa: E731
    small = engine.Sweep(grid, str(place / "runs"), None, said.append, root=root(), together=together)
    states = small.run(cells)
    assert {state.partition(":")[0] for state in states.values()} == {"failed"}
    alone = ran(place)
    assert len(alone) == len({*alone}) == (3 if together == 1 or ending == "here" else 0)
    assert not any(root().failure(cell.name, False) for cell in cells)
    (place / "host2").mkdir()
    large = engine.Sweep(grid, str(place / "host2"), None, said.append, root=root())
    assert set(large.run(cells).values()) == {"finished"}, said
