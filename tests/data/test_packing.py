"""Packing: every token is a target once, marks between documents, token types and bad input."""

import itertools

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import PackedWindows, join_documents, pack_bins, token_dtype
from lowrank_jax.text.tokenizers import ByteTokenizer


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 15, 16, 64])
@pytest.mark.parametrize("seq_len", [2, 5, 8])
def test_each_token_but_the_first_is_a_target_once_and_in_order(length, seq_len):
    windows = PackedWindows(np.arange(length, dtype=np.uint16), seq_len)
    pieces = [windows[i]["tokens"] for i in range(len(windows))]
    assert np.concatenate([p[1:] for p in pieces]).tolist() == list(range(1, length))
    assert all(len(p) == seq_len for p in pieces[:-1])
    assert 2 <= len(pieces[-1]) <= seq_len
    assert all(before[-1] == after[0] for before, after in itertools.pairwise(pieces))


@pytest.mark.parametrize("index", [-1, 3])
def test_windows_outside_are_refused(index):
    with pytest.raises(IndexError):
        PackedWindows(np.arange(10), 4)[index]


def test_a_memory_map_is_read_in_place(tmp_path):
    np.arange(20, dtype=np.uint16).tofile(tmp_path / "tokens")
    windows = PackedWindows(np.memmap(tmp_path / "tokens", np.uint16, "r"), 8)
    assert windows[1]["tokens"].tolist() == list(range(7, 15))


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ({}, [97, 98, 257, 99, 257]),
        ({"add_bos": True}, [256, 97, 98, 257, 256, 99, 257]),
        ({"add_eos": False}, [97, 98, 99]),
    ],
)
def test_documents_are_joined_with_their_marks(marks, expected):
    joined = join_documents(["ab", "c"], ByteTokenizer(), **marks)
    assert joined.tolist() == expected
    assert joined.dtype == np.uint16


def test_bytes_and_subwords_agree_with_their_encoders(subwords):
    texts = ["the cat", "été ☃ 日本", "\ud800 half"]
    for tokenizer, some in ((ByteTokenizer(), texts), (subwords, texts[:2])):
        joined = join_documents(some, tokenizer, add_eos=False)
        assert joined.tolist() == [i for text in some for i in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("vocab", "dtype"), [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.uint32)]
)
def test_the_smallest_type_that_fits(vocab, dtype):
    assert token_dtype(vocab) == dtype


def test_no_documents_give_no_tokens_of_the_right_type():
    assert join_documents([], ByteTokenizer()).dtype == np.uint16


def test_bad_input():
    with pytest.raises(UserError, match="seq_len=1"):
        PackedWindows(np.arange(10), 1)
    with pytest.raises(UserError, match=r"has 1 token\(s\)"):
        PackedWindows(np.arange(1), 8)

    class Bare(ByteTokenizer):
        name, bos_id = "bare", None

    with pytest.raises(UserError, match="'bare' has no BOS token; set add_bos=False"):
        join_documents(["a"], Bare(), add_bos=True)


def test_bins_are_filled_by_the_row_that_fits_best():
    assert pack_bins([3, 6, 5, 4, 2], 10) == [[0, 2, 4], [1, 3]]
    assert pack_bins([4, 4, 4], 4) == [[0], [1], [2]]
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 1000).tolist()
    bins = pack_bins(lengths, 128)
    assert sorted(row for one in bins for row in one) == list(range(1000))  # each row once
    assert max(sum(lengths[row] for row in one) for one in bins) <= 128
    assert len(bins) < 1.02 * sum(lengths) / 128  # hardly any padding
