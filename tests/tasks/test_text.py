"""The text task: windows and rows, what is scored, bytes of held-out text, and bad input."""

import dataclasses
import gzip
import logging
import math

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.text import TextConfig, TextTask
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


def everything(task, source):
    return [task.features(source[i]) for i in range(len(source))]


@pytest.mark.parametrize("marks", [{}, {"add_bos": True}, {"add_eos": False}])
def test_packed_windows_score_each_token_once(write, marks):
    path = write([{"text": "hello world"}, {"text": "été"}])
    task = TextTask(TextConfig(path=path, seq_len=6, **marks), BYTES)
    made = everything(task, task.train_source())
    bos, eos = ([256] if marks.get("add_bos") else []), ([257] if marks.get("add_eos", True) else [])
    stream = [*bos, *b"hello world", *eos, *bos, *"été".encode(), *eos]
    assert [int(t) for m in made for t in m["tokens"][m["weights"] == 1]] == stream[1:]
    assert all(m["tokens"].shape == (6,) and m["weights"][0] == 0 for m in made)


def test_rows_of_text_are_padded_and_scored_whole(write):
    task = TextTask(
        TextConfig(path=write([{"text": "abc"}, {"text": "de"}]), seq_len=8, packed=False, add_bos=True), BYTES
    )
    first, second = everything(task, task.train_source())
    assert first["tokens"].tolist() == [256, 97, 98, 99, 257, 258, 258, 258]
    assert first["weights"].tolist() == [0, 1, 1, 1, 1, 0, 0, 0]
    assert second["weights"].sum() == 3


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_completion_rows_score_the_completion_and_eos(write, kind, subwords):
    tokenizer = {"bytes": BYTES, "subwords": subwords}[kind]
    path = write([{"prompt": "the cat: ", "completion": "sat on"}, {"prompt": "", "completion": "ate"}])
    task = TextTask(TextConfig(path=path, seq_len=24, packed=False), tokenizer)
    first, second = everything(task, task.train_source())
    scored = first["tokens"][first["weights"] == 1].tolist()
    assert scored == [*tokenizer.encode("sat on"), tokenizer.eos_id]
    assert first["tokens"][: len(tokenizer.encode("the cat: "))].tolist() == tokenizer.encode("the cat: ")
    assert second["weights"][0] == 0
    assert second["tokens"][second["weights"] == 1].tolist() == [
        *tokenizer.encode("ate")[1:],
        tokenizer.eos_id,
    ]


def test_long_rows_are_refused_at_the_start_or_cut_and_said(write, caplog):
    rows = [
        {"prompt": "ab", "completion": "cdef"},
        {"prompt": "abcdefgh", "completion": "i"},
        {"prompt": "a", "completion": "b"},
    ]
    path = write(rows)
    with pytest.raises(
        UserError,
        match=r"a\.jsonl, line 1: has 7 tokens, seq_len is 5; set truncate=True "
        r"\(2 of 3 rows are longer\), or raise seq_len: 10 keeps all",
    ):
        TextTask(TextConfig(path=path, seq_len=5, packed=False), BYTES)
    with caplog.at_level(logging.WARNING):
        task = TextTask(TextConfig(path=path, seq_len=5, packed=False, truncate=True), BYTES)
    (note,) = task.notes  # 2 tokens of the first row and all 10 of the second, of 7 + 10 + 3
    assert note == (
        "task.path: 2 of 3 row(s) longer than task.seq_len=5; 12 of 20 tokens are lost; task.seq_len=10 keeps all; "
        f"1 of 3 row(s) left out, as no target remains: {path}, line 2"
    )
    assert caplog.messages == [note]
    first, second = everything(task, task.train_source())
    assert first["tokens"].tolist() == [*b"abcde"]
    assert first["weights"].tolist() == [0, 0, 1, 1, 1]
    assert second["tokens"].tolist() == [*b"ab", 257, 258, 258]
    assert second["weights"].tolist() == [0, 1, 1, 0, 0]
    with pytest.raises(UserError, match="no row keeps a target within seq_len=2; raise seq_len: 10 keeps all"):
        TextTask(TextConfig(path=write(rows[:2]), seq_len=2, packed=False, truncate=True), BYTES)


def test_the_length_that_keeps_all_does(write, caplog):
    rows = [{"prompt": "ab", "completion": "cdef"}, {"prompt": "abcdefgh", "completion": "i"}]
    path = write(rows)
    for config in ({"seq_len": 10}, {"seq_len": 10, "truncate": True}):
        task = TextTask(TextConfig(path=path, validation_path=path, packed=False, **config), BYTES)
        assert (task.notes, len(task.train_source())) == ((), 2)
    packed = TextTask(TextConfig(path=write([{"text": "hello world"}, {"text": "a"}]), seq_len=5), BYTES)
    assert packed.notes == ()
    assert sum(len(row["tokens"]) - 1 for row in packed.train_source()) == 13  # all but the first: nothing at the end
    assert not caplog.messages


def test_rows_that_are_cut_are_found_in_every_file(write, tmp_path, caplog):
    """Several files, one compressed; held-out files; more rows without a target than a line names."""
    short = write([{"prompt": "", "completion": "ab"}] * 2)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b'\n{"prompt": "abcdef", "completion": "g"}\n' * 5))
    config = TextConfig(path=short, validation_path=(short, str(packed)), seq_len=4, packed=False)
    with pytest.raises(UserError, match=r"b\.jsonl\.gz, line 2: has 8 tokens, seq_len is 4; .*5 of 7 rows are longer"):
        TextTask(config, BYTES)
    task = TextTask(dataclasses.replace(config, truncate=True), BYTES)
    assert task.notes == tuple(caplog.messages)
    assert task.notes == (
        "task.validation_path: 5 of 7 row(s) longer than task.seq_len=4; 40 of 46 tokens are lost; "
        "task.seq_len=8 keeps all; 5 of 7 row(s) left out, as no target remains: "
        f"{packed}, line 2; {packed}, line 4; {packed}, line 6; and 2 more",
    )
    assert (len(task.train_source()), len(task.validation_source())) == (2, 2)


def test_rows_of_a_single_token_are_said_too(write):
    path = write([{"text": "a"}, {"text": "bc"}])
    task = TextTask(TextConfig(path=path, seq_len=4, packed=False, add_eos=False), BYTES)
    assert task.notes == (
        f"task.path: 1 of 3 tokens are lost; 1 of 2 row(s) left out, as no target remains: {path}, line 1",
    )
    assert len(task.train_source()) == 1
    with pytest.raises(UserError, match="no row keeps a target within seq_len=4; give longer rows"):
        TextTask(TextConfig(path=write([{"text": "a"}]), seq_len=4, packed=False, add_eos=False), BYTES)


@pytest.mark.parametrize(
    ("config", "rows", "scored"),
    [
        ({}, [{"text": "abc"}, {"text": "été"}], "bcété"),  # the very first byte has nothing before it
        ({"add_bos": True}, [{"text": "abc"}, {"text": "été"}], "abcété"),
        ({"packed": False}, [{"text": "abc"}, {"text": "xyz"}], "bcyz"),
        ({"packed": False, "add_bos": True}, [{"text": "abc"}, {"text": "été"}], "abcété"),
        ({"packed": False}, [{"prompt": "q", "completion": "été"}], "été"),
        ({"packed": False, "truncate": True, "seq_len": 4}, [{"prompt": "q", "completion": "abcdefg"}], "abc"),
    ],
)
def test_held_out_loss_per_byte_counts_the_scored_bytes(write, config, rows, scored):
    path = write(rows)
    task = TextTask(TextConfig(**{"path": path, "validation_path": path, "seq_len": 16, **config}), BYTES)
    made = everything(task, task.validation_source())
    hits = np.concatenate([m["tokens"][m["weights"] == 1] for m in made])
    assert BYTES.decode(hits) == scored  # EOS is a target and no byte
    metrics = task.validation_metrics(loss_sum=6.0, weight_sum=float(len(hits)))
    assert metrics["loss"] == pytest.approx(6 / len(hits))
    assert metrics["perplexity"] == pytest.approx(math.exp(6 / len(hits)))
    assert metrics["loss_per_byte"] == pytest.approx(6 / len(scored.encode()))
    assert metrics["bits_per_byte"] == pytest.approx(6 / len(scored.encode()) / math.log(2))


def test_a_diverged_loss_is_reported_and_does_not_overflow(write):
    path = write([{"text": "abc"}])
    task = TextTask(TextConfig(path=path, validation_path=path), BYTES)
    assert math.isfinite(task.validation_metrics(1e6, 1.0)["perplexity"])


def test_several_files_and_no_validation(write):
    paths = [write([{"text": "abc"}]), write([{"text": "de"}], "b.jsonl")]
    task = TextTask(TextConfig(path=paths, seq_len=16, add_eos=False), BYTES)
    assert isinstance(task.config.path, tuple)
    assert task.validation_source() is None
    assert task.train_source()[0]["tokens"].tolist() == [*b"abcde"]


@pytest.mark.parametrize(
    ("rows", "more", "positions", "length"),
    [
        ([{"text": "a" * 40}, {"text": "ab"}], {}, None, 48),  # 40 bytes and EOS
        ([{"prompt": "q" * 30, "completion": "a" * 9}], {}, 2048, 40),  # 39 and EOS
        ([{"text": "a" * 300}, {"text": "ab"}], {"truncate": True}, None, 256),
        ([{"text": "a" * 300}], {"truncate": True}, 100, 100),  # of the model
        ([{"text": "a" * 9}] * 5, {"packed": True}, None, 56),  # 50 tokens in one window
        ([{"text": "a" * 99}] * 5, {"packed": True}, None, 256),
    ],
)
def test_a_length_from_the_data(write, rows, more, positions, length):
    """Of the longest row, rounded up to 8 and bounded; what is cut then is noted as ever."""
    task = TextTask(TextConfig(path=write(rows), **{"seq_len": 0, "packed": False, **more}), BYTES, positions)
    assert task.seq_len == length
    assert task.features(task.train_source()[0])["tokens"].shape == (length,)
    assert bool(task.notes) == ("truncate" in more)


def test_a_length_from_the_data_counts_held_out_rows_too(write):
    paths = {"path": write([{"text": "abc"}]), "validation_path": write([{"text": "a" * 20}], "b.jsonl")}
    assert TextTask(TextConfig(**paths, seq_len=0, packed=False), BYTES).seq_len == 24


def test_bad_input(write):
    with pytest.raises(UserError, match=r"task\.path is empty"):
        TextConfig()
    with pytest.raises(UserError, match=r"task\.seq_len is 1"):
        TextConfig(path="a", seq_len=1)
    with pytest.raises(UserError, match=r'packed=True takes "text" rows; add --config.task.packed=false for'):
        TextTask(TextConfig(path=write([{"prompt": "a", "completion": "b"}])), BYTES)
    with pytest.raises(UserError, match="no such file"):
        TextTask(TextConfig(path=write([{"text": "abc"}]), validation_path="/nowhere.jsonl"), BYTES)
    with pytest.raises(UserError, match=r"has 1 token\(s\)"):
        TextTask(TextConfig(path=write([{"text": "a"}]), add_eos=False), BYTES)


def test_public_text_is_packed(data_folder):
    names = ("novels_train", "peps_train")
    task = TextTask(TextConfig(path=tuple(str(data_folder / "text-en" / f"{n}.jsonl.xz") for n in names)), BYTES)
    tokens = task.train_source().tokens
    assert tokens.dtype == np.uint16
    assert len(tokens) == 73_371_499 + 13_129_752 + 94 + 666
