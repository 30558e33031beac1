"""Encodes a text in such a way that the ids before given places are those of the text up to there."""

import bisect
import functools
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

Encode = Callable[[str], list[int]]


class Cut(NamedTuple):
    """A text's ids, and how many of them are before each cut and each end."""

    ids: list[int]
    cuts: list[int]
    ends: list[int]


def encode_with_cuts(encode: Encode, text: str, cuts: Sequence[int], ends: Sequence[int] = ()) -> Cut:
    """Ids of a text; those before each cut are exactly the ids of the text up to that cut.

    Decoding starts from a text that ends at a cut, and training must read the same ids there. Mostly the whole text's
    ids have this property. Where a token would span a cut, or the longer text is split differently before it, the text
    after the cut is encoded by itself, without the space that some tokenizers put before a text.

    Args:
      encode: text -> ids.
      text: the whole.
      cuts: places in it, as numbers of characters, ascending.
      ends: further places in it, where ids need not be cut; a token that spans one counts as after it.
    """

    @functools.cache
    def part(start: int, end: int) -> list[int]:
        return (encode_continuation if start else _plain)(encode, text[start:end])

    starts = [0]
    for cut, following in pairwise([*cuts, len(text)]):
        before = part(starts[-1], cut)
        if part(starts[-1], following)[: len(before)] != before:
            starts.append(cut)
    stops = [*starts[1:], len(text)]
    pieces = [part(start, stop) for start, stop in zip(starts, stops, strict=True)]
    offsets = [0, *accumulate(map(len, pieces))]

    def count(place: int) -> int:
        piece = bisect.bisect_right(starts, place) - 1
        return offsets[piece] + _common(pieces[piece], part(starts[piece], place))

    return Cut([i for piece in pieces for i in piece], [count(cut) for cut in cuts], [count(end) for end in ends])


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two lists share from their start on."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _plain(encode: Encode, text: str) -> list[int]:
    return encode(text)


def encode_continuation(encode: Encode, text: str) -> list[int]:
    """Ids of a text that follows another, encoded after a line break: there no tokenizer adds a space before it."""
    if not text:
        return []
    before, ids = encode("\n"), encode("\n" + text)
    return ids[len(before) :] if ids[: len(before)] == before else encode(text)


def puts_space_before(encode: Encode, decode: Callable[[list[int]], str]) -> bool:
    """Whether two texts encoded one by one come back with a space between them, as sentencepiece's do."""
    return decode([*encode("a"), *encode("a")]).split() == ["a", "a"]
