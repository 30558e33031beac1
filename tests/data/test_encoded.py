"""Encoded rows: each row as encoded alone, over chunk borders."""

import numpy as np

from lowrank_jax.data import encoded
from lowrank_jax.data.tokenizers import ByteTokenizer, encode_pair


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
