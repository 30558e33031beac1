"""A run of LoRA with a prefix method: what it prints, samples, generates and exports."""

import json

ROWS = [{"prompt": f"{a} and {b} is ", "completion": f"{a + b} in all"} for a in range(4) for b in range(2)]
EVALS = {"held": {"type": "samples", "count": 2, "max_new_tokens": 6}}
FURTHER = [{"method": "preembed", "prefix": {"tokens": 3, "infix": 2}}]


def test_lora_with_trained_embeddings(run, program, tmp_path):
    """Both train; samples and `generate` frame prompts as the rows are; nothing that merges drops the vectors."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    changes = dict(
        config="configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None, task__seq_len=48,
        task__path=tmp_path / "rows.jsonl", task__validation_path=tmp_path / "rows.jsonl", adapter__method="lora",
        train__eval_steps=None, optimizer__learning_rate=0.05, base__name="toy-llama",
        mesh__data=2, mesh__fsdp=2, mesh__tensor=2,
    )  # fmt: skip
    words = (f"--config.evals={json.dumps(EVALS)}", f"--config.adapters={json.dumps(FURTHER)}")
    early = run(*words, export__merged="float32", **changes)
    assert (early.status, early.err.count("\n")) == (2, 1), early.err
    assert "preembed at embed cannot be merged" in early.err

    ended = run(*words, **changes)
    assert ended.status == 0, ended.err
    assert "preembed: 160 trainable parameters" in ended.out
    described = json.loads((ended.folder / "adapter" / "adapter.json").read_text())
    assert described["leaves"]["adapters/embed/vectors"]["shape"] == [5, 32]
    losses = [loss for _, loss in json.loads((ended.folder / "result.json").read_text())["losses"]]
    assert losses[-1] < losses[0], losses
    found = json.loads((ended.folder / "config.json").read_text())["labels"]
    assert (found["method"], found["variant"]) == ("lora+pe", "p3i2")

    sample = [json.loads(line) for line in (ended.folder / "samples.jsonl").open()][-1]
    assert sample["prompt"] in [row["prompt"] for row in ROWS]  # without virtual tokens, which are no text
    asked = (f"--run={ended.folder}", f"--prompt={sample['prompt']}", "--max_new_tokens=6")
    assert program("generate", *asked).out.removesuffix("\n") == sample["continuation"]
    merged = program("generate", *asked, "--weights=exact")
    assert merged.status == 2
    assert "preembed at embed cannot be merged" in merged.err
    full = program("generate", f"--run={ended.folder}", f"--prompt={'a' * 510}")
    assert (full.status, full.err.count("\n")) == (2, 1)
