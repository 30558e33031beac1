"""experiments.sweep over a fake run program: skip, resume, claim, fail, stages, sharing."""

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import FAKE_TRIALS, SWEEP
from sweeps import behave, make, ran

from experiments import sweep
from experiments.records import claims
from experiments.records.lines import read_lines
from experiments.sweeps import engine

ROOT = Path(__file__).parents[2]

HOLD_A_LOCK = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(1)
"""


def test_the_flags_that_nobody_sets_are_all_of_the_programs():
    """Tests that pass options in place of parsed flags, here and elsewhere, take SWEEP."""
    defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', inspect.getsource(sweep.define_flags))
    assert {*SWEEP, "config", "grid", "workdir"} == set(defined)


def test_stages_choose_the_best_rate_then_everything_is_skipped(place):
    grid, first, said = make(place)
    states = first.run(grid.select())
    assert set(states.values()) == {"finished"}
    names = ran(place)
    assert len(names) == 7
    assert [name for name in names if "-rates-" not in name] == names[-2:]
    assert names[-2].startswith("mora_uuid-toy-fft-lr0.0003-seed0-")
    assert names[-1].startswith("mora_uuid-toy-lora-r8-lr0.001-seed0-")
    assert said[0] == f"[1/7] {names[0]}: running, time left unknown"
    # One trial took 5 s for 20 steps; 4 trials of 20 and 2 runs of 100 steps are left.
    assert said[2] == f"[2/7] {names[1]}: running, about 70 s left"

    grid, second, said = make(place)
    assert set(second.run(grid.select()).values()) == {"finished"}
    assert len(ran(place)) == 7
    assert all(line.endswith("finished already") for line in said)


def test_failures_go_on_and_are_resumed_by_the_next_sweep(place):
    grid, first, _said = make(place)
    behave(place, **{"fft-lr0.0003": "fail", "lora-r8-lr0.003": "silent", "fft-lr0.001": "diverged"})
    states = first.run(grid.select())
    failed = {name: state for name, state in states.items() if state.startswith("failed")}
    assert len(failed) == 2
    assert "exit status 3" in next(state for name, state in failed.items() if "fft" in name)
    assert "without a result" in next(state for name, state in failed.items() if "lora" in name)
    # fft's best of what is left: 0.0001, for 0.001 diverged.
    assert any(name.startswith("mora_uuid-toy-fft-lr0.0001-seed0-") and "rates" not in name for name in ran(place))

    behave(place)
    before = len(ran(place))
    grid, second, _said = make(place)
    states = second.run(grid.select())
    assert sorted(set(states.values())) == ["diverged", "finished"]
    again = ran(place)[before:]
    assert len(again) == 3  # the two failed trials, and fft's full run at the better rate that they found


def test_no_finite_trial_fails_its_full_cell_alone(place):
    behave(place, **{"fft": "diverged"})
    grid, only, _said = make(place)
    states = only.run(grid.select())
    full = {name: state for name, state in states.items() if "rates" not in name}
    assert (
        next(state for name, state in full.items() if "fft" in name) == "failed: none of its trials gave a finite loss"
    )
    assert next(state for name, state in full.items() if "lora" in name) == "finished"


def test_where_all_trials_failed_their_full_cell_says_so(place):
    behave(place, **{"fft": "fail"})
    grid, only, _said = make(place)
    states = only.run(grid.select())
    (why,) = {state for name, state in states.items() if "fft" in name and "rates" not in name}
    assert why == "failed: all of its trials failed"


def test_a_claimed_cell_is_left_and_looked_at_again(place):
    grid, only, said = make(place)
    cell = grid.select()[0]
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD_A_LOCK,
            str(place / "runs" / f"{cell.name}.lock"),
        ],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert holder.stdout.readline() == b"held\n"
    states = only.run(grid.select())
    assert holder.wait() == 0
    assert set(states.values()) == {"finished"}
    assert f"{cell.name}: claimed by another process; looking again later" in said
    names = ran(place)
    assert len(names) == len(set(names)) == 7
    # lora's full run did not wait for the claimed trial of fft; fft's did.
    assert names.index(cell.name) > next(i for i, n in enumerate(names) if "lora" in n and "rates" not in n)


def test_files_of_something_else_are_not_written_to(place, swept):
    """A user's data of the results' name, before any cell is run; and another file of the W&B sweep's."""
    for name, given in (("mine.jsonl", {"results": "mine"}), ("grid.py", {"wandb_sweep": "grid.py"})):
        before = '{"text": "my own"}\n' if name == "mine.jsonl" else (place / name).read_text()
        (place / name).write_text(before)
        ended = swept(**{flag: str(place / value) for flag, value in given.items()})
        assert ended.status == 2, ended
        assert "name another file" in ended.err
        assert (place / name).read_text() == before
    assert not (place / "runs").exists() or not list((place / "runs").iterdir())


def program(place, *words):
    """The sweep as a separate program, over the fake run."""
    code = (
        "from experiments import sweep; from experiments.cli import launch; from experiments.sweeps import engine;"
        f"engine.RUN_PROGRAM = ({sys.executable!r}, {str(place / 'fake_run.py')!r});"
        "engine.POLL_SECONDS = 0.05; sweep.define_flags(); launch(sweep.main, own_config=True)"
    )
    flags = [f"--config={place / 'config.py'}", f"--grid={place / 'grid.py'}", f"--workdir={place / 'runs'}", *words]
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_three_sweeps_share_one_grid_without_running_a_cell_twice(place):
    behave(place, **{"": "sleep 0.1"})
    started = [program(place, f"--results={place / 'kept'}") for _ in range(3)]
    outputs = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert len(ran(place)) == len(set(ran(place))) == 7
    assert all("7 of 7 cells finished" in out for out, _ in outputs)
    assert len((place / "kept.jsonl").read_text().splitlines()) == 7
    assert {*read_lines(place / "kept.jsonl")} == {*ran(place)}


def test_program_statuses(place, swept):
    behave(place, **{"fft-lr0.0003": "fail"})
    failing = program(place, "--only=fft")
    out, _ = failing.communicate(timeout=60)
    assert failing.returncode == 1
    assert "failed: exit status 3" in out
    wrong = swept(only="nothing")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "matches no cell" in wrong.err


def test_sigterm_reaches_the_run(place):
    behave(place, **{"": "sleep 30"})
    stopped = program(place)
    for _ in range(200):
        if ran(place):
            break
        time.sleep(0.05)
    stopped.send_signal(signal.SIGTERM)
    stopped.communicate(timeout=20)
    assert stopped.returncode == 128 + signal.SIGTERM
    held = claims.claim_of(place / "runs" / ran(place)[0], "test")
    assert held.take()
    held.release()


def test_a_killed_sweep_leaves_its_cell_claimed_while_the_run_lives(place):
    behave(place, **{"": "sleep 2"})
    killed = program(place)
    for _ in range(200):
        if ran(place):
            break
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    claim = claims.claim_of(place / "runs" / ran(place)[0], "test")
    assert not claim.take()
    assert str(claim.holder()).startswith(f"experiments.sweep (pid {killed.pid} on ")
    for _ in range(100):
        if claim.take():
            claim.release()
            break
        time.sleep(0.05)
    assert (place / "runs" / ran(place)[0] / "result.json").exists()


@pytest.mark.parametrize("suffix", ["", ".jsonl"])
def test_results_are_recorded_in_one_file_and_count_as_done(place, suffix):
    """A name without the suffix is the same file; a second sweep of the same cells adds no line."""
    kept = place / f"kept{suffix}"
    grid, first, _said = make(place, results=str(kept))
    first.run(grid.select())
    assert [*read_lines(place / "kept.jsonl")] == ran(place)
    again = engine.Sweep(grid, str(place / "runs"), str(kept), lambda line: None)
    again.run(grid.select())
    assert len((place / "kept.jsonl").read_text().splitlines()) == 7
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    moved = engine.Sweep(grid, str(elsewhere), str(kept), lambda line: None)
    assert set(moved.run(grid.select()).values()) == {"finished"}
    assert not (elsewhere / "ran.txt").exists()


def test_a_folder_of_a_file_a_run_still_counts_as_done(place):
    """Its files stay; records that they lack are added to the file next to the folder."""
    grid, first, _said = make(place)
    first.run(grid.select())
    (place / "old").mkdir()
    for name in ran(place)[:-1]:
        (place / "old" / f"{name}.json").write_text((place / "runs" / name / "result.json").read_text())
    _, second, _said = make(place, results=str(place / "old"))
    assert set(second.run(grid.select()).values()) == {"finished"}
    assert [*read_lines(place / "old.jsonl")] == ran(place)[-1:]


def test_command_and_argument(place):
    grid, only, _said = make(place, arg=":scale=gpu,method=fft")
    cell = next(cell for cell in grid.select() if cell.arg == "method=lora,rank=8")
    command = only.command(cell)
    assert command[2] == f"--config={place / 'config.py'}:scale=gpu,method=lora,rank=8"
    assert command[3:6] == [
        "--config.labels.stage=rates",
        "--config.optimizer.learning_rate=0.001",
        "--config.train.stop_at=20",
    ]
    assert command[6:] == [f"--name={cell.name}", f"--workdir={place / 'runs'}"]
    values = [True, None, [300, 500], "x", 1e-4, 3]
    assert [engine.as_flag(value) for value in values] == ["true", "None", "(300, 500)", "x", "0.0001", "3"]


def test_wandb_file_runs_the_same_cells(place, swept, monkeypatch):
    written = place / "sweep.json"
    ended = swept(wandb_sweep=str(written))
    assert ended.status == 0, ended
    assert ran(place) == []
    spec = json.loads(written.read_text())
    values = spec["parameters"]["cell"]["values"]
    grid, _sweep, _said = make(place)
    assert values == list(grid.cells)
    assert spec["method"] == "grid"
    assert spec["command"][:3] == ["${interpreter}", "-m", "experiments.sweep"]
    assert spec["command"][-1] == "${args}"
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc")
    agent = swept(cell=values[-1])  # as an agent that comes first to a full cell
    assert agent.status == 0, agent
    assert len(ran(place)) == 3
    under_the_agent = (place / "runs" / "agent.txt").read_text().split()
    assert under_the_agent == ran(place)[-1:]


def test_dry_run_runs_nothing(place, swept):
    ended = swept(dry_run=True)
    assert ended.status == 0, ended
    assert ran(place) == []
    assert ended.out.count("to run") == 5
    assert ended.out.count("waits for") == 2


SEARCH = """
def stages():
    rate = "optimizer.learning_rate"
    swept = [dict(arg="rank=8", overrides={rate: one}) for one in (3e-4, 1e-3, 3e-3)]
    wider = [dict(arg="rank=8", overrides={rate: "best:swept::beyond"})]
    near = [dict(arg="rank=8", overrides={rate: f"best:swept+wider::{which}", "seed": 1}) for which in ("", "higher")]
    return [("swept", swept), ("wider", wider), ("near", near)]
"""


def test_a_cell_that_is_not_needed_is_no_failure(place, swept):
    """The best rate lies between others: nothing is trained beyond it, and its neighbours go on."""
    (place / "search.py").write_text(SEARCH)
    ended = swept(grid=str(place / "search.py"))
    assert (ended.status, ended.out.splitlines()[-1]) == (0, "5 of 5 cells finished"), ended
    assert [name.split("-r8-")[1].split("-seed")[0] for name in ran(place)[3:]] == ["lr0.001", "lr0.003"]
    again = swept(grid=str(place / "search.py"), dry_run=True)
    assert again.out.count(": finished\n") == 5
    assert again.out.count("not needed: 0.001 lies between others that were tried") == 1


def groups(place):
    return [line.split() for line in (place / "runs" / "groups.txt").read_text().splitlines()]


@pytest.fixture
def trials(place, monkeypatch):
    (place / "fake_trials.py").write_text(FAKE_TRIALS)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    return place


def test_together_trains_cells_that_may_share_a_program(trials):
    """Rates of one method share a program, up to the limit; a single cell is a run; stages still wait."""
    grid, first, said = make(trials)
    first.together = 2
    states = first.run(grid.select())
    assert len(states) == 7
    assert set(states.values()) == {"finished"}
    assert [len(group) for group in groups(trials)] == [2, 2], groups(trials)
    assert all(len({name.split("-lr")[0] for name in group}) == 1 for group in groups(trials))
    assert len(ran(trials)) == 3  # the third rate of fft, and the two full rows, which no other cell is like
    assert "[1-2/7]" in said[0]
    assert "and 1 more together" in said[0]
    grid, second, _ = make(trials)
    second.together = 8
    assert set(second.run(grid.select()).values()) == {"finished"}
    assert len(groups(trials)) == 2
    assert len(ran(trials)) == 3


def test_a_group_that_fails_is_left_for_the_next_sweep(trials):
    behave(trials, **{"x": "y"})
    grid, first, _ = make(trials)
    first.together = 8
    states = first.run(grid.select("method=lora"))
    assert sum(state == "failed: exit status 3" for state in states.values()) == 2
    (trials / "runs" / "behave.json").unlink()
    grid, second, _ = make(trials)
    second.together = 8
    assert set(second.run(grid.select("method=lora")).values()) == {"finished"}
    assert groups(trials)[0] == groups(trials)[1]


def test_a_cell_that_another_sweep_holds_is_left_out_of_the_group(trials):
    grid, first, _ = make(trials)
    first.together = 8
    held = [name for name in grid.cells if "fft" in name and "rates" in name][1]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_LOCK, str(trials / "runs" / f"{held}.lock")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    states = first.run(grid.select("method=fft"))
    holder.wait()
    assert set(states.values()) == {"finished"}
    assert held not in groups(trials)[0]
    assert held in ran(trials)
