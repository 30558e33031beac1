"""Turns tokens into text as they come: whole characters only, and up to a stop string, which may span tokens."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # stands in decoded text for bytes that are not, or not yet, a character
BYTES = 4  # bytes of the longest character; a token has at least one
# Tokens that are decoded again with each new one: above WINDOW of them, all but about CONTEXT are forgotten.
WINDOW, CONTEXT = 64, 16

END, STOP, LENGTH = "end", "stop", "length"  # why a text ended: an end token, a stop string, the most tokens


def check_stops(stops: Sequence[str]) -> None:
    """Refuses an empty stop string, which would end every text before it begins.

    Raises:
      UserError: there is one.
    """
    if "" in stops:
        raise UserError("a stop string is empty; give each at least one character")


class Detokenizer:
    """Decodes a growing row piece by piece: the pieces joined are the text of all tokens.

    One case differs, as pieces are not taken back: byte tokens of sentencepiece that decoded to a character, and that
    later ones make part of an invalid sequence.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids, self._given = tokenizer, [], 0

    def push(self, ids: Iterable[int], last: bool = False) -> str:
        """The characters that are complete now.

        Args:
          ids: the next tokens.
          last: no more tokens come; what is unfinished becomes U+FFFD.
        """
        self._ids += ids
        whole, count = self._whole(last)
        new, self._given = whole[self._given :], max(self._given, len(whole))
        if len(self._ids) > WINDOW:
            self._shorten(whole, count)
        return new

    def _whole(self, last: bool) -> tuple[str, int]:
        """The text that no further token changes, and how many tokens it has.

        The last character may lack up to three of its bytes, which are at most three tokens. The text without the last
        0, 1, 2, ... tokens is tried, until it does not end in UNKNOWN. Where all of these do, the bytes are no
        character, and will not become one. (Some decoders turn a whole run of bytes into UNKNOWN while its last
        character is unfinished.)
        """
        for count in range(len(self._ids), max(len(self._ids) - BYTES, -1), -1):
            text = self._tokenizer.decode(self._ids[:count])
            if last or not text.endswith(UNKNOWN):
                return text, count
        count = max(len(self._ids) - BYTES + 1, 0)
        return self._tokenizer.decode(self._ids[:count]), count

    def _shorten(self, text: str, count: int) -> None:
        """Forgets the first tokens, if the others decode to the same text without them."""
        for start in range(max(count - CONTEXT, 0), max(count - CONTEXT + BYTES, 0)):
            tail = self._tokenizer.decode(self._ids[start:count])
            if tail and UNKNOWN not in tail and text.endswith(tail):
                self._ids, self._given = self._ids[start:], len(tail)
                return


@dataclasses.dataclass
class TextStream:
    """The text of one row up to its end token or its first stop string.

    Attributes:
      tokenizer: decode(ids) -> text.
      end_ids: tokens that end the row; they are no part of its text.
      stops: strings that end it; neither are they.
      ended: why it has ended, one of END, STOP and LENGTH; "" before.
      tokens: how many the row has, its end token included.
    """

    tokenizer: Any
    end_ids: Sequence[int] = ()
    stops: Sequence[str] = ()
    ended: str = ""
    tokens: int = 0

    def __post_init__(self):
        self._detokenizer, self._held = Detokenizer(self.tokenizer), ""
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """All that `push` has returned."""
        return "".join(self._parts)

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that the next tokens add; a part that may begin a stop string is held back until that is known.

        Args:
          ids: the next tokens; those after an end token are ignored.
          last: no more tokens come.
        """
        if self.ended:
            return ""
        own = next((i for i, token in enumerate(ids) if token in self.end_ids), len(ids))
        if own < len(ids):
            self.ended, self.tokens = END, self.tokens + own + 1
        else:
            self.ended, self.tokens = LENGTH if last else "", self.tokens + own
        held = self._held + self._detokenizer.push(ids[:own], bool(self.ended))
        found = [at for stop in self.stops if (at := held.find(stop)) >= 0]
        if found:
            self.ended = STOP
            cut = min(found)
        else:
            cut = len(held) - (0 if self.ended else max((_begun(held, stop) for stop in self.stops), default=0))
        self._held = held[cut:]
        self._parts.append(held[:cut])
        return held[:cut]


def _begun(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with and goes beyond."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
