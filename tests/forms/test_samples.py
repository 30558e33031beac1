"""What samples continue: the tokens before an example's targets in training, of every kind of rows."""

import json
import sys
from types import SimpleNamespace

import pytest

from experiments.generation.framing import make_framing, no_template
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import SHOWN
from lowrank_jax.data.prompts import Asked, read_prompts
from lowrank_jax.forms.generation import OPENING, SamplesOptions, _asked, samples
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.text import TextConfig, TextTask
from lowrank_jax.tasks.uuid import UuidConfig, UuidTask
from lowrank_jax.text.chat import end_ids, find_template, prompt_ids
from lowrank_jax.text.tokenizers import ByteTokenizer
from lowrank_jax.train.meter import _beside

BYTES = ByteTokenizer()
SETTING = SimpleNamespace(tokenizer=BYTES, model=SimpleNamespace(max_position_embeddings=64), end_ids=tuple)
CHAT = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"},
                  {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "no"}]}
    for n in (1, 22)
]  # fmt: skip


@pytest.fixture
def task_of(tmp_path):
    """task_of(rows, key=value, ...) -> the task on rows that are held out too."""

    def make(rows, framing=PLAIN, **config):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return TextTask(TextConfig(path=str(file), validation_path=str(file), **config), BYTES, framing=framing)

    return make


def asked(task, **options):
    return list(_asked(SETTING, task, SamplesOptions(**options), new=8))


@pytest.mark.parametrize("packing", [{"packed": False}, {"packed": True, "documents": "separate"}])
def test_a_conversation_s_first_answer_is_the_reference(task_of, packing):
    """Its ids are those of decoding, also of rows that are packed into one example."""
    task = task_of(CHAT, seq_len=256, chat_template="zephyr", **packing)
    found, template = asked(task), find_template(BYTES, "zephyr")
    wanted = [prompt_ids(BYTES, template, row["messages"][:1]) for row in CHAT]
    assert [one.ids for one in found] == wanted
    assert [one.reference.strip() for one in found] == ["yes", "yes"]
    assert task.prompt_tokens("1?") == wanted[0]
    assert task.prompt_tokens(CHAT[1]["messages"][:1]) == wanted[1]
    assert task.end_ids == end_ids(BYTES, template)


def test_the_terminal_shows_a_prompt_with_its_special_tokens(task_of, monkeypatch):
    """On lines of their own, as the template wrote them; no control character that a model writes is sent."""
    task = task_of(CHAT, seq_len=256, chat_template="zephyr", packed=False)
    monkeypatch.setattr(
        "lowrank_jax.forms.generation._generator", lambda *_, **__: lambda variables: ["a\n\x1b[2J"] * 2
    )
    (first, _) = samples(SETTING, task, SamplesOptions(max_new_tokens=4)).one(None)
    template = find_template(BYTES, "zephyr")
    assert first[SHOWN] == template.render(CHAT[0]["messages"][:1], add_generation_prompt=True)
    assert "<|eos|>" in first[SHOWN]
    assert "<|eos|>" not in first["prompt"]
    lines = _beside(first[SHOWN], first["continuation"]).splitlines()
    assert lines == ["", "    <|user|>", "    1?<|eos|>", "    <|assistant|>", "    => a", "    \\x1b[2J"]
    assert _beside("1 and ", "2") == " '1 and ' => '2'"
    assert _beside("ab" * 300, "c" * 300) == f" '...{'ab' * 100}' => '{'c' * 200}...'"


def test_rows_of_other_kinds(task_of):
    pair = {"prompt": "2 and 2 is ", "completion": "4"}
    for bos in (False, True):
        (one,) = asked(task_of([pair], packed=False, seq_len=32, add_bos=bos))
        assert (one.ids, one.prompt, one.reference) == ([256] * bos + BYTES.encode(pair["prompt"]), pair["prompt"], "4")
    (short,) = asked(task_of([{"text": "ten letters"}], packed=False, seq_len=32))
    assert (short.prompt, short.reference) == ("ten le", "tters")
    long = asked(task_of([{"text": "x" * 300}], seq_len=150, add_eos=False), count=2)
    assert [len(one.ids) for one in long] == [OPENING] * 2
    assert [len(one.reference) for one in long] == [150 - OPENING] * 2


def test_virtual_tokens_stand_around_prompts_and_are_no_text(task_of):
    """In held-out rows and in the prompts of the config; of a text, a prefix alone and then half of it."""
    virtual, pair = Framing((300, 301), (302,)), {"prompt": "2 and 2 is ", "completion": "4"}
    task = task_of([pair], virtual, packed=False, seq_len=32)
    wanted = [300, 301, *BYTES.encode(pair["prompt"]), 302]
    for options in ({}, {"prompts": (pair["prompt"],)}):
        (one,) = asked(task, **options)
        assert (one.ids, one.prompt) == (wanted, pair["prompt"])
    for packed in (False, True):
        text = task_of([{"text": "ten letters"}], Framing((300, 301)), packed=packed, seq_len=32)
        (one,) = asked(text)
        assert (one.ids, one.prompt, one.reference) == ([300, 301, *b"ten le"], "ten le", "tters")


@pytest.mark.parametrize("packing", [{"packed": False}, {"packed": True, "documents": "separate"}])
def test_short_and_long_prompts(task_of, packing):
    """A prompt of one token is one; of held-out rows those with room for new tokens are taken, or the shortest."""
    rows = [{"prompt": prompt, "completion": "pple"} for prompt in ("A", "x" * 60, "y" * 58, "O")]
    task = task_of(rows, seq_len=256, **packing)
    assert [(one.prompt, one.reference) for one in asked(task)] == [("A", "pple"), ("O", "pple")]
    (one,) = asked(task_of(rows[1:3], seq_len=256, **packing))
    assert one.prompt == "y" * 58


def test_prompts_that_are_given(task_of, tmp_path):
    task = task_of([{"prompt": "a", "completion": "b"}], packed=False, seq_len=8)
    assert [one.ids for one in asked(task, prompts=("x", "yz", "u"), count=2)] == [[120], [121, 122]]
    (tmp_path / "own.jsonl").write_text('{"prompt": "q", "completion": "r"}\n')
    assert asked(task, prompts=str(tmp_path / "own.jsonl")) == [([113], "q", "r")]
    (tmp_path / "own.jsonl").write_text('{"messages": [{"role": "user", "content": "q"}], "prompt": null}\n')
    with pytest.raises(UserError, match="messages need a chat template"):
        asked(task, prompts=str(tmp_path / "own.jsonl"))


@pytest.mark.parametrize("keys", [("messages",), ("prompt", "completion")])
def test_the_answer_at_the_end_of_a_conversation_is_its_reference(tmp_path, keys):
    """A file of conversations to learn from is answered anew, not continued behind its answers."""
    rows = [row["messages"] for row in CHAT]
    split = [[row] if len(keys) == 1 else [row[:3], row[3:]] for row in rows]
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in split]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert read_prompts(tmp_path / "rows.jsonl") == [Asked(messages=tuple(row[:3]), reference="no") for row in rows]


def test_uuids_and_no_held_out_data(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    task = UuidTask(UuidConfig(pairs=3, eval_pairs=1), BYTES)
    (one,) = asked(task, count=1)
    assert (one.ids, one.prompt[-1], len(one.reference)) == (task.prompt_tokens(one.prompt), ":", 36)
    (tmp_path / "rows.jsonl").write_text('{"text": "abcd"}\n')
    alone = TextTask(TextConfig(path=str(tmp_path / "rows.jsonl"), seq_len=4), BYTES)
    with pytest.raises(UserError, match=r"nothing to continue; set its prompts, or give the task held-out data"):
        asked(alone)
    with pytest.raises(UserError, match="70 tokens, and 8 new ones exceed the model's 64 positions"):
        samples(SETTING, alone, SamplesOptions(prompts=("x" * 70,), max_new_tokens=8))


def test_the_framing_of_a_run_is_that_of_its_training(task_of, monkeypatch):
    """Of conversations a prompt is a user's message, by the rows or the config; of texts it is a text."""
    own = ByteTokenizer(find_template(BYTES, "zephyr").source)
    base = SimpleNamespace(tokenizer=own)

    def framing(rows, template="", **config):
        task = task_of(rows, seq_len=256, packed=False, **{"chat_template": "zephyr", **config}).config
        return make_framing(SimpleNamespace(base=base, task=task, virtual=PLAIN), template, None, "", messages=False)

    wanted = prompt_ids(own, find_template(own), [{"role": "user", "content": "1?"}])
    found = framing(CHAT)
    assert found.ids(Asked("1?")) == wanted
    assert "a user's message in its chat template" in found.said
    text = framing([{"prompt": "a", "completion": "b"}], chat_template="", add_bos=True)
    assert (text.ids(Asked("1?")), text.said) == ([256, *b"1?"], "")
    assert framing(CHAT, "none").ids(Asked("1?")) == [*b"1?"]
    gone = TextConfig(path="gone.jsonl")
    said = make_framing(SimpleNamespace(base=base, task=gone, virtual=PLAIN), "", None, "", messages=False)
    assert "the run's data are not here" in said.said
    by_rows = TextConfig(path=task_of(CHAT, seq_len=256, packed=False, chat_template="zephyr").config.path)
    found = make_framing(SimpleNamespace(base=base, task=by_rows, virtual=PLAIN), "", None, "", messages=False)
    assert found.ids(Asked("1?")) == wanted
    named = SimpleNamespace(base=base, task=TextConfig(path="hub:owner/name"), virtual=PLAIN)
    for rows, wanted_said in ((CHAT, "a user's message"), (None, "the run's data are not here")):
        library = SimpleNamespace(load_dataset=lambda *_, rows=rows, **__: iter(rows))
        monkeypatch.setitem(sys.modules, "datasets", library)
        assert wanted_said in make_framing(named, "", None, "", messages=False).said
    bare = SimpleNamespace(base=SimpleNamespace(tokenizer=BYTES), task=None, virtual=PLAIN)
    assert make_framing(bare, "", None, "", messages=False).said == ""
    alone = SimpleNamespace(base=base, task=None, virtual=PLAIN)  # a base, or a merged model
    plain = make_framing(alone, "", None, "", messages=False)
    assert plain.ids(Asked("1?")) == [*b"1?"]
    assert "continued as plain text" in plain.said
    assert "--chat_template=own sends it as a user's message" in plain.said
    assert make_framing(alone, "none", None, "", messages=False).said == ""
    by_template = make_framing(alone, "own", None, "", messages=False)
    assert (by_template.ids(Asked("1?")), by_template.said) == (wanted, "")
    with pytest.raises(UserError, match="--chat_template=chatml, "):
        make_framing(bare, "", None, "", messages=True)
    assert "has no chat template" in no_template(BYTES)
