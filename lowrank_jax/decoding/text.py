"""Text from tokens as they come: no half characters, and stop strings that lie across the tokens' borders."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character, or not yet one, decode to
BYTES = 4  # of the longest character; a token is at least one
WINDOW, CONTEXT = 64, 16  # decoded again with every new token: about so many tokens; how many remain then

END, STOP, LENGTH = "end", "stop", "length"  # why a text ended: an end token, a stop string, the most tokens


def check_stops(stops: Sequence[str]) -> None:
    """Refuses an empty stop string, which would end every text before it begins.

    Raises:
      UserError: there is one.
    """
    if "" in stops:
        raise UserError("a stop string is empty; give each at least one character")


class Detokenizer:
    """Decodes a growing row: what it has given out joins to the decoded whole.

    Only where bytes that decoded to characters turn out to belong to an invalid run do the two differ (sentencepiece's
    byte tokens): given-out text is not taken back.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._ids, self._given = tokenizer, [], 0

    def push(self, ids: Iterable[int], last: bool = False) -> str:
        """The characters that are complete now.

        Args:
          ids: the next tokens.
          last: no more come, and what is unfinished is given out as U+FFFD.
        """
        self._ids += ids
        whole, count = self._whole(last)
        new, self._given = whole[self._given :], max(self._given, len(whole))
        if len(self._ids) > WINDOW:
            self._shorten(whole, count)
        return new

    def _whole(self, last: bool) -> tuple[str, int]:
        """The text that no further token changes, and of how many tokens it is.

        The last character may lack up to three of its bytes, which come with as many tokens: if the text ends well
        before one of these, it is whole up to there, and otherwise its end is no character and stays none. Some
        decoders turn a whole run of bytes into marks while its last character is unfinished.
        """
        for count in range(len(self._ids), max(len(self._ids) - BYTES, -1), -1):
            text = self._tokenizer.decode(self._ids[:count])
            if last or not text.endswith(UNKNOWN):
                return text, count
        count = max(len(self._ids) - BYTES + 1, 0)
        return self._tokenizer.decode(self._ids[:count]), count

    def _shorten(self, text: str, count: int) -> None:
        """Forgets tokens before the last of `text`, where the others decode alone as they do behind these."""
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
      tokens: how many it has, the end token included.
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
        """All that was given out."""
        return "".join(self._parts)

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """The text that the next tokens add; a part that may begin a stop string is held back until that is known.

        Args:
          ids: what the loop wrote; everything after an end is ignored.
          last: no more come.
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
