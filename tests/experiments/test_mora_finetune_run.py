"""configs/mora_finetune.py through the real loop on pico-llama: what is trained, forgotten, recorded and exported."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.cli import complete_file
from experiments.config.plain import to_plain

FILE = "configs/mora_finetune.py"
QUICK = ("--config.tracking.wandb=disabled", "--config.train.log_every=1")
SUMS = [
    {"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a in (2, 3) for b in (4, 5)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def text(tmp_path):
    """(a file of questions, two files of other text: 64 rows of 256 bytes and more)."""
    novel = "It was a dark and stormy night; the rain fell in torrents. " * 150
    files = [
        write(tmp_path / name, [{"text": novel}, {"text": novel[5:]}]) for name in ("novels.jsonl", "peps.v1.jsonl")
    ]
    return write(tmp_path / "sums.jsonl", SUMS), files


def test_asylora_with_frozen_a_forgets(program, text, tmp_path):
    """The base's score at step 0, the last at the end, their difference; A as it was drawn, also in PEFT's folder."""
    questions, (novels, peps) = text
    arg = f"task=math,model=pico-llama,method=asylora,frozen,rank=4,data={questions},validation={questions}"
    arg += f",forgetting={novels},{peps},steps=3,batch=4,seq_len=64"
    evals = to_plain(complete_file(f"{FILE}:{arg}").evals)
    assert [entry["type"] for entry in evals.values()] == ["forgetting", "likelihood"]
    evals["forgetting"] |= {"rows": 4, "tokens": 32}  # 64 rows of 256 tokens take a laptop's core 5 s
    words = (f"--config={FILE}:{arg}", f"--config.evals={json.dumps(evals)}", f"--workdir={tmp_path}", "--name=run")
    ended = program("run", *words, *QUICK)
    assert ended.status == 0, ended.err
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    assert [one["step"] for one in result["evaluations"]] == [0, 3]
    first, last = result["evaluations"]
    assert {"start/loss", "forgetting/novels/text_loss", "forgetting/peps/text_loss"} <= first.keys()
    assert last["loss"] < first["start/loss"]
    assert result["forgetting"].keys() == {"novels", "peps"}
    for name, one in result["forgetting"].items():
        assert one["start"] == first[f"forgetting/{name}/text_loss"]
        assert one["rise"] == one["end"] - one["start"] != 0
        assert one["tokens"] == 4 * 31
    assert {"evals.forgetting.path.0", "evals.forgetting.path.1"} <= result["data"].keys()
    assert (result["labels"]["method"], result["labels"]["variant"]) == ("asylora", "frozen A")

    ours, theirs = (
        load_file(folder / "adapter" / "adapter.safetensors"),
        load_file(folder / "peft" / "adapter_model.safetensors"),
    )
    a = ours["adapters/layers/attention/query/a"]
    np.testing.assert_allclose(a[1].T @ a[1], np.eye(4), atol=1e-5)
    (name,) = [name for name in theirs if "layers.1." in name and name.endswith("q_proj.lora_A.weight")]
    np.testing.assert_array_equal(theirs[name].T, a[1])
    assert ours["adapters/layers/attention/query/b"].any()
    assert result["parameters"]["trainable"] == sum(leaf.size for path, leaf in ours.items() if path.endswith("/b"))
