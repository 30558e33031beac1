"""Rows of the text task: conversations, prompts of sentencepiece tokenizers, and rows packed side by side."""

import io
import json

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.text import TextConfig, TextTask
from lowrank_jax.text.chat import find_template, prompt_ids
from lowrank_jax.text.tokenizers import ByteTokenizer, load_tokenizer

BYTES = ByteTokenizer()
ASKED, SAID = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "vier é"}
CORPUS = ["Question: how many cats sat on the mat? Answer: two cats", "the dog is here: two, not 12"] * 4


def everything(task, source):
    return [task.features(source[i]) for i in range(len(source))]


@pytest.fixture(scope="module")
def piece_folders(tmp_path_factory):
    """Llama-2's kind of tokenizer: as sentencepiece's file, and as a tokenizer.json of each way to put the space."""
    spm = pytest.importorskip("sentencepiece")
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import LlamaTokenizer

    made = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=made, vocab_size=330, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    folders = {name: tmp_path_factory.mktemp(name) for name in ("sentencepiece", "prepend", "metaspace")}
    (folders["sentencepiece"] / "tokenizer.model").write_bytes(made.getvalue())
    backend = LlamaTokenizer.from_pretrained(folders["sentencepiece"]).backend_tokenizer
    for name in ("prepend", "metaspace"):
        own = json.loads(backend.to_str())
        if name == "prepend":  # older files: a normaliser writes the mark of a space, before each text between marks
            own["normalizer"] = {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "▁"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
                ],
            }
            own["pre_tokenizer"] = None
            made = Tokenizer.from_str(json.dumps(own))
        else:
            own["normalizer"] = None
            made = Tokenizer.from_str(json.dumps(own))
            made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.save(str(folders[name] / "tokenizer.json"))
        (folders[name] / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return folders


@pytest.mark.parametrize("kind", ["sentencepiece", "prepend", "metaspace"])
def test_no_stray_space_between_prompt_and_completion(piece_folders, write, kind):
    """Decoding starts with the ids of training, and the text that is learned is the text that was written."""
    tokenizer = load_tokenizer(piece_folders[kind])
    rows = [
        {"prompt": "Question: how many cats? Answer:", "completion": " two cats"},
        {"prompt": "the cat", "completion": "s sat on the mat"},  # within a word
        {"prompt": "the mat\n", "completion": "two dogs"},
        {"prompt": "the dog ", "completion": "is here"},  # the space is a part of the next word
        {"prompt": "", "completion": "the cats"},
    ]
    task = TextTask(TextConfig(path=write(rows), packed=False, seq_len=64, add_bos=True), tokenizer)
    for row, made in zip(rows, everything(task, task.train_source()), strict=True):
        start = [tokenizer.bos_id, *tokenizer.encode(row["prompt"])]
        assert made["tokens"][: len(start)].tolist() == start, row
        assert made["weights"][: len(start)].sum() == 0
        learned = made["tokens"][made["weights"] > 0].tolist()
        assert learned[-1] == tokenizer.eos_id
        whole = tokenizer.decode([*start, *learned])
        assert whole.lstrip() == row["prompt"] + row["completion"], row
    separately = [*tokenizer.encode(rows[1]["prompt"]), *tokenizer.encode(rows[1]["completion"])]
    assert tokenizer.decode(separately).lstrip() == "the cat s sat on the mat"  # what it was


@pytest.mark.parametrize("kind", ["sentencepiece", "prepend", "metaspace"])
def test_a_conversation_of_a_sentencepiece_tokenizer(piece_folders, write, kind):
    tokenizer = load_tokenizer(piece_folders[kind])
    talk = {"messages": [ASKED, {"role": "assistant", "content": "two cats"}] * 2}
    task = TextTask(TextConfig(path=write([talk]), packed=False, seq_len=128, chat_template="zephyr"), tokenizer)
    (made,) = everything(task, task.train_source())
    ids, weights = made["tokens"].tolist(), made["weights"]
    for turn in (1, 3):
        start = prompt_ids(tokenizer, find_template(tokenizer, "zephyr"), talk["messages"][:turn])
        assert ids[: len(start)] == start
        assert weights[len(start) - 1 : len(start) + 1].tolist() == [0, 1]
    learned = [i for i, weight in zip(ids, weights, strict=True) if weight]
    assert learned.count(tokenizer.eos_id) == 2
    assert tokenizer.decode(learned).replace(" ", "") == "twocatstwocats"


def test_conversations_are_learned_turn_by_turn(write):
    rows = [
        {"messages": [ASKED, SAID]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}] * 2},
        {"prompt": [ASKED, SAID, ASKED], "completion": [{**SAID, "content": "end"}]},
    ]
    path = write(rows)
    config = TextConfig(path=path, validation_path=path, packed=False, seq_len=0, chat_template="zephyr", add_bos=True)
    task = TextTask(config, BYTES)
    learned = [made["tokens"][made["weights"] > 0].tolist() for made in everything(task, task.train_source())]
    assert learned == [[*"vier é".encode(), 257], [*b"b", 257, *b"b", 257], [*b"end", 257]]
    assert all(made["tokens"][0] == 256 != made["tokens"][1] for made in everything(task, task.train_source()))
    metrics = task.validation_metrics(7.0, float(sum(map(len, learned))))
    assert metrics["loss_per_byte"] == pytest.approx(7 / len("vier ébbend".encode()))
    # A template that leaves the last turn open: EOS is added, and learned.
    source = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{{ '[assistant] ' if add_generation_prompt }}"
    )
    open_ended = ByteTokenizer(source)
    task = TextTask(TextConfig(path=path, packed=False, seq_len=128), open_ended)
    last = everything(task, task.train_source())[2]
    assert last["tokens"][last["weights"] > 0].tolist() == [*b"end", 257]


def test_faults_of_conversations(write):
    path = write([{"messages": [ASKED, SAID]}, {"messages": [{"role": "tool", "content": "x"}, SAID]}])
    refusing = ByteTokenizer(
        "{% for m in messages %}{{ raise_exception('no tools') if m.role == 'tool' }}{{ m.content }}{% endfor %}"
    )
    refusing_nothing = ByteTokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: the chat template .* of tool, assistant: no tools; chan"):
        TextTask(TextConfig(path=path, packed=False), refusing)
    with pytest.raises(UserError, match=r"tokenizer 'bytes' has no chat template; set task.chat_template to one of"):
        TextTask(TextConfig(path=path, packed=False), BYTES)
    unread = r"task.chat_template=zephyr is for conversations, the rows of \S+b\.jsonl are of kind '{}'; add --config\."
    for row, kind in ({"text": "a"}, "text"), ({"prompt": "a", "completion": "b"}, "completion"):
        with pytest.raises(UserError, match=unread.format(kind)):
            TextTask(TextConfig(path=write([row], "b.jsonl"), chat_template="zephyr", packed=False), BYTES)
    also = {
        "chat_template": "zephyr",
        "packed": False,
        "also_prompts": True,
    }  # texts, of which nothing is an answer, too
    with pytest.raises(UserError, match=unread.format("text")):
        TextTask(TextConfig(path=write([{"text": "a"}], "b.jsonl"), **also), BYTES)
    mixed = {"path": path, "validation_path": write([{"text": "a"}], "b.jsonl"), "packed": False}
    with pytest.raises(UserError, match=r"task.path of kind 'chat', task.validation_path of kind 'text'; give both"):
        TextTask(TextConfig(**mixed), refusing_nothing)
    with pytest.raises(UserError, match=r"task.seq_len is 512 and the base has 256 positions; lower task.seq_len"):
        TextTask(TextConfig(path=write([{"text": "ab"}], "b.jsonl")), BYTES, 256)
    with pytest.raises(UserError, match=r"or --config.task.documents=separate to pack them as well"):
        TextTask(TextConfig(path=path, chat_template="zephyr"), BYTES)
    with pytest.raises(UserError, match=r"task.documents=separate says how rows are packed; set task.packed=True"):
        TextConfig(path=path, packed=False, documents="separate")
    with pytest.raises(UserError, match="separate"):
        TextConfig(path=path, documents="separat")


@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
def test_rows_packed_side_by_side_are_the_rows_alone(write, kind):
    """Every row is in one bin, whole, under a number of its own; targets and scored bytes are those without packing."""
    words = ["cat", "a longer row", "é", "mat", "of", "the last of them"]
    rows = {
        "text": [{"text": word} for word in words],
        "completion": [{"prompt": word, "completion": word[::-1]} for word in words],
        "chat": [{"messages": [{**ASKED, "content": word}, SAID]} for word in words],
    }[kind]
    path = write(rows)
    config = {"path": path, "validation_path": path, "seq_len": 80, "chat_template": "zephyr" if kind == "chat" else ""}
    alone = TextTask(TextConfig(packed=False, **config), BYTES)
    packed = TextTask(TextConfig(documents="separate", **config), BYTES)
    wanted = {
        bytes(made["tokens"].astype(np.uint16)[: len(one["tokens"])]): made["weights"][: len(one["tokens"])].tolist()
        for one, made in zip(alone.train_source(), everything(alone, alone.train_source()), strict=True)
    }
    found = {}
    made = everything(packed, packed.train_source())
    for row in made:
        assert row["segments"].dtype == np.int32
        for number in range(1, row["segments"].max() + 1):
            place = row["segments"] == number
            assert row["weights"][place][0] == 0  # the first token of a document has nothing before it
            found[bytes(row["tokens"].astype(np.uint16)[place])] = row["weights"][place].tolist()
        assert row["weights"][row["segments"] == 0].sum() == 0
    assert found == wanted
    assert len(made) < len(rows)
    assert packed.validation_metrics(1.0, 1.0) == alone.validation_metrics(1.0, 1.0)


def test_a_long_text_is_divided_and_a_long_conversation_is_not(write):
    config = TextConfig(path=write([{"text": "0123456789"}, {"text": "ab"}]), seq_len=5, documents="separate")
    task = TextTask(config, BYTES)
    assert task.notes == ()
    made = everything(task, task.train_source())
    targets = sorted(int(t) for row in made for t in row["tokens"][row["weights"] > 0])
    assert targets == sorted([*b"123456789", 257, *b"b", 257])  # each but the first of each text, once
    talk = write([{"messages": [ASKED, SAID]}, {"messages": [{**ASKED, "content": "a" * 90}, SAID]}], "b.jsonl")
    long = {"path": talk, "seq_len": 64, "documents": "separate", "chat_template": "zephyr"}
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: has \d+ tokens, seq_len is 64; set truncate=True"):
        TextTask(TextConfig(**long), BYTES)
    task = TextTask(TextConfig(truncate=True, **long), BYTES)
    assert "1 of 2 row(s) left out, as no target remains" in task.notes[0]
    chosen = TextTask(TextConfig(**{**long, "seq_len": 0, "max_seq_len": 512}), BYTES)
    assert chosen.seq_len == 128  # the longer row's tokens, rounded up: 164 for both would be one example
    (rows, many) = ([{"messages": [ASKED, SAID]}], write([{"messages": [ASKED, SAID]}] * 640, "c.jsonl"))
    one = TextTask(TextConfig(**{**long, "path": write(rows, "d.jsonl"), "seq_len": 0}), BYTES).longest
    packed = TextTask(TextConfig(**{**long, "path": many, "seq_len": 0, "max_seq_len": 2048}), BYTES)
    assert (packed.longest, packed.total, packed.seq_len) == (one, 640 * one, 10 * one + -10 * one % 8)
    assert len(packed.train_source()) == 64
