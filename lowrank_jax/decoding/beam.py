"""Beam search: the best K texts of each prompt side by side, scored by log-likelihood / length^p as in transformers."""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.decoding.decoder import Decoder
from lowrank_jax.decoding.loop import Limits, Prompts
from lowrank_jax.decoding.ngrams import repeating
from lowrank_jax.decoding.top import largest
from lowrank_jax.models.parts.cache import share

WORST = -1e9  # score of what must not be chosen; far below any text's, and finite, as in transformers
STEEPEST = 6  # of a penalty: (2^20 tokens)^6 is inside float32's range


@dataclasses.dataclass(frozen=True)
class Beams:
    """How beams are kept; static under `jax.jit`.

    Attributes:
      beams: how many texts of a prompt go on side by side, and how many ended ones are kept.
      length_penalty: p of the score, sum of log p(token) / (tokens written, the end token included)^p; above 0 it
        favours long texts.
      early_stopping: when a prompt is done, once it has as many ended texts as beams. True: at once. False: when the
        best beam, as it stands, has no better score than the worst of them. "never": when it could not have one even
        at the most tokens (p above 0).
    """

    beams: Annotated[int, Range(least=1)] = 10
    length_penalty: Annotated[float, Range(least=-STEEPEST, most=STEEPEST)] = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self):
        check_ranges(self, "beam search")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f'early_stopping is {self.early_stopping!r}; it must be True, False or "never"')


class Found(NamedTuple):
    """The ended texts of each prompt, best first.

    Attributes:
      tokens: int32 [B, K, max_new_tokens]; a text's end token is its last, then comes padding.
      scores: float32 [B, K]; at most WORST where a prompt has fewer texts.
    """

    tokens: Int[Array, "B K N"]
    scores: Float[Array, "B K"]


class State(NamedTuple):
    """Between two steps.

    Attributes:
      step: int32 [], tokens that were written.
      tokens, scores: int32 [B, K, N] and float32 [B, K], the beams that go on and their sums of log p.
      parents: int32 [B, K], the beam of the step before that each goes on from.
      found: the ended texts.
      ended: bool [B, K], which entries of `found` are texts.
      open: bool [B], prompts whose ended texts may still get better.
    """

    step: Array
    tokens: Int[Array, "B K N"]
    scores: Float[Array, "B K"]
    parents: Int[Array, "B K"]
    found: Found
    ended: Bool[Array, "B K"]
    open: Bool[Array, " B"]


def beam_search(decoder: Decoder, variables: Tree, prompts: Prompts, limits: Limits, how: Beams) -> Found:
    """The likeliest texts after each prompt that K beams find; equal to transformers' generate with num_beams=K.

    Each step takes the most likely continuations of all beams of a prompt; the best K that do not end go on, and those
    of the best K that end are kept by their score. Prompts do not depend on each other. Keys and values are not moved:
    all beams of a prompt read the prompt's, and a table says which beam wrote each token of a text
    (`models.parts.cache.BeamCache`).

    Runs under `jax.jit` with decoder, limits and how static.

    Args:
      decoder: of `decoder.make_decoder` or `cached_decoder`.
      variables: of the model.
      prompts: their `rows` do not count, for nothing is drawn.
      limits: with no sampling.
      how: the beams.

    Raises:
      UserError: limits with a temperature or a repetition penalty; a model without beams; prompts and new tokens
        beyond the model's positions.
    """
    if limits.how.temperature != 0 or limits.how.repetition_penalty != 1:
        raise UserError("beam search draws nothing and penalises no token; leave temperature 0, repetition_penalty 1")
    if (read := decoder.beams) is None:
        raise UserError("this model's own cache cannot be shared by beams; make its decoder by make_decoder")
    (batch, width), most = prompts.tokens.shape, limits.max_new_tokens
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)  # a pad_id outside the model's table reads NaN
    logits, cache = decoder.start(variables, tokens, prompts.mask, width + most)
    cache = share(cache, width, how.beams)
    slots = jnp.concatenate([prompts.mask, jnp.ones((batch, most), bool)], axis=1)
    positions = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)[:, None] - 1
    state = _begin(prompts, limits, how)
    logits = jnp.broadcast_to(logits[:, None], (batch, how.beams, logits.shape[-1]))
    state = _write(logits, prompts, limits, how, state)

    def unfinished(carry):
        state, _ = carry
        return (state.step < most) & jnp.any(state.open)

    def body(carry):
        state, cache = carry
        token = lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2, keepdims=False)
        at = jnp.broadcast_to(positions + state.step, token.shape)
        logits, cache = read(variables, token, at, slots, cache.reordered(state.parents))
        return _write(logits, prompts, limits, how, state), cache

    return lax.while_loop(unfinished, body, (state, cache))[0].found


def _begin(prompts: Prompts, limits: Limits, how: Beams) -> State:
    """One beam a prompt counts before the first token: the others would find the same texts again."""
    batch, beams = prompts.tokens.shape[0], how.beams
    blank = jnp.full((batch, beams, limits.max_new_tokens), limits.pad_id, jnp.int32)
    scores = jnp.where(jnp.arange(beams) == 0, jnp.zeros((batch, 1), jnp.float32), WORST)
    found = Found(blank, jnp.full((batch, beams), WORST, jnp.float32))
    live = jnp.ones((batch,), bool) if prompts.live is None else jnp.asarray(prompts.live)
    parents = jnp.zeros((batch, beams), jnp.int32)
    return State(jnp.int32(0), blank, scores, parents, found, jnp.zeros((batch, beams), bool), live)


def _write(logits: Array, prompts: Prompts, limits: Limits, how: Beams, state: State) -> State:
    """The state with one more token of each beam.

    Args:
      logits: float32 [B, K, V], after the last token of each.
    """
    batch, beams, vocabulary = logits.shape
    likely = jax.nn.log_softmax(logits)
    if limits.no_repeat_ngram:
        likely = jnp.where(_repeating(prompts, limits, state, vocabulary), -jnp.inf, likely)
    every = (likely + state.scores[:, :, None]).reshape(batch, -1)
    # So many that K of them go on, however many of the end tokens are among the best of each beam.
    kept = min(max(2, 1 + len(limits.end_ids)) * beams, every.shape[1])
    scores, which = largest(every, kept)
    parents, token = which // vocabulary, (which % vocabulary).astype(jnp.int32)
    tokens = _take(state.tokens, parents)
    tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, :, None], state.step, axis=2)
    ends = jnp.zeros(token.shape, bool) | (state.step + 1 >= limits.max_new_tokens)
    for end in limits.end_ids:
        ends = ends | (token == end)

    running, goes_on = lax.top_k(scores + ends * WORST, beams)
    found, ended = _keep(tokens, scores, ends, limits, how, state)
    step = state.step + 1
    return State(
        step,
        _take(tokens, goes_on),
        running,
        jnp.take_along_axis(parents, goes_on, axis=1),
        found,
        ended,
        state.open & _may_improve(running[:, 0], found.scores, ended, step, limits, how),
    )


def _keep(tokens: Array, scores: Array, ends: Array, limits: Limits, how: Beams, state: State) -> tuple[Found, Array]:
    """The best K of the ended texts and those of the K best candidates that end now; and which of them are texts."""
    new = ends & (jnp.arange(ends.shape[1]) < how.beams)
    divisors = _divisors(limits, how)
    shown = scores / divisors[state.step + 1] + ~new * WORST + ~state.open[:, None] * WORST
    best, which = lax.top_k(jnp.concatenate([state.found.scores, shown], axis=1), how.beams)
    found = Found(_take(jnp.concatenate([state.found.tokens, tokens], axis=1), which), best)
    return found, jnp.take_along_axis(jnp.concatenate([state.ended, new], axis=1), which, axis=1)


def _may_improve(best: Array, found: Array, ended: Array, step: Array, limits: Limits, how: Beams) -> Array:
    """Whether the best beam of a prompt, [B], may still end better than one of its ended texts; see `Beams`."""
    full = jnp.all(ended, axis=1)
    if how.early_stopping is True:
        return ~full
    longest = how.early_stopping == "never" and how.length_penalty > 0
    possible = best / _divisors(limits, how)[limits.max_new_tokens if longest else step]
    return (possible > jnp.min(found, axis=1)) | (~full & (possible > WORST))


def _divisors(limits: Limits, how: Beams) -> Array:
    """length^p by length, float32 [max_new_tokens + 1]; nothing reads that of 0."""
    lengths = np.maximum(np.arange(limits.max_new_tokens + 1), 1)
    return jnp.asarray(lengths.astype(np.float64) ** how.length_penalty, jnp.float32)


def _repeating(prompts: Prompts, limits: Limits, state: State, vocabulary: int) -> Array:
    """The tokens that each beam must not write, bool [B, K, V]."""
    batch, beams, most = state.tokens.shape
    width = 0 if limits.repeat_prompt else prompts.tokens.shape[1]

    def whole(prompt: Any, written: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(prompt[:, None, :width], (batch, beams, width)), written], axis=2)

    tokens = whole(prompts.tokens, state.tokens).reshape(batch * beams, -1)
    valid = whole(prompts.mask, jnp.ones((batch, beams, most), bool)).reshape(batch * beams, -1)
    banned = repeating(tokens, valid, width + state.step, limits.no_repeat_ngram, vocabulary)
    return banned.reshape(batch, beams, vocabulary)


def _take(tokens: Array, which: Array) -> Array:
    """Rows `which` [B, M] of tokens [B, K, N]."""
    return jnp.take_along_axis(tokens, which[:, :, None], axis=1)
