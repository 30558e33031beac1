"""configs/mora_finetune.py through the real loop on toy models: what is trained, forgotten, recorded and exported."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from exam_files import write_exams
from safetensors.numpy import load_file

from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.generation.framing import trained_on_chat
from experiments.session.build import build
from experiments.tables import find

ROOT = Path(__file__).parents[2]
FILE = "configs/mora_finetune.py"
QUICK = ("--config.tracking.wandb=disabled", "--config.train.log_every=1", '--config.adapter.targets=("query",)')
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


def test_asylora_with_frozen_a_forgets(program, text, tmp_path, four_layers):
    """The base's score at step 0, the last at the end, their difference; A as it was drawn, also in PEFT's folder."""
    questions, (novels, peps) = text
    arg = f"task=math,model=pico-llama,method=asylora,frozen,rank=4,data={questions},validation={questions}"
    arg += f",forgetting={novels},{peps},steps=3,batch=4,seq_len=64"
    evals = to_plain(complete_file(f"{FILE}:{arg}").evals)
    assert [entry["type"] for entry in evals.values()] == ["forgetting", "likelihood"]
    evals["forgetting"] |= {"rows": 4, "tokens": 32}  # 64 rows of 256 tokens take a laptop's core 5 s
    words = (f"--config={FILE}:{arg}", f"--config.evals={json.dumps(evals)}", f"--workdir={tmp_path}", "--name=run")
    ended = program("run", *words, *QUICK, f"--config.base.name={four_layers}")
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

    # Another seed draws another A; what starts from the adapter has the adapter's.
    words = (f"--config={folder / 'config.json'}", f"--workdir={tmp_path}", "--name=next", "--config.seed=1")
    ended = program("run", *words, f"--config.start.adapter={folder / 'adapter'}", "--config.evals={}")
    assert ended.status == 0, ended.err
    later = load_file(tmp_path / "next" / "adapter" / "adapter.safetensors")
    np.testing.assert_array_equal(later["adapters/layers/attention/query/a"], a)
    assert (later["adapters/layers/attention/query/b"] != ours["adapters/layers/attention/query/b"]).any()


def test_a_domain_is_asked_what_has_a_file(program, tmp_path, monkeypatch):
    """Exams with a file are asked before training and at its end; the others are named by line, record and table."""
    exams = write_exams(tmp_path / "exams")
    for name in ("Headline", "ConviFinQA", "FPB"):
        (exams / "finance-tasks" / name / "test.json").unlink()
    (exams / "phrasebank" / "Sentences_50Agree.txt").unlink()
    monkeypatch.setenv("LOWRANK_JAX_EXAMS_DIR", str(exams))
    data = write(tmp_path / "news.jsonl", [{"text": "Sales rose by 8 % in the third quarter. " * 9}])
    arg = f"task=finance,model=pico-llama,rank=4,method=lora,data={data},steps=1,batch=2,seq_len=32,exams"
    evals = to_plain(complete_file(f"{FILE}:{arg},questions=2").evals)
    evals["ner"]["max_new_tokens"] = 2
    words = (f"--config={FILE}:{arg}", f"--config.evals={json.dumps(evals)}", f"--workdir={tmp_path}", "--name=run")
    ended = program("run", *words, *QUICK, "--config.base.name=toy-llama", "--config.base.random_init=true")
    assert ended.status == 0, ended.err
    absent = ("convfinqa", "fpb", "headline", "phrasebank")
    assert f"not measured: {', '.join(f'{name} (no file)' for name in absent)}\n" in ended.out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["missing"] == dict.fromkeys(absent, "no file")
    for one in result["evaluations"]:
        assert (one["fiqa_sa/n"], one["ner/n"]) == (2, 2)
        assert one["ner/entity_f1_low"] <= one["ner/entity_f1"] <= one["ner/entity_f1_high"]
    assert {"evals.fiqa_sa", "evals.ner"} == {key for key in result["data"] if key.startswith("evals.")}
    result["labels"]["rank"] = 8
    table = find(["mora_table7"]).table([result], SimpleNamespace(model="pico-llama"))
    (line,) = [line for line in table.lines if line[0].startswith("LoRA 8")]
    cells = dict(zip((cell.partition(",")[0] for cell in table.lines[0]), line, strict=True))
    assert cells["Headline"] == "not measured: no file | 72.4"
    assert cells["FiQA SA"].partition(" of ")[2].startswith("2, not separated | 76.2")


ASKED = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
ROWS = {
    "task=math": (SUMS[:1], f"Question: {SUMS[0]['question']}\nAnswer:", f" {SUMS[0]['answer']}"),
    "task=math,chat=alpaca": (
        [{"query": "How many?", "response": "Two."}],
        f"{ASKED}### Instruction:\nHow many?\n\n### Response:",
        "Two.",
    ),
    "task=instruct": (
        [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}],
        "<|user|>\nHi\n<|assistant|>\n",
        "Hello.",
    ),
    "task=instruct,seed=1": ([{"prompt": "Hi. ", "completion": "Hello."}], "Hi. ", "Hello."),  # no template writes it
    "task=biomed,seq_len=9": ([{"text": "abstracts of papers"}], "", "abstract"),
}


@pytest.mark.parametrize("arg", ROWS)
def test_rows_of_each_task(tmp_path, monkeypatch, arg):
    """What is read before what is learned, and the end token after an answer; text is cut into windows."""
    monkeypatch.chdir(ROOT)
    rows, before, learned = ROWS[arg]
    data = write(tmp_path / "a.jsonl", rows)
    config = unpack_run(to_plain(complete_file(f"{FILE}:{arg},model=pico-llama,data={data},steps=1,batch=2")))
    task = build(config).data
    features = task.features(task.train_source()[0])
    tokens, targets = features["tokens"].tolist(), features["weights"] > 0
    start = int(targets.argmax())
    said = [token for token, target in zip(tokens, targets, strict=True) if target]
    if arg.startswith("task=biomed"):
        assert (bytes(tokens).decode(), targets.sum(), len(task.train_source())) == ("abstracts", 8, 3)
        return
    assert task.tokenizer.decode(tokens[:start]) == before
    assert (task.tokenizer.decode(said[:-1]), said[-1]) == (learned, task.tokenizer.eos_id)
    assert trained_on_chat(config.task) == (task.template is not None)  # by which a prompt of generate is a message
