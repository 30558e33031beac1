"""Runs on a user's JSON lines: packed text, single rows, prompts with completions."""

import json

import jax
import numpy as np
import pytest

OWN = dict(
    config="configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None, task__seq_len=32,
    train__eval_steps="()",
)  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_text_rows(run, tmp_path, packed, caplog):
    rows = [
        {"text": f"the {word} sat on the mat and ate a fig"} for word in ("cat", "bat", "rat", "gnat", "hat", "wombat")
    ]
    train, held = write(tmp_path / "train.jsonl", rows), write(tmp_path / "held.jsonl", rows[:3])
    ended = run(**OWN, task__path=train, task__validation_path=held, task__packed=packed)
    assert ended.status == 0, ended.err
    result = json.loads((ended.folder / "result.json").read_text())
    (evaluation,) = result["evaluations"]
    assert evaluation.keys() == {"step", "loss", "perplexity", "loss_per_byte", "bits_per_byte"}
    assert evaluation["perplexity"] == pytest.approx(np.exp(evaluation["loss"]))
    assert 4 < evaluation["loss"] < 6  # ln 259 is 5.6
    assert result["config"]["experiment"] == "finetune"
    assert result.get("notes", []) == caplog.messages
    assert len(caplog.messages) == (0 if packed else 2)


def test_prompt_and_completion_rows(run, tmp_path):
    rows = [{"prompt": f"{a} and {b} is ", "completion": str(a + b)} for a in range(4) for b in range(4)]
    train = write(tmp_path / "train.jsonl", rows)
    ended = run(**OWN, task__path=train, task__validation_path=train)
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["tokens"] == 16 for line in lines if "loss" in line)  # of each row one digit and EOS are targets
    assert f", held-out loss={lines[-1]['eval/loss']:.4g}" in ended.err  # beside the bar's own, of training
    (evaluation,) = json.loads((ended.folder / "result.json").read_text())["evaluations"]
    assert evaluation["loss_per_byte"] == pytest.approx(2 * evaluation["loss"])  # EOS is a target but no byte


def test_what_is_left_to_the_data_is_said_recorded_and_kept(run, program, toy, tmp_path, monkeypatch):
    """51 rows: length, batch and steps fit them; a resumption has them whatever later code would choose."""
    train = write(tmp_path / "train.jsonl", [{"text": f"row {i:03d} of a small file"} for i in range(51)])
    own = {**OWN, "task__path": train, "task__seq_len": None, "train__batch_size": None, "train__steps": None}
    mesh = {"mesh__data": 1, "mesh__tensor": 2, "task__packed": False}
    words = [word for word in toy(tmp_path, **own, **mesh) if not word.startswith(("--workdir", "--name"))]
    assert "from the data: task.seq_len=24" in program("plan", *words).out
    first = run(**own, **mesh, train__stop_at=2)
    assert first.status == 0, first.err
    chosen = {"task.seq_len": 24, "train.batch_size": 51, "train.steps": 100}
    said = (
        "from the data: task.seq_len=24 (the longest row has 24 tokens), train.batch_size=51 (of 51 rows), "
        "train.steps=100 (100.0 passes over them)"
    )
    assert said in first.out
    assert json.loads((first.folder / "config.json").read_text())["chosen"] == chosen
    result = json.loads((first.folder / "result.json").read_text())
    assert (result["chosen"], result["seq_len"], result["config"]["train"]["steps"]) == (chosen, 24, 0)

    monkeypatch.setattr("lowrank_jax.train.rhythm.FITTED_STEPS", 7)
    monkeypatch.setattr("lowrank_jax.train.rhythm.FITTED_BATCH", 8)
    monkeypatch.setattr("lowrank_jax.tasks.text.ROUNDED", 64)
    second = run(**own, **mesh, train__stop_at=3)
    assert second.status == 0, second.err
    assert said in second.out
    result = json.loads((first.folder / "result.json").read_text())
    assert (result["chosen"], result["losses"][-1][0]) == (chosen, 3)
    rates = [json.loads(line)["learning_rate"] for line in (first.folder / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([0.003, 0.003, 0.003 * 98 / 99], rel=1e-5)  # one step up, then down over 100

    divided = run(**own, **{**mesh, "mesh__data": 2, "mesh__tensor": 1}, train__stop_at=4)
    assert divided.status == 2
    assert "run began with train.batch_size=51 from the data, which does not divide over 2 devices" in divided.err

    set_by_hand = run(**{**own, "task__seq_len": 32, "train__batch_size": 8, "train__steps": 3}, **mesh, name="set")
    assert set_by_hand.status == 0, set_by_hand.err
    assert "from the data" not in set_by_hand.out
    result = json.loads((set_by_hand.folder / "result.json").read_text())
    assert (result["seq_len"], result["losses"][-1][0], "chosen" in result) == (32, 3, False)


def test_trials_of_which_one_began_with_another_batch(program, toy, tmp_path):
    """A run alone divides its batch over two devices, a trial has one of its own: 10 of 11 rows, and 11."""
    from lowrank_jax.bases.base import export_params, random_params
    from lowrank_jax.models.registry import get_model
    from lowrank_jax.text.tokenizers import ByteTokenizer

    shape = get_model("toy-llama")
    params = random_params(shape, jax.random.key(0), "float32")
    export_params(params, shape, tmp_path / "base", "float32", tokenizer=ByteTokenizer())
    train = write(tmp_path / "train.jsonl", [{"text": f"row {i}"} for i in range(11)])
    own = {**OWN, "task__path": train, "train__batch_size": None, "task__packed": False, "base__random_init": False}
    words = toy(tmp_path, **own, base__name=tmp_path / "base", train__steps=2)
    words = [word for word in words if not word.startswith("--name=")]
    alone = program("run", *words, "--config.train.stop_at=1")
    assert "train.batch_size=10 (of 11 rows)" in alone.out, alone.err
    ended = program("trials", *words, "--seeds=0,1")
    assert ended.status == 2, ended.err
    assert "cannot share a program: the data gave them train.batch_size=10 and 11 when they began" in ended.err
    assert ended.err.count("\n") == 1
    assert len([*tmp_path.glob("mora*")]) + len([*tmp_path.glob("finetune*")]) == 1  # nothing of the second trial
    again = program("trials", *words, "--seeds=0,1", "--fresh")
    assert again.status == 0, again.err


def test_text_without_held_out_files_is_not_evaluated(run, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "abc " * 40}])
    ended = run(**OWN, task__path=train, task__packed=True)
    assert ended.status == 0, ended.err
    assert json.loads((ended.folder / "result.json").read_text())["evaluations"] == []
