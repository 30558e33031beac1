"""A trial that stopped early is the first part of the full row: the sweep continues the row from it."""

import pytest

from experiments.records import json_files, run_folder


@pytest.fixture
def trial(tmp_path):
    plain = {"seed": 0, "train": {"steps": 100, "stop_at": 20}, "labels": {"stage": "rates"}}
    folder = tmp_path / "trial"
    (folder / run_folder.CHECKPOINTS / "20").mkdir(parents=True)
    (folder / run_folder.METRICS).write_text('{"step": 20}\n')
    json_files.write_json(folder / run_folder.CONFIG, plain)
    return folder, plain


def full(plain, **changes):
    return {**plain, "train": {"steps": 100, "stop_at": 0}, "labels": {"stage": "full"}, **changes}


def test_the_full_row_takes_over_checkpoints_and_records(trial, tmp_path):
    folder, plain = trial
    target = tmp_path / "row"
    assert run_folder.continue_from(folder, target, full(plain))
    assert (target / run_folder.CHECKPOINTS / "20").is_dir()
    assert (target / run_folder.METRICS).read_text() == '{"step": 20}\n'
    assert run_folder.open_run(target, full(plain)) == "resume"
    assert not run_folder.continue_from(folder, target, full(plain))  # it exists: never overwritten


def test_another_config_is_not_continued(trial, tmp_path):
    folder, plain = trial
    assert not run_folder.continue_from(folder, tmp_path / "row", full(plain, seed=1))
    assert not (tmp_path / "row").exists()


def test_a_run_that_stopped_early_goes_on_when_more_steps_are_asked_for(trial):
    folder, plain = trial
    json_files.write_json(folder / run_folder.RESULT, {"status": "finished", "config": plain})
    assert run_folder.open_run(folder, plain) == "finished"
    assert run_folder.open_run(folder, full(plain)) == "resume"
    json_files.write_json(folder / run_folder.RESULT, {"status": "diverged", "config": plain})
    assert run_folder.open_run(folder, full(plain)) == "finished"  # it would diverge again
