"""Runs on a user's JSON lines: packed text, single rows, prompts with completions."""

import json

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
    (evaluation,) = json.loads((ended.folder / "result.json").read_text())["evaluations"]
    assert evaluation["loss_per_byte"] == pytest.approx(2 * evaluation["loss"])  # EOS is a target but no byte


def test_text_without_held_out_files_is_not_evaluated(run, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"text": "abc " * 40}])
    ended = run(**OWN, task__path=train, task__packed=True)
    assert ended.status == 0, ended.err
    assert json.loads((ended.folder / "result.json").read_text())["evaluations"] == []
