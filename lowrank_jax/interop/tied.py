"""Heads that a config ties to the embedding: compared with it where the file has both."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.keymap import BLOCK
from lowrank_jax.interop.readers import Reader

Pair = tuple[str, str]  # a tied tensor's key, and the key of what it is a copy of


def fit(reader: Reader, config: Any, pairs: Sequence[Pair], unused: Sequence[str] = ()) -> tuple[Any, tuple[str, ...]]:
    """The config, with its head untied where the file's head differs from the embedding, and a line that says so.

    transformers 5 ties equal tensors and leaves different ones untied, whatever tie_word_embeddings says; transformers
    4 tied them always. Masked-lm heads are always tied here: one that differs is refused.

    Args:
      config: with tie_word_embeddings, or an encoder's, whose head is always tied.
      pairs: an architecture's `head_pairs`.
      unused: regular expressions of keys that are not to be read: such a head is ignored, as a copy is.

    Raises:
      UserError: an encoder's head differs.
    """
    if not is_tied(config):
        return config, ()
    keys = reader.keys()
    held = {key for key in keys if not any(re.fullmatch(pattern, key) for pattern in unused)}
    differing = [pair for pair in pairs if held >= set(pair) and not _is_equal(reader, *pair)]
    if not differing:
        return config, ()
    names = " and ".join(f"{copy} differs from {original}" for copy, original in differing)
    if not hasattr(config, "tie_word_embeddings"):
        left_out = ", ".join(repr(re.escape(copy)) for copy, _ in differing)
        raise UserError(
            f"{reader.path}: {names}: this encoder has no untied masked-lm head; choose a base without it, or name "
            f"{left_out} in base.unused to read the head as tied"
        )
    note = f"{reader.path}: {names}: read as untied, as transformers 5 does, though its config ties them"
    return dataclasses.replace(config, tie_word_embeddings=False), (note,)


def is_tied(config: Any) -> bool:
    """Whether the model has a head tied to the embedding, as an encoder's masked-lm head always is here."""
    return getattr(config, "tie_word_embeddings", getattr(config, "head", None) == "masked-lm")


def copies(config: Any, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Regular expressions of keys that a tied config need not read; see `fit`, which compares them first."""
    return tuple(re.escape(copy) for copy, _ in pairs) if is_tied(config) else ()


def check_head(reader: Reader, config: Any, pairs: Sequence[Pair]) -> None:
    """Raises an error that names the flag, where the config is untied and the file has the embedding and no head.

    Raises:
      UserError: see above.
    """
    keys = set(reader.keys())
    if not is_tied(config) and (absent := [pair for pair in pairs if pair[0] not in keys and pair[1] in keys]):
        raise UserError(
            f"{reader.path} lacks {absent[0][0]}, and its config does not tie the head to {absent[0][1]}; set "
            "tie_word_embeddings to true in config.json if the model is tied, or download the checkpoint again"
        )


@functools.lru_cache(maxsize=8)
def _is_equal(reader: Reader, first: str, second: str) -> bool:
    """Whether two tensors have one shape and the same values: a block of each is in memory at a time."""
    shape = reader.shape(first)
    if shape != reader.shape(second):
        return False
    if reader.is_one(first, second):
        return True
    parts = [None]
    if reader.reads_parts and math.prod(shape) > BLOCK:
        rows = max(BLOCK // math.prod(shape[1:]), 1)
        starts = range(0, shape[0], rows)
        parts = [(slice(at, min(at + rows, shape[0])), *(slice(0, n) for n in shape[1:])) for at in starts]
    return all(_are_equal(reader.read(first, part), reader.read(second, part)) for part in parts)


def _are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype:  # not all pairs of 16-bit types have a common type
        a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array_equal(a, b)
