"""Cells whose program lacks memory, or fails for an unknown cause, are tried again in smaller programs."""

import sys

import pytest
from fakes import FAKE_TRIALS
from sweeps import behave, make, ran

from experiments.records import claims, places, run_folder
from experiments.sweeps import engine
from experiments.sweeps.sizes import Sizes

GRID = """
RATES = (1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4)

def stages():
    cells = [dict(arg="method=fft", overrides={"optimizer.learning_rate": rate}) for rate in RATES]
    return [("rates", cells), ("more", [dict(cell, overrides={**cell["overrides"], "seed": 1}) for cell in cells[:4]])]
"""


@pytest.fixture
def sweep(place, monkeypatch):
    (place / "fake_trials.py").write_text(FAKE_TRIALS)
    (place / "rates.py").write_text(GRID)
    monkeypatch.setattr(engine, "TRIALS_PROGRAM", (sys.executable, str(place / "fake_trials.py")))
    grid, made, said = make(place, grid="rates.py")
    made.together = 7

    def run(**how):
        if how:
            behave(place, **how)
        return list(made.run(grid.select()).values()), said

    run.grid = grid
    return run


def groups(place):
    """How many cells each program had."""
    return [len(line.split()) for line in (place / "runs" / "groups.txt").read_text().splitlines()]


def test_a_program_that_lacks_memory_is_halved_for_all_cells_that_can_share_it(sweep, place):
    states, said = sweep(room=3)
    assert set(states) == {"finished"}
    assert groups(place) == [7, 3, 3, 3, 2]  # 7 + 4 cells, in stages that do not wait for each other
    assert sum("short of memory; tried again with at most 3 in a program" in line for line in said) == 1


def test_cells_that_do_not_fit_in_twos_run_alone(sweep, place):
    states, _ = sweep(room=1)
    assert set(states) == {"finished"}
    assert groups(place) == [7, 3]
    assert len(ran(place)) == 11


def test_one_wrong_cell_does_not_end_its_group(sweep, place):
    states, said = sweep(wrong=["lr0.0003"], **{"lr0.0003": "fail"})
    assert [state == "finished" for state in states] == [True, True, False, *[True] * 6, False, True]
    assert states[2] == states[9] == "failed: exit status 3"
    assert any("failed (exit status 2); tried again with at most 3 in a program" in line for line in said)


def test_a_shared_cause_is_not_looked_for_in_halves(sweep, place):
    """Sections that decide the error are known: no other program would do better."""
    states, _ = sweep(shared=True)
    assert groups(place) == [7]
    assert {state.partition(":")[0] for state in states} == {"failed"}


def test_a_second_sweep_goes_on_with_the_halves_of_the_first(sweep, place):
    """It was interrupted: the checkpoints are those of the half, and the whole group would write over its records."""
    names = [cell.name for cell in sweep.grid.select()][:3]
    half = places.of_group(place / "runs", names)
    (half / run_folder.CHECKPOINTS / "4").mkdir(parents=True)
    first = place / "runs" / names[0]
    run_folder.write_json(first / run_folder.CONFIG, places.marked({}, first, half))
    states, _ = sweep()
    assert set(states) == {"finished"}
    assert groups(place) == [3, 7]


def test_a_cell_that_failed_in_a_group_is_not_trained_in_the_next(sweep, place, monkeypatch):
    """Another sweep holds the second cell while the first and the third end in a traceback, then lets it go."""
    (place / "fake_trials.py").write_text("import sys; sys.exit(1)")
    cells = sweep.grid.select()[:3]
    other = claims.claim_of(place / "runs" / cells[1].name, "other")
    assert other.take()
    wait, programs = engine.Sweep.wait, []

    def waited(self, command, held, *rest):
        programs.append([claim.name for claim in held])
        status = wait(self, command, held, *rest)
        other.release()
        return status

    monkeypatch.setattr(engine.Sweep, "wait", waited)
    states, _ = sweep()
    assert programs[0] == [cells[0].name, *(cell.name for cell in sweep.grid.select()[2:7])]
    assert programs[1][0] == cells[1].name
    assert not {*programs[0]} & {*programs[1]}
    assert set(states) == {"failed: exit status 1"}


def test_sizes():
    class Cell:
        def __init__(self, name, rank):
            self.name, self.plain = name, {"adapter": {"rank": rank}, "seed": name}

    ones, other = [Cell(f"a{number}", 8) for number in range(5)], Cell("b", 4)
    sizes = Sizes()
    assert sizes.fit([*ones, other]) == 6
    assert sizes.halve(ones, short=False) == 2
    assert [sizes.fit(ones), sizes.fit([other, other]), sizes.fit([Cell("new", 8)] * 3)] == [2, 2, 3]
    assert sizes.halve(ones[:3], short=True) == 1
    assert [sizes.fit([Cell("new", 8)] * 3), sizes.fit([other, other])] == [1, 2]
    assert sizes.fit([other, ones[0], other]) == 1
