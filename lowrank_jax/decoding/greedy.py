"""Greedy decoding with a key/value cache: one prefill, then one token a step until every row has ended."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Int

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import ApplyFn, Array, Tree


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
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    batch, width = tokens.shape
    tokens = jnp.where(mask, tokens, 0)  # a pad_id outside the model's table reads NaN, and 0 weight x NaN is NaN
    slots = jnp.concatenate([mask, jnp.ones((batch, max_new_tokens), bool)], axis=1)
    positions = jnp.maximum(jnp.cumsum(slots, axis=1, dtype=jnp.int32) - 1, 0)

    def advance(new, positions, cache):
        hidden, cache = apply_fn(variables, new, positions=positions, mask=slots, cache=cache, method="hidden")
        logits = apply_fn(variables, hidden[:, -1], method="logits")
        return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

    def emit(step, token, done, output):
        output = lax.dynamic_update_slice(output, jnp.where(done, pad_id, token)[:, None], (jnp.int32(0), step))
        return output, done if eos_id is None else done | (token == eos_id)

    def unfinished(state):
        step, _, done, _, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def body(state):
        step, token, done, output, cache = state
        here = lax.dynamic_slice_in_dim(positions, width + step - 1, 1, axis=1)
        token, cache = advance(token[:, None], here, cache)
        output, done = emit(step, token, done, output)
        return step + 1, token, done, output, cache

    token, cache = advance(tokens, positions[:, :width], init_cache(batch, width + max_new_tokens))
    blank = jnp.full((batch, max_new_tokens), pad_id, jnp.int32)
    output, done = emit(jnp.int32(0), token, jnp.zeros((batch,), bool), blank)
    return lax.while_loop(unfinished, body, (jnp.int32(1), token, done, output, cache))[3]


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
