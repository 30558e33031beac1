"""Texts of a data set that does not fit in memory: each is read and encoded when a batch asks for it."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.row_kinds import TEXT, read_row
from lowrank_jax.data.sources import is_named, open_named, plain_row
from lowrank_jax.text.tokenizers import Tokenizer

SAMPLED = 64  # rows that are read at the start, evenly spread: for the digest, and to see that they are texts


class LazyTexts:
    """Random access to {"tokens": int32 [at most size], "targets": bool}, one text a row; longer ones lose their end.

    Args:
      source: hub:owner/name:split or tfds:name:split.
      tokenizer: of the base.
      size: tokens of a row.
      marks: ids that stand before and after each text.

    Attributes:
      digest: of SAMPLED rows and the number of all.

    Raises:
      UserError: no such data set, an empty one, or rows that are no texts.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, size: int, marks: tuple[list[int], list[int]] = ([], [])):
        self._rows, self._name = _opened(source), source
        self._tokenizer, self._size, self._marks = tokenizer, size, marks
        self.digest = _digest(source, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        before, after = self._marks
        ids = [*before, *self._tokenizer.encode(_text(self._name, self._rows, index)), *after][: self._size]
        targets = np.ones(len(ids), bool)
        targets[:1] = False
        return {"tokens": np.asarray(ids, np.int32), "targets": targets}


def lazy_digest(source: str) -> str:
    """The digest that `LazyTexts` of this source has."""
    return _digest(source, _opened(source))


def _opened(source: str) -> Sequence[Any]:
    if not is_named(source):
        raise UserError(f"task.lazy reads hub: and tfds: data sets, not {source!r}; set task.lazy=False for files")
    rows = open_named(source)
    if not len(rows):
        raise UserError(f"{source}: has no rows")
    return rows


def _text(source: str, rows: Sequence[Any], index: int) -> str:
    kind, row = read_row(f"{source}, row {index + 1}", plain_row(rows[index]))
    if kind != TEXT:
        raise UserError(f'{source}, row {index + 1}: task.lazy reads rows of {{"text"}}; set task.lazy=False')
    return row["text"]


def _digest(source: str, rows: Sequence[Any]) -> str:
    places = sorted({int(place) for place in np.linspace(0, len(rows) - 1, SAMPLED)})
    found = hashlib.sha256(str(len(rows)).encode())
    for place in places:
        found.update(json.dumps(_text(source, rows, place)).encode())
    return found.hexdigest()
