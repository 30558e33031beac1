"""Runs that go on after another program has trained them: no record has a gap where the other has cut it."""

import pytest

from experiments.records import places, run_folder
from lowrank_jax.core.errors import UserError
from lowrank_jax.train import loop

STEPS = 6


@pytest.fixture
def seeds(program, toy, tmp_path, monkeypatch):
    """seeds("0,1", stop=3, fail=False): toy runs of these seeds in one program, stopped after a step, or failing."""

    def start(given, stop=0, fail=False):
        words = toy(
            tmp_path, config="configs/mora_uuid.py:method=fft", adapter__rank=None, train__steps=STEPS,
            train__eval_steps="()", checkpoint__every=0, adapter__targets=None,
        )  # fmt: skip
        words = [word for word in words if not word.startswith("--name=")]

        def short(job):
            raise UserError("out of memory in a training step")

        with monkeypatch.context() as patch:
            if stop:
                patch.setattr(loop.StopRequest, "requested", lambda self, done: done == stop)
            if fail:
                patch.setattr(loop, "fit", short)
            return program("trials", *words, f"--seeds={given}")

    return start


def test_a_larger_program_that_fails_in_between_leaves_no_gap_in_the_records(seeds, tmp_path):
    assert seeds("0,1", stop=3).status == 130
    assert seeds("0,1,2", fail=True).status == 2  # its trackers are open by then
    ended = seeds("0,1")
    assert ended.status == 0, ended.err
    assert "another program has written its records since; it starts at the first step" in ended.out
    results = [run_folder.read_result(file) for file in tmp_path.glob(f"mora_uuid-*/{run_folder.RESULT}")]
    assert len(results) == 2
    for result in results:
        assert [step for step, _ in result["losses"]] == list(range(1, STEPS + 1))


def test_runs_go_on_in_the_program_that_wrote_their_records(tmp_path):
    names = ["a", "b", "c"]
    assert places.going_on(tmp_path, names) == 3

    def begin(place):
        (place / run_folder.CHECKPOINTS / "4").mkdir(parents=True)
        run_folder.write_json(tmp_path / "a" / run_folder.CONFIG, places.marked({}, tmp_path / "a", place))

    begin(places.of_group(tmp_path, names[:2]))
    assert [places.going_on(tmp_path, names[:count]) for count in (1, 2, 3)] == [1, 2, 2]
    assert places.going_on(tmp_path, ["b", "a"]) == 2
    begin(tmp_path / "a")
    assert places.going_on(tmp_path, names) == 1
    begin(tmp_path / "together-other")
    assert places.going_on(tmp_path, names) == 3
    (tmp_path / "a" / run_folder.CONFIG).write_text("{")
    assert places.going_on(tmp_path, names) == 3
