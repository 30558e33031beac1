"""The folder of a run: its name, whether it is new, resumed or refused, and the files that are written in it."""

import json
import math
import time

import pytest

from experiments.records import environment, json_files, run_folder, run_record
from lowrank_jax.core.errors import UserError


def plain(method="mora", rate=1e-3, seed=0, stage="full", pairs=10_000, **labels):
    """A plain config, as far as a run's folder reads it."""
    rank = None if method == "fft" else 8
    return {
        "experiment": "mora_uuid",
        "seed": seed,
        "labels": {"method": method, "rank": rank, "scale": "gpu", "stage": stage, **labels},
        "task": {"name": "uuid", "pairs": pairs},
        "optimizer": {"learning_rate": rate},
        "train": {"steps": 1_000},
    }


def test_a_run_folder_is_new_resumed_finished_or_refused(tmp_path):
    folder, config = tmp_path / "one", plain()
    assert run_folder.open_run(folder, config) == "new"
    assert json.loads((folder / run_folder.CONFIG).read_text()) == config
    assert run_folder.open_run(folder, {**config, "mesh": {"fsdp": 8}}) == "resume"
    assert json.loads((folder / run_folder.CONFIG).read_text())["mesh"] == {"fsdp": 8}
    (folder / run_folder.CHECKPOINTS).mkdir()
    with pytest.raises(UserError) as error:
        run_folder.open_run(folder, plain(rate=5e-3, seed=3))
    assert "optimizer.learning_rate: 0.001 -> 0.005; seed: 0 -> 3" in str(error.value)
    assert "--name" in str(error.value)
    assert "--fresh" in str(error.value)
    json_files.write_json(folder / run_folder.RESULT, {"status": "finished", "config": config})
    assert run_folder.open_run(folder, config) == "finished"
    json_files.write_json(folder / run_folder.RESULT, {"status": "interrupted"})
    assert run_folder.open_run(folder, config) == "resume"
    (tmp_path / "two").mkdir()
    assert run_folder.open_run(folder, plain(seed=3), fresh=True) == "new"
    assert [path.name for path in folder.iterdir()] == [run_folder.CONFIG]
    assert (tmp_path / "two").exists()


def test_fresh_never_removes_what_is_no_run(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no run"):
        run_folder.open_run(tmp_path, plain(), fresh=True)
    assert (tmp_path / "thesis.tex").exists()
    with pytest.raises(UserError, match="is a file"):
        run_folder.open_run(tmp_path / "thesis.tex", plain(), fresh=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / run_folder.CONFIG).write_text("{")
    with pytest.raises(UserError, match="--fresh"):
        run_folder.open_run(tmp_path / "run", plain())


@pytest.mark.parametrize("name", ["", "..", "a/b", "/tmp/x", ".hidden", "a b", "-rf", "a\n"])
def test_run_names_stay_inside_the_workdir(tmp_path, name):
    with pytest.raises(UserError, match="run name"):
        run_folder.run_folder(tmp_path, name)


def test_run_names_follow_content():
    assert run_folder.run_name(plain()).startswith("mora_uuid-gpu-mora-r8-lr0.001-seed0-")
    assert run_folder.run_name(plain("fft", stage="rates")).startswith("mora_uuid-gpu-fft-lr0.001-seed0-rates-")
    assert run_folder.run_name({"seed": 1}).startswith("run-seed1-")
    assert run_folder.run_name(plain()) == run_folder.run_name(plain(variant="other"))
    assert run_folder.run_name(plain()) != run_folder.run_name(plain(pairs=5))


@pytest.mark.parametrize("base", ["/bases/my toy/", "owner/my_toy", "../my_toy"])
def test_a_base_by_path_or_hub_name_makes_a_name_that_a_folder_may_have(tmp_path, base):
    """As configs/finetune.py:base=FOLDER_OR_HUB_NAME has it, whose label is the base."""
    name = run_folder.run_name(plain(scale=base))
    assert name.startswith("mora_uuid-my_toy-mora-r8-lr0.001-seed0-")
    assert run_folder.run_folder(tmp_path, name).parent == tmp_path


def test_write_json_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    value = {
        "steps": [1, 2],
        "pairs": [[1, 0.5], [2, 0.25]],
        "odd": ["[ a", "b\nc ]", "] "],
        "none": [],
        "in": [{"x": [1]}],
    }
    json_files.write_json(path, {"loss": math.nan, **value})
    assert json.loads(path.read_text()) == {"loss": None, **value}
    assert "  [1, 0.5],\n" in path.read_text()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json_files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        json_files.write_json(path, {"loss": 1.0})
    assert json.loads(path.read_text())["loss"] is None
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_thinning_keeps_both_ends_and_the_last_steps():
    points = [(step, 4.0 - step / 4096) for step in range(1, 10_001)]
    thinned = run_record.thin(points)
    assert len(thinned) == 400
    assert thinned[0] == [1, pytest.approx(4.0, abs=1e-3)]
    assert [step for step, _ in thinned[-20:]] == list(range(9_981, 10_001))
    assert [step for step, _ in run_record.thin(points[:5])] == [1, 2, 3, 4, 5]
    whole = {"status": "finished", "losses": [list(point) for point in points]}
    assert run_record.final_loss({"status": "finished", "losses": thinned}) == pytest.approx(
        run_record.final_loss(whole), abs=1e-6
    )


def test_a_result_is_written_from_the_metrics(tmp_path):
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 9.0},
        {"step": 2, "loss": 1.0, "grad_norm": 3.0},
        {"step": 2, "eval/char_accuracy": 0.5, "eval/exact_match": 0.0},
    ]
    config, folder = plain(), tmp_path / "run"
    run_folder.open_run(folder, config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "lo')
    counts = {"trainable": 1, "frozen": 2}
    started = time.time() - 40
    result = run_folder.finish_run(folder, "run", config, "finished", counts, started, 3.0, compile_seconds=1.5)
    assert run_record.read_result(folder / run_folder.RESULT) == result
    assert result["losses"] == [[1, 2.0], [2, 1.0]]
    assert result["evaluations"] == [{"step": 2, "char_accuracy": 0.5, "exact_match": 0.0}]
    assert result["compile_seconds"] == 1.5
    assert set(result["environment"]) == {"hardware", "versions", "git", "date"}
    assert result["environment"]["versions"]["jax"]
    assert run_record.last_evaluation(result) == {"char_accuracy": 0.5, "exact_match": 0.0}
    mean = "training loss 1.5000 (mean of the last 2 steps)"
    times = f"3.0 s of training, {result['wall_seconds']:.1f} s from start to end"
    assert result["wall_seconds"] >= 40
    assert run_record.summary(result) == f"{mean}, char_accuracy 0.5, exact_match 0, {times}"
    assert run_folder.open_run(folder, config) == "finished"


def test_the_commit_can_be_given_outside_git(monkeypatch):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", no_git)
    monkeypatch.delenv(environment.COMMIT_VARIABLE, raising=False)
    assert environment.git_record() == {"commit": None, "dirty": None}
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "1a2b3c+dirty")
    assert environment.git_record() == {"commit": "1a2b3c", "dirty": True}
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "1a2b3c")
    assert environment.git_record() == {"commit": "1a2b3c", "dirty": False}
