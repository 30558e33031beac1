"""Texts and pairs as ids, encoded once: rows of any length in one flat array, read by index."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lowrank_jax.text.tokenizers import Tokenizer

WHOLE = 2**31 - 1  # a length that cuts no row
CHUNK = 8192  # rows encoded at once: Python's lists of ids take about ten times the arrays' memory


class EncodedRows:
    """Random access to {"tokens": int32 [n], "types": int32 [n], "label": scalar}, n differs by row.

    Args:
      tokens, types: int32 [sum of lengths], all rows one after the other.
      lengths: int32 [rows].
      labels: int32 or float32 [rows].
      whole: int32 [rows], the lengths before cutting; None where no row was cut.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        types: np.ndarray,
        lengths: np.ndarray,
        labels: np.ndarray,
        whole: np.ndarray | None = None,
    ):
        self.tokens, self.types, self.lengths, self.labels = tokens, types, lengths, labels
        self.whole = lengths if whole is None else whole
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        end = self._ends[index]
        place = slice(end - self.lengths[index], end)
        return {"tokens": self.tokens[place], "types": self.types[place], "label": self.labels[index]}


def encode_rows(
    tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None, labels: np.ndarray, max_len: int
) -> EncodedRows:
    """Encodes texts or pairs with the tokenizer's template, at most `max_len` tokens each; see `encode_pairs`."""
    tokens, types, lengths = [], [], []

    def encode(indices: Iterable[int], length: int):
        return tokenizer.encode_pairs(
            [first[i] for i in indices], None if second is None else [second[i] for i in indices], length
        )

    for start in range(0, len(first), CHUNK):
        rows = encode(range(start, min(start + CHUNK, len(first))), max_len)
        tokens.append(np.concatenate([np.array(ids, np.int32) for ids, _ in rows]))
        types.append(np.concatenate([np.array(kinds, np.int32) for _, kinds in rows]))
        lengths += [len(ids) for ids, _ in rows]
    whole = np.array(lengths, np.int32)
    full = np.flatnonzero(whole == max_len)  # the rows that may have been cut
    for start in range(0, len(full), CHUNK):
        part = full[start : start + CHUNK]
        whole[part] = [len(ids) for ids, _ in encode(part, WHOLE)]
    return EncodedRows(np.concatenate(tokens), np.concatenate(types), np.array(lengths, np.int32), labels, whole)
