"""Writes the continuations of prompts: on the screen as they come, and as JSON lines."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from experiments.generation.framing import Framing
from experiments.generation.model import Model
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.data.prompts import Asked
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.stream import BeamStreamer, Piece, Streamer
from lowrank_jax.decoding.text import LENGTH


@dataclasses.dataclass(frozen=True)
class Author:
    """A model, and the settings by which it continues prompts.

    Attributes:
      model, framing: what writes, and how prompts become ids.
      streamer: of the model.
      how: how tokens are chosen.
      max_new_tokens: most new tokens of a text; fewer where these do not fit after the prompt.
      stops: strings that end a text.
      ends: tokens that end a text.
      no_repeat_ngram: as in `Limits`.
    """

    model: Model
    framing: Framing
    streamer: Streamer
    how: Sampling
    max_new_tokens: int
    stops: tuple[str, ...]
    ends: tuple[int, ...]
    no_repeat_ngram: int = 0

    def limits(self, prompts: Sequence[Sequence[int]], what: str = "the prompt") -> Limits:
        """How many new tokens prompts get; a line on stderr says where fewer fit than were asked for.

        Raises:
          UserError: a prompt leaves no room for a new token.
        """
        longest = max(prompts, key=len)
        room, virtual = self.streamer.room(longest), self.model.virtual.count
        if room < 1:
            of_them = f" ({virtual} of them virtual)" if virtual else ""
            raise UserError(
                f"{what} has {len(longest)} tokens{of_them}, and the model reads {self.model.positions}; shorten it"
            )
        if room < self.max_new_tokens:
            print(f"{what} has {len(longest)} tokens: at most {room} new ones fit in the model's "
                  f"{self.model.positions} positions", file=sys.stderr)  # fmt: skip
        pad_id = self.model.base.tokenizer.pad_id if self.model.base.tokenizer else None
        return Limits(min(room, self.max_new_tokens), self.ends, pad_id or 0, self.how, self.no_repeat_ngram)

    def stream(
        self, prompts: Sequence[list[int]], limits: Limits, rows: Sequence[int], size: int = 0
    ) -> Iterator[Piece]:
        """See `Streamer.stream`."""
        return self.streamer.stream(self.model.variables, prompts, limits, rows, size)

    def say(self, prompt: list[int], row: int, limits: Limits) -> Piece:
        """Prints the continuation of one prompt as it comes, and returns its last piece."""
        piece = None
        for piece in self.stream([prompt], limits, [row]):
            print(piece.text, end="", flush=True)
        print(flush=True)
        assert piece is not None  # a row has at least one token
        if self.was_cut(piece, limits):
            self.tell_cut("the text ends")
        return piece

    def was_cut(self, piece: Piece, limits: Limits) -> bool:
        """Whether `max_new_tokens` ended a text; False where `limits` is lower, as the model has no more positions."""
        return piece.stream.ended == LENGTH and limits.max_new_tokens == self.max_new_tokens

    def tell_cut(self, what: str) -> None:
        """Prints to stderr that a text or several end at the limit of new tokens; `what` is the line's beginning."""
        tokens = f"{self.max_new_tokens} new token{'s' * (self.max_new_tokens > 1)}"
        print(f"{what} at the limit of {tokens}; --max_new_tokens raises it", file=sys.stderr, flush=True)

    def record(self, asked: Asked, piece: Piece, row: int, limits: Limits) -> dict[str, Any]:
        """The JSON line of a text: what was asked, the text, why it ended, and all that it depends on."""
        given = {"messages": list(asked.messages)} if asked.messages else {"prompt": asked.prompt}
        more: dict[str, Any] = {} if asked.reference is None else {"reference": asked.reference}
        stream, framing = piece.stream, self.framing
        beams = dataclasses.asdict(self.streamer.beams) if isinstance(self.streamer, BeamStreamer) else {}
        settings = {
            **self.model.made_of,
            **({"chat_template": framing.named} if framing.named else {}),
            **({"system": framing.system} if framing.system else {}),
            **({} if framing.add_bos is None else {"bos": framing.add_bos}),
            "max_new_tokens": limits.max_new_tokens,
            **dataclasses.asdict(self.how),
            **({"no_repeat_ngram": self.no_repeat_ngram} if self.no_repeat_ngram else {}),
            **beams,
            "stop": list(self.stops),
            "row": row,
        }
        if piece.score is not None:
            more["score"] = piece.score
        return {**given, "completion": stream.text, **more, "tokens": stream.tokens, "ended": stream.ended, **settings}


def write_file(author: Author, asked: Sequence[Asked], batch_size: int, out: TextIO) -> None:
    """Writes a JSON line for each prompt of a file, in order, a batch at a time.

    Raises:
      UserError: a prompt cannot be made ids, or leaves no room; the message has its row's number.
    """
    prompts = []
    for number, one in enumerate(asked, 1):
        try:
            prompts.append(author.framing.ids(one))
        except UserError as error:
            raise UserError(f"row {number}: {error}") from None
    cut = 0
    batches = list(_batches(author, prompts, min(batch_size, len(prompts))))  # refuses a prompt before any is written
    for rows, limits, size in batches:
        ended = {
            piece.row: piece
            for piece in author.stream([prompts[row] for row in rows], limits, rows, size)
            if piece.stream.ended
        }
        for place, row in enumerate(rows):
            json_line(author.record(asked[row], ended[place], row, limits), out)
            cut += author.was_cut(ended[place], limits)
    if cut:
        author.tell_cut(f"{cut} of {len(asked)} texts end")


def _batches(author: Author, prompts: Sequence[list[int]], size: int) -> Iterator[tuple[list[int], Limits, int]]:
    """(rows, their limits, rows that the batch is filled up to), in order.

    A prompt with room for fewer than the wanted tokens is a batch of its own: it would shorten the texts of the others.
    """
    waiting: list[int] = []
    for row, prompt in enumerate(prompts):
        if author.streamer.room(prompt) < author.max_new_tokens:
            if waiting:
                yield waiting, author.limits([prompts[i] for i in waiting]), size
            yield [row], author.limits([prompt], f"row {row + 1}"), 1
            waiting = []
            continue
        waiting.append(row)
        if len(waiting) == size:
            yield waiting, author.limits([prompts[i] for i in waiting]), size
            waiting = []
    if waiting:
        yield waiting, author.limits([prompts[i] for i in waiting]), size


def json_line(record: dict[str, Any], out: TextIO) -> None:
    """Writes one record as a line, and flushes it."""
    print(json.dumps(record, ensure_ascii=False), file=out, flush=True)


def open_out(path: str | None, source: str | None) -> TextIO | None:
    """The file of --out, emptied; None without one.

    Raises:
      UserError: it is the file that is read, or no regular file.
    """
    if not path:
        return None
    kind = kind_of(path)
    if kind not in (None, "file"):
        raise UserError(f"--out={path} is a {kind}; name a file")
    if kind and source and kind_of(source) and os.path.samefile(path, source):
        raise UserError(f"--out={path} is the file that is read; name another")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w", encoding="utf-8")
