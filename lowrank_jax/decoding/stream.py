"""Streams the text of a batch of prompts: decodes a few steps at a time, and looks for stop strings in between."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Tree
from lowrank_jax.decoding.beam import Beams, beam_search
from lowrank_jax.decoding.decoder import Decoder
from lowrank_jax.decoding.greedy import left_pad
from lowrank_jax.decoding.loop import Limits, Prompts, advance, begin
from lowrank_jax.decoding.text import TextStream, check_stops
from lowrank_jax.models.parts.shared import Prefix

NARROWEST = 16  # slots of a prompt; wider ones are rounded up to a power of two, to compile few programs


class Piece(NamedTuple):
    """What a few steps added.

    Attributes:
      row: which prompt of the batch.
      text: the new text; empty while a character, or what may be a stop string, is unfinished.
      stream: the row's whole text so far, and why it ended.
      score: of a text that beams have found; None of others.
    """

    row: int
    text: str
    stream: TextStream
    score: float | None = None


class Streamer:
    """Continues batches of prompts; batches of one shape share a compiled program.

    Args:
      decoder: of `make_decoder`.
      tokenizer: decode(ids) -> text, pad_id.
      positions: the most tokens of a row that the model reads.
      stops: strings that end a row.
      chunk: steps that are decoded at a time.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any, positions: int, stops: Sequence[str] = (), chunk: int = 8):
        check_stops(stops)
        self.tokenizer, self.positions, self.stops, self.chunk = tokenizer, positions, tuple(stops), chunk
        self._begin = jax.jit(functools.partial(begin, decoder), static_argnums=2)
        # The cache is donated: it is the model's largest array, and a copy a call would double it.
        self._advance = jax.jit(functools.partial(advance, decoder), static_argnums=2, donate_argnums=4)

    def room(self, prompt: Sequence[int]) -> int:
        """How many new tokens fit after a prompt; below 1 where there is no room."""
        return self.positions - len(prompt)

    def stream(
        self,
        variables: Tree,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        rows: Sequence[int],
        size: int = 0,
        prefix: Prefix | None = None,
        shared: int = 0,
    ) -> Iterator[Piece]:
        """Yields the text of one batch in pieces, row by row after each `chunk` of steps; a row's last one has ended.

        Args:
          variables: of the model.
          prompts: token ids.
          limits: `max_new_tokens` must fit after each prompt.
          rows: number of each row, which its draws depend on.
          size: rows that the batch is filled up to, so that a last, smaller one compiles no program.
          prefix: the first `shared` tokens of every prompt, as the decoder has read them; each prompt has more.
            Not with limits that look back (`Limits.looks_back`).

        Raises:
          UserError: an empty prompt, or one without room for the new tokens.
        """
        given = self._batch([prompt[shared:] for prompt in prompts], limits, rows, size, shared, prefix)
        streams = [TextStream(self.tokenizer, limits.end_ids, self.stops) for _ in prompts]
        state, cache = self._begin(variables, given, limits)
        read = 0
        while True:
            now, output, done = int(state.step), np.array(state.output), np.array(state.done)
            last = now >= limits.max_new_tokens
            for row, stream in enumerate(streams):
                if not stream.ended:
                    text = stream.push(output[row, read:now].tolist(), last)
                    yield Piece(row, text, stream)
                done[row] |= bool(stream.ended)
            if done.all():
                return
            read = now
            until = jnp.int32(min(now + self.chunk, limits.max_new_tokens))
            state = state._replace(done=jnp.asarray(done))
            state, cache = self._advance(variables, given, limits, state, cache, until)

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Limits,
        rows: Sequence[int],
        size: int,
        shared: int = 0,
        prefix: Prefix | None = None,
    ) -> Prompts:
        """The batch; `prompts` are without their `shared` first tokens."""
        for prompt in prompts:
            if self.room(prompt) - shared < limits.max_new_tokens:
                raise UserError(
                    f"a prompt of {len(prompt) + shared} tokens and {limits.max_new_tokens} new ones exceed the "
                    f"model's {self.positions} positions; shorten it, or lower max_new_tokens"
                )
        missing = max(0, size - len(prompts))
        longest = max(map(len, prompts), default=0)
        width = min(max(NARROWEST, 1 << (longest - 1).bit_length()), self.positions - limits.max_new_tokens)
        tokens, mask = left_pad([*prompts, *list(prompts[:1]) * missing], limits.pad_id, max(width, 1))
        live = np.arange(len(tokens)) < len(prompts)
        numbers = np.array([*rows, *[0] * missing], np.int32)
        return Prompts(*map(jnp.asarray, (tokens, mask, numbers, live)), prefix=prefix)


class BeamStreamer(Streamer):
    """A `Streamer` that writes the best text that beams find: all of it at once, for it may change until they end.

    Args:
      decoder, tokenizer, positions: as of `Streamer`.
      beams: how they are kept.
    """

    def __init__(self, decoder: Decoder, tokenizer: Any, positions: int, beams: Beams):
        super().__init__(decoder, tokenizer, positions)
        self.beams = beams
        self._search = jax.jit(functools.partial(beam_search, decoder), static_argnums=(2, 3))

    def stream(
        self, variables: Tree, prompts: Sequence[Sequence[int]], limits: Limits, rows: Sequence[int], size: int = 0
    ) -> Iterator[Piece]:
        """One piece of each row; see `Streamer.stream`."""
        found = self._search(variables, self._batch(prompts, limits, rows, size), limits, self.beams)
        tokens, scores = np.asarray(found.tokens[:, 0]), np.asarray(found.scores[:, 0])
        for row in range(len(prompts)):
            stream = TextStream(self.tokenizer, limits.end_ids)
            yield Piece(row, stream.push(tokens[row].tolist(), True), stream, float(scores[row]))
