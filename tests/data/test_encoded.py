"""Encoded rows: each row as encoded alone, over chunk borders."""

import copy

import numpy as np
import pytest

from lowrank_jax.data import encoded
from lowrank_jax.text.tokenizers import ByteTokenizer, SubwordTokenizer, encode_pair


def test_rows_are_what_each_text_encodes_to(monkeypatch):
    monkeypatch.setattr(encoded, "CHUNK", 3)
    first = ["", "a", "bb", "naïve", "dddd", "ee", "a long one"]
    labels = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    for second in (None, first[::-1]):
        rows = encoded.encode_rows(ByteTokenizer(), first, second, labels, 9)
        assert len(rows) == 7
        for i in range(7):
            ids, types = encode_pair(ByteTokenizer(), first[i], second and second[i], 9)
            row = rows[i]
            assert row["tokens"].tolist() == ids
            assert row["types"].tolist() == types
            assert row["label"] == labels[i]
            assert rows.lengths[i] == len(ids) <= 9
            assert (row["tokens"].dtype, row["types"].dtype, row["label"].dtype) == (np.int32,) * 3


@pytest.mark.parametrize("kind", ["bytes", "subwords", "template"])
@pytest.mark.parametrize("pairs", [False, True])
def test_lengths_before_rows_are_cut(monkeypatch, subwords, kind, pairs):
    """Counted text by text; `template` is the backend's own [CLS] a [SEP] b [SEP]."""
    from tokenizers import processors

    tokenizer = ByteTokenizer() if kind == "bytes" else subwords
    if kind == "template":
        backend = copy.deepcopy(subwords.backend)
        ends = [("<s>", 0), ("</s>", 1)]
        backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
        tokenizer = SubwordTokenizer(backend, 0, 1)
    monkeypatch.setattr(encoded, "CHUNK", 2)
    first = ["the cat", "sat", "on the mat and ate a fig", "a", "face deed cafe", "the mat", "", "beef " * 20]
    second = first[::-1] if pairs else None
    rows = encoded.encode_rows(tokenizer, first, second, np.zeros(len(first), np.int32), 9)
    texts = zip(first, second, strict=True) if pairs else ((text,) for text in first)
    specials = 3 if pairs else 2
    assert rows.whole.tolist() == [sum(len(tokenizer.encode(text)) for text in row) + specials for row in texts]
    assert rows.lengths.tolist() == np.minimum(rows.whole, 9).tolist()
