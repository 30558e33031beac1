"""Documents joined into one stream of tokens, and the windows of it that next-token pretraining reads."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.text.tokenizers import ByteTokenizer


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type for all token ids: 86 MB of bytes as uint16 take 172 MB, as int64 690."""
    return np.min_scalar_type(vocab_size - 1)


def join_documents(
    documents: Iterable[str], tokenizer: Any, *, add_bos: bool = False, add_eos: bool = True
) -> np.ndarray:
    """One array of all documents' tokens, each between its BOS and EOS.

    Args:
      documents: texts.
      tokenizer: encode, vocab_size, bos_id, eos_id.
      add_bos, add_eos: which marks to put around each document; without any, nothing separates documents.

    Returns:
      tokens [N] of `token_dtype(vocab_size)`.

    Raises:
      UserError: the tokenizer lacks one of these marks.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    before = [mark(tokenizer, "bos")] if add_bos else []
    after = [mark(tokenizer, "eos")] if add_eos else []
    pieces = [np.zeros(0, dtype)]
    for text in documents:
        pieces += [np.array(before, dtype), encode_array(text, tokenizer, dtype), np.array(after, dtype)]
    return np.concatenate(pieces)


def encode_array(text: str, tokenizer: Any, dtype: Any) -> np.ndarray:
    """tokenizer.encode as an array; bytes directly, 30 times faster than through a list of ints."""
    if isinstance(tokenizer, ByteTokenizer):
        return np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8).astype(dtype)
    return np.array(tokenizer.encode(text), dtype)


def mark(tokenizer: Any, name: str) -> int:
    """The id of BOS or EOS.

    Raises:
      UserError: the tokenizer has none.
    """
    value = getattr(tokenizer, f"{name}_id")
    if value is None:
        raise UserError(f"tokenizer {tokenizer.name!r} has no {name.upper()} token; set add_{name}=False")
    return value


class PackedWindows:
    """Random access to windows of `seq_len` tokens; neighbours share one token, so each token is a target once.

    Window i is tokens[i (seq_len - 1) : i (seq_len - 1) + seq_len]: its first token is only context, and is the last
    target of window i - 1. The last window is shorter where the stream does not divide evenly; a task pads it.

    Args:
      tokens: [N] array of unsigned integers, N >= 2; it may be a memory map.
      seq_len: tokens per window, at least 2.

    Raises:
      UserError: fewer than 2 tokens, or a window of fewer than 2.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int):
        if seq_len < 2:
            raise UserError(f"seq_len={seq_len}: a window needs at least 2 tokens, one to read and one to predict")
        if len(tokens) < 2:
            raise UserError(f"the text has {len(tokens)} token(s): it needs 2, one to read and one to predict")
        self.tokens, self.seq_len = tokens, seq_len

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // (self.seq_len - 1))

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * (self.seq_len - 1)
        return {"tokens": self.tokens[start : start + self.seq_len]}
