"""Decodes: reads the prompts once, then adds a token to each row a step, in one while_loop, until all have ended."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Int

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.decoding.choice import Sampling, choose, row_keys
from lowrank_jax.decoding.decoder import Decoder
from lowrank_jax.decoding.ngrams import repeating
from lowrank_jax.models.parts.shared import Prefix

GREEDY = Sampling()


@dataclasses.dataclass(frozen=True)
class Limits:
    """How many tokens are decoded, what ends them, and how they are chosen; static under `jax.jit`.

    Attributes:
      max_new_tokens: how many tokens a row gets at most.
      end_ids: tokens that end a row; none: rows never end early.
      pad_id: what an ended row emits after its end.
      how: how tokens are chosen.
      no_repeat_ngram: n, where no n tokens in a row may stand twice in a text; 0: they may.
      repeat_prompt: True lets a text repeat n tokens of its prompt once, as written tokens alone are compared (LoRA's
        scripts); False counts the prompt as part of the text (transformers).
    """

    max_new_tokens: int
    end_ids: tuple[int, ...] = ()
    pad_id: int = 0
    how: Sampling = GREEDY
    no_repeat_ngram: int = 0
    repeat_prompt: bool = False

    def __post_init__(self):
        for name, least in (("max_new_tokens", 1), ("no_repeat_ngram", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def looks_back(self) -> bool:
        """Whether the choice of a token depends on the tokens of the prompt themselves, not on logits alone."""
        return self.how.repetition_penalty != 1 or (self.no_repeat_ngram > 0 and not self.repeat_prompt)


class Prompts(NamedTuple):
    """A batch of prompts.

    Attributes:
      tokens, mask: int32 and bool [B, P], padded on the left (`greedy.left_pad`); True at the prompt.
      rows: int32 [B], each row's number, which its draws depend on.
      live: bool [B], False for rows that only fill the batch; None: all are live.
      prefix: one or several beginnings, read before, which the prompts go on from; `tokens` are without them. Not for
        limits that look back, which would not see them. None: the prompts are whole.
    """

    tokens: Int[Array, "B P"]
    mask: Bool[Array, "B P"]
    rows: Int[Array, " B"]
    live: Bool[Array, " B"] | None = None
    prefix: Prefix | None = None


class State(NamedTuple):
    """What decoding carries from one step to the next.

    Attributes:
      step: int32 [], how many tokens each row has got.
      token: int32 [B], the last of each row.
      done: bool [B], rows that have ended.
      output: int32 [B, max_new_tokens], the tokens.
      seen: bool [B, V], True at tokens that a row has had; None without a repetition penalty.
    """

    step: Array
    token: Array
    done: Array
    output: Array
    seen: Array | None


def generate(
    decoder: Decoder, variables: Tree, prompts: Prompts, limits: Limits
) -> Int[Array, "B {limits.max_new_tokens}"]:
    """The tokens that follow each prompt; a row's end token is its last, then comes padding."""
    state, cache = begin(decoder, variables, prompts, limits)
    return advance(decoder, variables, prompts, limits, state, cache, limits.max_new_tokens)[0].output


def begin(decoder: Decoder, variables: Tree, prompts: Prompts, limits: Limits) -> tuple[State, Any]:
    """Reads the prompts and chooses each row's first token; returns the state, and the cache, which may be donated."""
    batch, width = prompts.tokens.shape
    tokens = jnp.where(prompts.mask, prompts.tokens, 0)  # a pad_id outside the embedding would read NaN
    logits, cache = decoder.start(variables, tokens, prompts.mask, width + limits.max_new_tokens, *_beside(prompts))
    seen = None
    if limits.how.repetition_penalty != 1:
        blank = jnp.zeros(logits.shape, bool)
        seen = blank.at[jnp.arange(batch)[:, None], tokens].max(prompts.mask)
    done = jnp.zeros((batch,), bool) if prompts.live is None else ~prompts.live
    output = jnp.full((batch, limits.max_new_tokens), limits.pad_id, jnp.int32)
    state = State(jnp.int32(0), jnp.zeros((batch,), jnp.int32), done, output, seen)
    return _write(logits, prompts, limits, state), cache


def advance(
    decoder: Decoder, variables: Tree, prompts: Prompts, limits: Limits, state: State, cache: Any, until: Array | int
) -> tuple[State, Any]:
    """Decodes on until every row has ended, or has min(until, max_new_tokens) tokens; `until` may be traced."""
    batch = prompts.tokens.shape[0]
    slots = jnp.concatenate([prompts.mask, jnp.ones((batch, limits.max_new_tokens), bool)], axis=1)
    lengths = jnp.sum(prompts.mask, axis=1, dtype=jnp.int32)
    if prompts.prefix is not None:
        lengths = lengths + prompts.prefix.of_rows(batch)

    def unfinished(carry):
        state, _ = carry
        return (state.step < jnp.minimum(until, limits.max_new_tokens)) & ~jnp.all(state.done)

    def body(carry):
        state, cache = carry
        place = lengths + state.step - 1
        logits, cache = decoder.step(variables, state.token, place, slots, cache, *_beside(prompts))
        return _write(logits, prompts, limits, state), cache

    return lax.while_loop(unfinished, body, (state, cache))


def _beside(prompts: Prompts) -> tuple[Prefix, ...]:
    """The decoder's last argument: the prefix of the prompts; none for whole prompts, as some decoders take none."""
    return () if prompts.prefix is None else (prompts.prefix,)


def _write(logits: Array, prompts: Prompts, limits: Limits, state: State) -> State:
    """The state with one more token of each row."""
    if limits.no_repeat_ngram:
        tokens, valid, end = state.output, jnp.ones(state.output.shape, bool), state.step
        if not limits.repeat_prompt:
            tokens = jnp.concatenate([prompts.tokens, tokens], axis=1)
            valid = jnp.concatenate([prompts.mask, valid], axis=1)
            end = prompts.tokens.shape[1] + end
        banned = repeating(tokens, valid, end, limits.no_repeat_ngram, logits.shape[-1])
        logits = jnp.where(banned, -jnp.inf, logits)
    token = choose(logits, state.seen, row_keys(limits.how.seed, prompts.rows), state.step, limits.how)
    shown = jnp.where(state.done, limits.pad_id, token)
    output = lax.dynamic_update_slice(state.output, shown[:, None], (jnp.int32(0), state.step))
    seen = state.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
    done = state.done
    for end in limits.end_ids:
        done = done | (token == end)
    return State(state.step + 1, token, done, output, seen)
