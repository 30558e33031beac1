"""A run of LoRA with a prefix method: what it prints, samples, generates and exports."""

import json
from types import SimpleNamespace

import pytest

from experiments.generation.write import Author
from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.framing import Framing

ROWS = [{"prompt": f"{a} and {b} is ", "completion": f"{a + b} in all"} for a in range(4) for b in range(2)]
EVALS = {"held": {"type": "samples", "prompts": ["1 and 1 is "], "max_new_tokens": 6}}
FURTHER = [{"method": "preembed", "prefix": {"tokens": 3, "infix": 2}}]


@pytest.mark.usefixtures("eight_devices")
def test_lora_with_trained_embeddings(run, program, tmp_path):
    """Samples and `generate` frame prompts as the rows are; what cannot be merged is said before the training."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    changes = dict(
        config="configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None, task__seq_len=32,
        task__path=tmp_path / "rows.jsonl", adapter__method="lora", base__name="toy-llama", train__eval_steps=None,
        optimizer__learning_rate=0.05, mesh__data=2, mesh__fsdp=2, mesh__tensor=2,
    )  # fmt: skip
    words = (f"--config.evals={json.dumps(EVALS)}", f"--config.adapters={json.dumps(FURTHER)}")
    for key, value in {"merged": "float32", "spectrum": True}.items():
        early = run(*words, **{f"export__{key}": value}, **changes)
        assert (early.status, early.err.count("\n")) == (2, 1), early.err
        assert f"export.{key} merges, and preembed at embed cannot be merged" in early.err
        assert not early.folder.exists()

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
    said = program("generate", f"--run={ended.folder}", f"--prompt={sample['prompt']}", "--max_new_tokens=6")
    assert said.out.removesuffix("\n") == sample["continuation"]


def test_a_prompt_without_room_says_how_much_of_it_is_virtual():
    model = SimpleNamespace(positions=16, virtual=Framing((40, 41), (42,)), base=SimpleNamespace(tokenizer=None))
    author = Author(model, None, SimpleNamespace(room=lambda ids: 16 - len(ids)), None, 4, (), ())
    assert author.limits([model.virtual.around([1] * 12)]).max_new_tokens == 1
    with pytest.raises(UserError, match=r"the prompt has 16 tokens \(3 of them virtual\), and the model reads 16"):
        author.limits([model.virtual.around([1] * 13)])
