"""Samples at a run's evaluations, and `experiments.generate`: prompts, files, conversations, and mistakes in them."""

import io
import json
import shutil
import sys

import jax
import pytest

from experiments.config.plain import content_hash
from experiments.records.run_record import read_result
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


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


SAMPLES = {
    "held": {"type": "samples", "with_train": True, "count": 2, "max_new_tokens": 7},
    "drawn": {"type": "samples", "steps": (8,), "at_end": False, "prompts": ("1 and", "2"), "temperature": 1.0,
              "max_new_tokens": 5, "seed": 1},
    "scored": {"every": 8},
}  # fmt: skip


@pytest.fixture
def text_run(run, base, tmp_path):
    """text_run(...) -> a run of 12 steps on rows with prompts, with samples of held-out rows and of drawn texts."""
    rows = [{"prompt": f"{a} and {b} is ", "completion": f"{a + b} in all"} for a in range(4) for b in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(evals=SAMPLES, bos=True, **changes):
        return run(
            f"--config.evals={json.dumps(evals)}", config="configs/mora_uuid.py:data=text", base__name=base,
            base__random_init=False, task__pairs=None, task__eval_pairs=None, task__seq_len=32, train__eval_steps=None,
            task__path=tmp_path / "rows.jsonl", task__validation_path=tmp_path / "rows.jsonl", task__add_bos=bos,
            train__steps=12, train__eval_every=6, optimizer__learning_rate=0.02, checkpoint__every=6,
            export__merged="float32", **changes,
        )  # fmt: skip

    return call


def test_a_run_s_samples_and_what_it_generates(text_run, program, base, tmp_path):
    """Held-out prompts with the data's answers, and prompts of the config; all again where a run is resumed.

    The run's adapter, the base with it, the merged model and the checkpoint then write what the last sample is.
    """
    ended = text_run(train__stop_at=8)
    assert ended.status == 0, ended.err
    folder, found = ended.folder, rows_of(ended.folder)
    names = [(row["step"], row["name"]) for row in found]
    assert names == [(6, "held")] * 2 + [(8, "drawn")] * 2 + [(8, "held")] * 2
    assert [(row["prompt"], row["reference"]) for row in found[:2]] == [
        ("0 and 0 is ", "0 in all"),
        ("0 and 1 is ", "1 in all"),
    ]
    assert found[2].keys() == {"step", "name", "prompt", "continuation"}
    assert [row["prompt"] for row in found[2:4]] == ["1 and", "2"]
    assert "step 6, held: '<|bos|>0 and 0 is ' => " in ended.out
    assert ended.out.count("step 8, held: ") == 1
    assert "eval/held" not in (folder / "metrics.jsonl").read_text()
    assert "scored/loss" in read_result(folder / "result.json")["evaluations"][-1]

    shutil.rmtree(folder / "checkpoints" / "8")  # as if it had been killed after step 6
    (folder / "result.json").unlink()
    again = text_run()
    assert again.status == 0, again.err
    after = rows_of(folder)
    assert [row["step"] for row in after] == [6] * 2 + [8] * 2 + [12] * 2
    assert after[:4] == found[:4]

    sample, tokens = after[-1], SAMPLES["held"]["max_new_tokens"]

    def said(*words, count=tokens):
        found = program("generate", f"--prompt={sample['prompt']}", f"--max_new_tokens={count}", *words)
        assert found.status == 0, found.err
        return found.out.removesuffix("\n")

    wanted = sample["continuation"]
    assert said(f"--run={folder}") == wanted
    first = said(f"--run={folder}", count=1)
    assert said(f"--base={base}", f"--adapter={folder / 'adapter'}", "--bos", count=1) == first
    assert said(f"--run={folder}", "--weights=exact", count=1) == first
    assert said(f"--base={base}", "--bos", count=1) != first
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(str(base), "/nowhere/base"))
    moved = program("generate", "--prompt=a", f"--run={folder}")
    assert (moved.status, f"--base=FOLDER --adapter={folder / 'adapter'} in place of --run" in moved.err) == (2, True)
    (folder / "config.json").write_text(config)
    shutil.rmtree(folder / "adapter")
    assert said(f"--run={folder}", count=1) == first
    shutil.rmtree(folder / "model")
    assert said(f"--run={folder}", f"--out={tmp_path / 'out.jsonl'}") == wanted
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert (record["prompt"], record["completion"]) == (sample["prompt"], wanted)
    assert 0 < record["tokens"] <= tokens
    assert (record["step"], record["dtype"], record["run"]) == (12, "float32", str(folder))
    early = program("generate", "--prompt=a", f"--run={folder}", "--weights=merged")
    assert (early.status, "which is read with --weights=beside" in early.err) == (2, True)
    shutil.rmtree(folder / "checkpoints")
    nothing = program("generate", "--prompt=a", f"--run={folder}")
    assert nothing.status == 2
    assert "has no adapter, no model and no checkpoint" in nothing.err


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"counts": 2}, "unknown config key config.evals.held.counts; did you mean count"),
        ({"count": 0}, "config.evals.held.count is 0; it must be at least 1"),
        ({"top_p": 2.0}, "config.evals.held.top_p is 2.0; it must lie in (0, 1]"),
        ({"prompts": ["x" * 600]}, "the samples' longest prompt has 600 tokens, and 64 new ones exceed the model's"),
        ({"prompts": "none.jsonl"}, "none.jsonl: no such file"),
        ({"prompts": [""]}, "a prompt has no tokens"),
        ({"max_new_tokens": 10**6}, "exceed the model's"),
        ({"stop": [""]}, "a stop string is empty"),
    ],
)
def test_mistakes_in_samples(text_run, entry, words):
    ended = text_run({"held": {"type": "samples", **entry}}, bos=False)
    assert ended.status == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not ended.folder.exists()


def test_samples_enter_a_name_only_where_they_are_set():
    def named(**options):
        evals = {"s": {"type": "samples", "every": 5, **options}}
        return content_hash({"base": {"name": "toy-llama"}, "task": {"name": "uuid"}, "evals": evals})

    assert named(count=4, temperature=0.0) == named()
    assert named(count=5) != named()


def test_trials_write_their_own_samples(program, toy, base, tmp_path):
    evals = {"s": {"type": "samples", "count": 1, "max_new_tokens": 2}}
    words = toy(tmp_path, train__steps=1, base__name=base, base__random_init=False, schedule__warmup_steps=0)
    words = [word for word in words if not word.startswith("--name=")]
    ended = program("trials", *words, "--seeds=0,1", f"--config.evals={json.dumps(evals)}")
    assert ended.status == 0, ended.err
    folders = [path.parent for path in tmp_path.glob("*/samples.jsonl")]
    assert len(folders) == 2
    for folder in folders:
        (row,) = rows_of(folder)
        assert (row["step"], len(row["reference"]), row["prompt"][-1]) == (1, 36, ":")
    assert ended.out.count("step 1, s: ") == 1


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
    settings["chat_template"] = "zephyr"
    assert settings.items() <= found[2].items()
    out = tmp_path / "deep" / "out.jsonl"
    stop = found[2]["completion"][-1]
    said = program("generate", *words, "--batch_size=1", f"--out={out}", f"--stop={stop}").out
    assert f"4 completions in {out}" in said
    cut = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["completion"] for row in cut] == [row["completion"].partition(stop)[0] for row in found]
    assert (cut[2]["ended"], found[2]["ended"]) == ("stop", "length")


def test_beams_of_a_prompt_and_of_a_file(lines, program, base, tmp_path):
    """The likeliest texts, with their scores, in batches whose last is filled up."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("the", "a longer prompt", "12")))
    words = (f"--base={base}", "--beams=4", "--length_penalty=0.8", "--no_repeat_ngram=2", "--max_new_tokens=6")
    found = lines(*words, f"--file={file}", "--batch_size=2")
    settings = {"beams": 4, "length_penalty": 0.8, "early_stopping": False, "no_repeat_ngram": 2}
    assert all(settings.items() <= row.items() for row in found)
    ended = program("generate", *words, "--prompt=12", f"--out={out}")
    assert ended.status == 0, ended.err
    alone = json.loads(out.read_text())
    assert (ended.out, alone["completion"]) == (found[2]["completion"] + "\n", found[2]["completion"])
    assert alone["score"] == pytest.approx(found[2]["score"], abs=1e-4)
    assert len({row["score"] for row in found}) == 3


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
    assert "--max_new_tokens" not in ended.err  # which would not help


def test_a_text_that_ends_at_the_limit_says_so(program, typed, base, tmp_path):
    """One line on stderr, also for a file of prompts and in a conversation; none for a text that ended otherwise."""
    words = ("generate", f"--base={base}", "--max_new_tokens=6")
    line = "at the limit of 6 new tokens; --max_new_tokens raises it\n"
    whole = program(*words, "--prompt=the")
    assert whole.err == f"the text ends {line}"
    stop = whole.out[2]
    assert "--max_new_tokens" not in program(*words, "--prompt=the", f"--stop={stop}").err
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("the", "12", "x")))
    ended = program(*words, f"--file={tmp_path / 'p.jsonl'}", f"--stop={stop}")
    count = sum(json.loads(row)["ended"] == "length" for row in ended.out.splitlines())
    assert 0 < count < 3
    assert ended.err == f"{count} of 3 texts end {line}"
    typed("hello\n")
    assert program(*words, "--chat", "--chat_template=zephyr").err.endswith(line)


def test_a_long_prompt_of_a_file_shortens_its_own_text_alone(program, base, tmp_path):
    positions = get_model("toy-llama").max_position_embeddings
    prompts = ["ab", "x" * (positions - 3), "cd"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = ("--max_new_tokens=10", "--batch_size=2", f"--file={tmp_path / 'p.jsonl'}", f"--out={tmp_path / 'o.jsonl'}")
    ended = program("generate", f"--base={base}", *words)
    assert ended.status == 0, ended.err
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    assert [row["max_new_tokens"] for row in rows] == [10, 3, 10]
    assert f"row 2 has {positions - 3} tokens: at most 3 new ones fit" in ended.err


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
        (["--base=B", "--prompt=a", "--beams=-1"], "--beams is -1; it must be at least 1"),
        (["--base=B", "--prompt=a", "--beams=2", "--length_penalty=9"], "--length_penalty is 9.0; it must lie in"),
        (["--base=B", "--prompt=a", "--length_penalty=2"], "--length_penalty is of beams; add --beams"),
        (["--base=B", "--prompt=a", "--beams=2", "--temperature=1"], "--temperature does not go with --beams"),
        (["--base=B", "--prompt=a", "--beams=2", "--stop=b"], "--stop does not go with --beams"),
        (["--base=B", "--beams=2", "--chat"], "--chat does not go with --beams"),
        (["--base=B", "--prompt=a", "--no_repeat_ngram=-1"], "no_repeat_ngram"),
        (["--base=B", "--prompt=a", "--dtype=int3"], "unknown dtype 'int3'"),
        (["--base=B", "--prompt=a", "--system=b"], "--system needs a chat template"),
        (["--base=B", "--prompt=a", "--chat_template=own"], "has no chat template"),
        (["--base=B", "--prompt=a", "--chat_template=zephir"], "did you mean zephyr"),
        (["--base=B", "--prompt=a", "--chat_template=chatml"], "has no token <|im_start|>"),
        (["--base=B", "--chat", "--chat_template=none"], "--chat_template=none cannot write messages"),
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
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', "nothing for the assistant to answer"),
        ('{"messages": [{"role": "human", "content": "a"}]}\n', "the role 'human'; roles are system, user"),
        ('{"messages": [{"content": "a"}]}\n', 'message 1 has no "role"'),
        ('{"messages": [{"role": "user"}]}\n', 'message 1: "content" is a NoneType'),
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
