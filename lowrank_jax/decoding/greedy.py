"""Greedy decoding, and prompts of several lengths as one array."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn, Array, Tree
from lowrank_jax.decoding.decoder import cached_decoder
from lowrank_jax.decoding.loop import Limits, Prompts, generate


def greedy(
    apply_fn: ApplyFn,
    variables: Tree,
    init_cache: Callable[[int, int], Any],
    tokens: Int[Array, "B P"],
    mask: Bool[Array, "B P"],
    max_new_tokens: int,
    eos_id: int | None,
    pad_id: int,
) -> Int[Array, "B {max_new_tokens}"]:
    """Appends the most likely next token until the end: t_{n+1} = argmax p(. | t_1 .. t_n).

    Runs under `jax.jit` with apply_fn, init_cache and the four last arguments static. Logits are taken at the prompt's
    last position only.

    Args:
      apply_fn: takes (variables, tokens, positions=, mask=, cache=, method="hidden") and (variables, hidden,
        method="logits").
      init_cache: (batch, length) -> an empty cache.
      tokens: int32 [B, P], padded on the left (`left_pad`).
      mask: bool [B, P], True at the prompt.
      max_new_tokens: how many tokens to write at most.
      eos_id: the token that ends a row; None: rows never end early.
      pad_id: what an ended row emits after its eos_id.

    Returns:
      int32 [B, max_new_tokens].

    Raises:
      UserError: max_new_tokens below 1.
    """
    rows = jnp.zeros((tokens.shape[0],), jnp.int32)  # nothing is drawn
    limits = Limits(max_new_tokens, () if eos_id is None else (eos_id,), pad_id)
    return generate(cached_decoder(apply_fn, init_cache), variables, Prompts(tokens, mask, rows), limits)


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, multiple: int = 8
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
    """Rows of token ids -> tokens int32 [B, P] padded on the left, and mask bool [B, P]; P is a multiple of `multiple`.

    A multiple above 1 bounds how many shapes get compiled.

    Raises:
      UserError: no rows, or an empty row.
    """
    if not rows or min(map(len, rows)) < 1:
        raise UserError("a prompt has no tokens; give each at least one (a BOS token, say)")
    width = -(-max(map(len, rows)) // multiple) * multiple
    tokens = np.full((len(rows), width), pad_id, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = row
        mask[i, width - len(row) :] = True
    return tokens, mask
