"""experiments.trials: trials of one program are the runs they would have been alone, on one device and on several."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.records import run_folder, run_record
from experiments.session.experiment import COMPILING
from experiments.sweeps.compatible import check_alike, group_key, parse_seeds
from lowrank_jax.bases.base import export_params, random_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.stacked import StackedBatches
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

STEPS = 12
SAME = dict(base__random_init=False, train__steps=STEPS, train__eval_steps="(6,)", checkpoint__every=0)


@pytest.fixture(scope="module", autouse=True)
def saved_base(tmp_path_factory):
    """A toy Llama on disk is the base of all: the seed of a random one would draw other frozen weights a trial."""
    shape, folder = get_model("toy-llama"), tmp_path_factory.mktemp("base") / "toy"
    params = random_params(shape, jax.random.key(0), "float32")
    export_params(params, shape, folder, "float32", tokenizer=ByteTokenizer())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAME, "base__name", folder)
        yield


def words(toy, folder, **changes):
    """The command line of a toy program without a name, for several runs name themselves."""
    return [word for word in toy(folder, **{**SAME, **changes}) if not word.startswith("--name=")]


def cells_file(folder, program, toy, changes):
    """A cells file of runs "cell0", "cell1", ... that differ by `changes`."""
    from experiments.cli import complete_file
    from experiments.config.plain import to_plain

    cells = []
    for number, change in enumerate(changes):
        config = complete_file("configs/mora_uuid.py:method=lora")
        for word in words(toy, folder, **change):
            key, _, value = word.removeprefix("--").partition("=")
            if key.startswith("config."):
                *path, last = key.removeprefix("config.").split(".")
                node = config
                for section in path:
                    node = node[section]
                kind = type(node[last]) if node[last] is not None else int
                with config.unlocked():
                    node[last] = (
                        tuple(json.loads(f"[{value[1:-1].rstrip(',')}]"))
                        if kind is tuple
                        else (value == "True" if kind is bool else kind(value))
                    )
        cells.append({"name": f"cell{number}", "config": to_plain(config)})
    path = folder / "cells.json"
    path.write_text(json.dumps(cells))
    return path


def losses(folder):
    return dict(run_record.read_result(folder / run_folder.RESULT)["losses"])


def test_trials_are_the_runs_they_would_be_alone(program, toy, tmp_path):
    """Ranks, rates, alphas, seeds, warm-ups and an early stop: losses, scores and adapters of trials and of runs."""
    changes = [
        dict(adapter__rank=4, optimizer__learning_rate=3e-3, seed=0),
        dict(
            adapter__rank=2, optimizer__learning_rate=1e-3, seed=1, adapter__alpha=4.0, schedule__warmup_steps=9,
            train__stop_at=8,
        ),
        dict(adapter__rank=1, optimizer__learning_rate=2e-3, seed=2),
    ]  # fmt: skip
    # LoRA+: each trial's own rate, and four times it for B.
    changes = [{**change, "optimizer__multipliers": '(["adapters/.*/b", 4.0],)'} for change in changes]
    cells = cells_file(tmp_path, program, toy, changes)
    ended = program("trials", f"--cells={cells}", f"--workdir={tmp_path / 'together'}")
    assert ended.status == 0, ended.err
    assert ended.out.index(COMPILING) < ended.out.index("step needs ")
    assert "  cell1: rank 2, alpha 4, learning_rate 0.001, warmup_steps 9, stop_at 8, seed 1;" in ended.out
    assert "mora_uuid: 3 runs in 3 setting(s), medians over seeds" in ended.out
    assert (
        "tok/s: tokens that are predicted (without prompts and padding) in a second of training, of one trial"
        in ended.out
    )
    assert [max(losses(tmp_path / "together" / f"cell{i}")) for i in range(3)] == [STEPS, 8, STEPS]
    alone = program(
        "run", *words(toy, tmp_path / "alone", config="configs/mora_uuid.py:method=lora", **changes[1]),
        "--name=cell1",
    )  # fmt: skip
    assert alone.status == 0, alone.err
    folders = [tmp_path / kind / "cell1" for kind in ("together", "alone")]
    ours, theirs = (losses(folder) for folder in folders)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
    found, expected = (load_file(folder / "adapter" / "adapter.safetensors") for folder in folders)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, atol=2e-4, err_msg=name)
    evaluations = [run_record.read_result(folder / run_folder.RESULT)["evaluations"] for folder in folders]
    assert evaluations[0] == evaluations[1]
    assert run_record.read_result(folders[0] / run_folder.RESULT)["together"] == 3


def test_seeds_go_on_after_an_interruption_and_what_is_finished_is_kept(program, toy, tmp_path, monkeypatch, records):
    """Two seeds stopped by a signal after 3 of 6 steps, then resumed: the records of an uninterrupted pair."""
    from lowrank_jax.train import loop

    def pair(kind, seeds="0,1"):
        changes = dict(config="configs/mora_uuid.py:method=lora", train__steps=6, train__eval_steps="(4,)")
        return program("trials", *words(toy, tmp_path / kind, **changes), f"--seeds={seeds}")

    whole = pair("whole")
    assert whole.status == 0, whole.err
    assert whole.out.count("finished") == 2
    assert "median" in whole.out

    closed, close = [], StackedBatches.close
    monkeypatch.setattr(StackedBatches, "close", lambda self: (closed.append(self), close(self)))

    class Stop(loop.StopRequest):
        def requested(self, step):
            return step == 3

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", Stop)
        stopped = pair("parts")
    assert stopped.status == 130
    assert stopped.out.count("interrupted") == 2
    resumed = pair("parts")
    assert resumed.status == 0
    assert "resuming after step 3 of 6" in resumed.out
    folders = [folder for folder in (tmp_path / "whole").iterdir() if folder.name.startswith("mora")]
    assert len(folders) == 2
    for folder in folders:
        assert records(folder) == records(tmp_path / "parts" / folder.name)

    again = pair("whole", "0:3")
    assert again.status == 0
    assert len(closed) == 3, "threads that read ahead outlive their run"
    assert "1 trials of" in again.out
    assert again.out.count("finished") == 3


def test_a_trial_that_diverges_leaves_the_others(program, toy, tmp_path):
    changes = [dict(optimizer__learning_rate=3e-3), dict(optimizer__learning_rate=1e30, optimizer__clip_norm=0.0)]
    changes = [
        {**change, "train__steps": 8, "train__eval_steps": "()", "optimizer__clip_norm": 0.0, "adapter__targets": None}
        for change in changes
    ]
    ended = program("trials", f"--cells={cells_file(tmp_path, program, toy, changes)}", f"--workdir={tmp_path}")
    results = [run_record.read_result(tmp_path / f"cell{i}" / run_folder.RESULT) for i in range(2)]
    assert [result["status"] for result in results] == ["finished", "diverged"], ended.err
    assert "lower optimizer.learning_rate" in results[1]["message"]
    assert max(losses(tmp_path / "cell0")) == 8


def plain(**changes):
    """A plain config of few keys."""
    base = {
        "base": {"name": "b", "random_init": False},
        "trainable": "adapters",
        "seed": 0,
        "optimizer": {"learning_rate": 1.0, "b1": 0.9},
    }
    base |= {"adapter": {"method": "lora", "rank": 8, "alpha": 16.0, "init": "kaiming_uniform"}, "train": {"steps": 9}}
    for path, value in changes.items():
        *sections, last = path.split("__")
        node = base
        for section in sections:
            node = node[section]
        node[last] = value
    return base


@pytest.mark.parametrize(
    ("changes", "alike"),
    [
        (dict(seed=3), True),
        (dict(optimizer__learning_rate=0.5, adapter__alpha=1.0), True),
        (dict(adapter__rank=2), True),
        (dict(train__stop_at=5), True),
        (dict(optimizer__b1=0.5), False),
        (dict(train__steps=10), False),
        (dict(base__name="c"), False),
    ],
)
def test_what_may_share_a_program(changes, alike):
    assert (group_key(plain()) == group_key(plain(**changes))) == alike
    if not alike:
        with pytest.raises(UserError, match="cannot share a program"):
            check_alike([plain(), plain(**changes)])


def test_ranks_of_mora_and_of_pissa_and_seeds_of_a_random_base_do_not():
    for change in (dict(adapter__method="mora"), dict(adapter__init="pissa")):
        assert group_key(plain(**change)) != group_key(plain(**change, adapter__rank=2))
    random = dict(base__random_init=True)
    assert group_key(plain(**random)) != group_key(plain(**random, seed=1))
    assert group_key(plain(**random, trainable="full")) == group_key(plain(**random, trainable="full", seed=1))


def test_seeds_are_read():
    assert parse_seeds("0,3") == [0, 3]
    assert parse_seeds("2:5") == [2, 3, 4]
    for wrong in ("", "a", "1,1", "-1", "3:3"):
        with pytest.raises(UserError, match="--seeds="):
            parse_seeds(wrong)


def test_a_group_that_is_killed_while_it_starts_afresh_finds_no_old_checkpoints(program, toy, tmp_path, monkeypatch):
    """--fresh removes the checkpoints first: killed before the run folders are opened, the next start begins at 0."""
    given = words(toy, tmp_path, config="configs/mora_uuid.py:method=lora", train__steps=4, train__eval_steps="()")
    given += ["--seeds=0,1"]
    assert program("trials", *given).status == 0
    (place,) = tmp_path.glob("together-*")
    assert list((place / run_folder.CHECKPOINTS).iterdir())
    (outside := tmp_path / "outside").mkdir()
    (outside / "kept").write_text("x")

    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    for spot in ("open_run", "write_json"):  # before a run folder is removed, and once it has been
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, spot, kill)
            with pytest.raises(Killed):
                program("trials", *given, "--fresh")
        assert not (place / run_folder.CHECKPOINTS).exists()
    (place / run_folder.CHECKPOINTS).symlink_to(outside)
    refused = program("trials", *given, "--fresh")
    assert refused.status == 2
    assert "--fresh deletes folders and no links" in refused.err
    assert (outside / "kept").is_file()


def test_a_file_without_a_list_of_runs(program, tmp_path):
    file = tmp_path / "cells.json"
    good = {"name": "a", "config": {"task": {"name": "uuid"}, "base": {"name": "toy-llama"}}}
    for value, said in (
        ([], "lists no runs"), ({}, "lists no runs"), ([5], "is not {"), ([{"name": 5, "config": {}}], "is not {"),
        ([{"name": "a"}], "is not {"), ([{**good, "config": {"tusk": 5}}], "unknown config key config.tusk"),
        ([good, good], "lists a run twice"), ([{**good, "config": {**good["config"], "name": "\0"}}], "null byte"),
    ):  # fmt: skip
        file.write_text(json.dumps(value))
        ended = program("trials", f"--cells={file}", f"--workdir={tmp_path}")
        assert ended.status == 2, ended.err
        assert said in ended.err
        assert ended.err.count("\n") == 1
