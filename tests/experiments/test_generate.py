"""`experiments.generate`: a run, its exports and its checkpoint write the same; files, conversations, mistakes."""

import io
import json
import shutil
import sys

import jax
import pytest

from lowrank_jax.bases.base import BaseConfig, export_params, load_base, random_params
from lowrank_jax.bases.ends import end_ids
from lowrank_jax.core.errors import INTERRUPTED, UserError
from lowrank_jax.decoding.stream import Streamer
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

DRAWN = ("--temperature=1", "--top_k=60", "--max_new_tokens=6")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A toy Llama of bytes in a folder."""
    shape, folder = get_model("toy-llama"), tmp_path_factory.mktemp("generate") / "base"
    params = jax.tree.map(lambda leaf: 6 * leaf, random_params(shape, jax.random.key(0), "float32"))  # texts differ
    return export_params(params, shape, folder, tokenizer=ByteTokenizer())


@pytest.fixture
def lines(program):
    """lines(word, ...) -> the JSON lines that the program printed."""

    def call(*words):
        ended = program("generate", *words)
        assert ended.status == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines() if line.startswith("{")]

    return call


@pytest.fixture
def typed(monkeypatch):
    """typed(text or bytes): what stdin has."""

    def give(text):
        content = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_a_run_its_adapter_its_model_and_its_checkpoint_write_what_its_last_sample_was(run, program, base, tmp_path):
    rows = [{"prompt": f"{a} and {b} is ", "completion": f"{a + b} in all"} for a in range(4) for b in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evals = {"s": {"type": "samples", "count": 2, "max_new_tokens": 7}}
    ended = run(
        f"--config.evals={json.dumps(evals)}", config="configs/mora_uuid.py:data=text", base__name=base,
        base__random_init=False, task__pairs=None, task__eval_pairs=None, task__seq_len=32, train__eval_steps=None,
        task__path=tmp_path / "rows.jsonl", task__validation_path=tmp_path / "rows.jsonl", task__add_bos=True,
        train__steps=12, optimizer__learning_rate=0.02, export__merged="float32",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    sample = json.loads((ended.folder / "samples.jsonl").read_text().splitlines()[1])
    assert sample["prompt"] == "0 and 1 is "
    asked = (f"--prompt={sample['prompt']}", "--max_new_tokens=7")

    def said(*words):
        found = program("generate", *asked, *words)
        assert found.status == 0, found.err
        return found.out.splitlines()[-1]

    wanted = repr(sample["continuation"])
    assert repr(said(f"--run={ended.folder}")) == wanted
    assert repr(said(f"--base={base}", f"--adapter={ended.folder / 'adapter'}", "--bos")) == wanted
    assert repr(said(f"--run={ended.folder}", "--weights=exact")) == wanted
    assert repr(said(f"--base={base}", "--bos")) != wanted
    shutil.rmtree(ended.folder / "adapter")
    assert repr(said(f"--run={ended.folder}")) == wanted
    shutil.rmtree(ended.folder / "model")
    assert repr(said(f"--run={ended.folder}", f"--out={tmp_path / 'out.jsonl'}")) == wanted
    (record,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert record["completion"] == sample["continuation"]
    assert (record["prompt"], record["step"], record["dtype"], record["run"]) == (
        sample["prompt"], 12, "float32", str(ended.folder),
    )  # fmt: skip
    early = program("generate", *asked, f"--run={ended.folder}", "--weights=merged")
    assert (early.status, "which is read with --weights=beside" in early.err) == (2, True)
    shutil.rmtree(ended.folder / "checkpoints")
    nothing = program("generate", *asked, f"--run={ended.folder}")
    assert nothing.status == 2
    assert "has no adapter, no model and no checkpoint" in nothing.err


def test_a_file_s_rows_do_not_depend_on_the_batches(lines, program, base, tmp_path):
    """Drawn texts of prompts and of a conversation, three at a time and one at a time; in the file's order."""
    rows = [{"prompt": "the"}, {"messages": [{"role": "user", "content": "hello"}]}, {"prompt": "a longer prompt"},
            {"prompt": "the", "completion": " cat", "other": 1}]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    words = (f"--base={base}", f"--file={file}", "--chat_template=zephyr", "--seed=3", *DRAWN)
    found = lines(*words, "--batch_size=3")
    assert [row.get("prompt") for row in found] == ["the", None, "a longer prompt", "the"]
    assert [row.get("reference") for row in found] == [None, None, None, " cat"]
    assert found[1]["messages"] == rows[1]["messages"]
    assert found[0]["completion"] != found[3]["completion"]  # equal prompts draw for themselves
    settings = {"temperature": 1.0, "top_k": 60, "top_p": 1.0, "seed": 3, "max_new_tokens": 6, "base": str(base)}
    assert settings.items() <= found[2].items()
    out = tmp_path / "deep" / "out.jsonl"
    assert f"4 completions in {out}" in program("generate", *words, "--batch_size=1", f"--out={out}").out
    assert [json.loads(line) for line in out.read_text().splitlines()] == found
    text = found[2]["completion"]
    stopped = lines(*words, f"--stop={text[-1]}", "--batch_size=3")[2]
    assert (stopped["completion"], stopped["ended"]) == (text[: text.index(text[-1])], "stop")


def test_a_conversation_is_remembered_until_it_is_reset(program, typed, base, tmp_path):
    typed("hello\n\nand you?\r\n/reset\nhello\n/exit\nnot read\n")
    words = (f"--base={base}", "--chat", "--chat_template=zephyr", "--system=Be brief.", f"--out={tmp_path / 'o'}")
    ended = program("generate", *words, *DRAWN)
    assert ended.status == 0, ended.err
    turns = [json.loads(line) for line in (tmp_path / "o").read_text().splitlines()]
    first = {"role": "user", "content": "hello"}
    answer = {"role": "assistant", "content": turns[0]["completion"]}
    assert turns[1]["messages"] == [first, answer, {"role": "user", "content": "and you?"}]
    assert turns[2]["messages"] == [first]
    assert [turn["row"] for turn in turns] == [0, 1, 2]
    assert turns[0]["completion"] != turns[2]["completion"]  # a turn draws by its number
    assert ended.out == "".join(turn["completion"] + "\n" for turn in turns)
    assert "begins again" in ended.err
    typed(b"\xff\n")
    wrong = program("generate", *words)
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "line 1 of stdin is not UTF-8" in wrong.err


def test_a_conversation_that_fills_the_model(program, typed, base):
    typed("x" * 600 + "\nhello\n")
    ended = program("generate", f"--base={base}", "--chat", "--chat_template=zephyr", "--max_new_tokens=2")
    assert ended.status == 0, ended.err
    assert "tokens and the model reads" in ended.err
    assert ended.out.count("\n") == 1


def test_fewer_tokens_where_fewer_fit(program, base):
    positions = get_model("toy-llama").max_position_embeddings
    prompt = "x" * (positions - 3)
    ended = program("generate", f"--base={base}", f"--prompt={prompt}", "--max_new_tokens=10")
    assert ended.status == 0, ended.err
    assert f"the prompt has {positions - 3} tokens: at most 3 new ones fit in the model's {positions}" in ended.err


def test_ctrl_c(program, base, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Streamer, "stream", interrupted)
    assert program("generate", f"--base={base}", "--prompt=a").status == INTERRUPTED


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompt=a"], "give one of --run, --base"),
        (["--base=B", "--run=R", "--prompt=a"], "give one of --run, --base, e.g. --run=runs/NAME; there are 2"),
        (["--base=B"], "give one of --prompt, --file, --chat"),
        (["--base=B", "--prompt=a", "--chat"], "there are 2"),
        (["--run=R", "--adapter=A", "--prompt=a"], "--adapter goes with --base"),
        (["--run=none", "--prompt=a"], "none is no folder of a run: it has no config.json"),
        (["--base=none-such", "--prompt=a"], "unknown base model"),
        (["--base=B", "--adapter=none", "--prompt=a"], "none has neither adapter.json (ours) nor adapter_config.json"),
        (["--base=B", "--prompt="], "the prompt is empty"),
        (["--base=B", "--prompt=a", "--temperature=-1"], "--temperature is -1.0; it must be at least 0.0001, or 0"),
        (["--base=B", "--prompt=a", "--top_p=0"], "--top_p is 0.0"),
        (["--base=B", "--prompt=a", "--seed=-1"], "--seed is -1"),
        (["--base=B", "--prompt=a", "--stop="], "a stop string is empty"),
        (["--base=B", "--prompt=a", "--max_new_tokens=0"], "max_new_tokens"),
        (["--base=B", "--prompt=a", "--dtype=int3"], "unknown dtype 'int3'"),
        (["--base=B", "--prompt=a", "--system=b"], "--system needs a chat template"),
        (["--base=B", "--prompt=a", "--chat_template=own"], "has no chat template"),
        (["--base=B", "--prompt=a", "--chat_template=zephir"], "did you mean zephyr"),
        (["--base=B", "--prompt=a", "--chat_template=chatml"], "has no token <|im_start|>"),
        (["--base=B", "--chat", "--chat_template=none"], "leaves messages without a form"),
        (["--base=B", "--file=none.jsonl"], "none.jsonl: no such file"),
        (["--base=B", "--prompt=" + "x" * 700], "the prompt has 700 tokens, and the model reads"),
        (["--base=B", "--prompt=a", "--out=B"], "is a folder; name a file"),
    ],
)
def test_mistakes(program, base, words, part):
    ended = program("generate", *(word.replace("=B", f"={base}") for word in words))
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert part in ended.err


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "has no rows"),
        ("5\n", "line 1: needs either the key"),
        ('{"text": "a"}\n', 'found "text"'),
        ('{"prompt": "a", "messages": []}\n', "needs either"),
        ('{"prompt": 5}\n', '"prompt" is a int, not a string'),
        ('{"prompt": "a"}\n{"prompt": "\\ud800"}\n', "line 2: "),
        ('{"messages": []}\n', '"messages" is no list of messages'),
        ('{"messages": [{"content": "a"}]}\n', 'message 1 has no "role"'),
        ('{"messages": [{"role": "user"}]}\n', 'content" of message 1'),
        ("{\n", "line 1: not JSON"),
        ('{"prompt": ""}\n', "row 1: the prompt is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "has no chat template"),
    ],
)
def test_files_that_cannot_be_used(program, base, tmp_path, text, part):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    ended = program("generate", f"--base={base}", f"--file={file}")
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert part in ended.err
    same = program("generate", f"--base={base}", f"--file={file}", f"--out={file}", "--chat_template=zephyr")
    assert same.status == 2
    assert file.read_text() == text  # never emptied


def test_where_a_base_says_that_a_text_ends(base, tmp_path):
    """generation_config.json before config.json, one id or several, and the tokenizer's own."""
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    loaded = load_base(BaseConfig(str(folder)))
    config = json.loads((folder / "config.json").read_text())
    cases = [({}, {}, (257,)), ({"eos_token_id": 5}, {}, (5, 257)), ({"eos_token_id": -1}, {}, (257,))]
    cases += [({"eos_token_id": 5}, {"eos_token_id": [7, 257]}, (7, 257)), ({}, {"eos_token_id": None}, (257,))]
    for ours, generation, wanted in cases:
        plain = {name: value for name, value in config.items() if name != "eos_token_id"}
        (folder / "config.json").write_text(json.dumps(plain | ours))
        (folder / "generation_config.json").write_text(json.dumps(generation))
        assert end_ids(loaded) == wanted
    (folder / "generation_config.json").write_text('{"eos_token_id": [99999]}')
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id has 99999, no id below"):
        end_ids(loaded)
