"""Reads the header of a GGUF file: metadata by key, and where each tensor lies; no tensor's values.

The gguf package's own reader makes a view of every value of every list, which takes 9.4 s for the 262,144 tokens of a
Gemma 3. Here a list is skipped, and decoded when it is first used.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError

VERSIONS = (2, 3)
DAMAGED = "is damaged or cut short"
AGAIN = "copy or download it again"
SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
TEXT, LIST = 8, 9  # the types of the other values
MOST_AXES = 4  # of a tensor, in llama.cpp
# What the gguf package dequantises since the version that setup.py asks for, and plain floats.
GGUF_TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("TQ1_0", "TQ2_0", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in its file: its type's name, its shape with rows first, and its bytes."""

    kind: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file: its metadata, and its tensors by name."""

    metadata: "Metadata"
    tensors: dict[str, Stored]


class Damage(ValueError):
    """The file ends early, or says something that no writer would."""


class Metadata(Mapping):
    """GGUF metadata by key; a value is decoded when it is first read.

    Raises:
      UserError: on reading a text that is not UTF-8.
    """

    def __init__(self, path: Path, data: np.ndarray, places: Mapping[str, tuple[int, int]]):
        self._path, self._data, self._places, self._decoded = path, data, places, {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            kind, start = self._places[key]
            try:
                self._decoded[key] = _value(_Cursor(self._data, start), kind)
            except ValueError as error:
                raise UserError(f"{self._path} {DAMAGED} at {key} ({error}); {AGAIN}") from None
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class _Cursor:
    """Reads values one after another from a place in the file."""

    def __init__(self, data: np.ndarray, at: int = 0):
        self._data, self.at = data, at

    def skip(self, size: int) -> int:
        """Moves on by `size` bytes; returns the place before them. Raises Damage where the file is shorter."""
        start, self.at = self.at, self.at + size
        if self.at > len(self._data):
            raise Damage(f"it needs {self.at:,} bytes and has {len(self._data):,}")
        return start

    def number(self, code: str) -> Any:
        """A number of struct's type."""
        return struct.unpack_from(code, self._data.data, self.skip(struct.calcsize(code)))[0]

    def text(self) -> str:
        """A string with its length before it."""
        start = self.skip(self.number("<Q"))
        return str(self._data[start : self.at].tobytes(), "utf-8")

    def numbers(self, kind: int, count: int) -> np.ndarray:
        """`count` numbers of a type of SCALARS."""
        start = self.skip(count * np.dtype(SCALARS[kind]).itemsize)
        return self._data[start : self.at].view(SCALARS[kind])


def read_header(path: Path, data: np.ndarray) -> Header:
    """The header of a file whose bytes are `data`.

    Raises:
      UserError: the file is no GGUF, of another version, damaged or cut short, or has a tensor of a type that cannot be
        dequantised.
    """
    if data[:4].tobytes() != b"GGUF":
        raise UserError(f"{path} is not a GGUF file (it does not begin with 'GGUF')")
    try:
        return _header(path, _Cursor(data, 4), data)
    except ValueError as error:
        raise UserError(f"{path} {DAMAGED} ({error}); {AGAIN}") from None


def _header(path: Path, cursor: _Cursor, data: np.ndarray) -> Header:
    version = cursor.number("<I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        what = "was written for a big-endian machine" if swapped else f"{DAMAGED}, or of GGUF's version {version}"
        raise UserError(f"{path} {what}; only versions {' and '.join(map(str, VERSIONS))}, little-endian, are read")
    tensors, fields = cursor.number("<Q"), cursor.number("<Q")
    places: dict[str, tuple[int, int]] = {}
    for _ in range(fields):
        key, kind = cursor.text(), cursor.number("<I")
        if key in places:
            raise Damage(f"{_short(key)} stands there twice")
        places[key] = kind, cursor.at
        _pass_over(cursor, kind)
    found = [_tensor(path, cursor) for _ in range(tensors)]
    metadata = Metadata(path, data, places)
    return Header(metadata, _placed(found, cursor, metadata.get("general.alignment", 32)))


def _pass_over(cursor: _Cursor, kind: int) -> None:
    if kind == LIST:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        if inner == TEXT:
            for _ in range(count):
                cursor.skip(cursor.number("<Q"))
            return
        if inner not in SCALARS:
            raise Damage(f"a list of type {inner}")
        cursor.skip(count * np.dtype(SCALARS[inner]).itemsize)
    elif kind == TEXT:
        cursor.skip(cursor.number("<Q"))
    elif kind in SCALARS:
        cursor.skip(np.dtype(SCALARS[kind]).itemsize)
    else:
        raise Damage(f"a value of type {kind}")


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind == LIST:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        return [cursor.text() for _ in range(count)] if inner == TEXT else cursor.numbers(inner, count).tolist()
    return cursor.text() if kind == TEXT else cursor.numbers(kind, 1).tolist()[0]


def _tensor(path: Path, cursor: _Cursor) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, type, shape, offset, bytes) of the next tensor."""
    import gguf

    name, axes = cursor.text(), cursor.number("<I")
    if axes > MOST_AXES:
        raise Damage(f"{_short(name)} has {axes} axes")
    shape = tuple(cursor.number("<Q") for _ in range(axes))[::-1]  # the file lists the fastest axis first
    number, offset = cursor.number("<I"), cursor.number("<Q")
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError:
        raise UserError(f"{path} has a tensor of type {number}, unknown to gguf; {_known()}") from None
    if kind.name not in GGUF_TYPES:
        raise UserError(f"{path}: {_short(name)} has type {kind.name}; {_known()}")
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block:
        raise Damage(f"{_short(name)} of shape {list(shape)} has no whole blocks of {kind.name}")
    return name, kind.name, shape, offset, math.prod(shape) // block * size


def _placed(found: list[tuple[str, str, tuple[int, ...], int, int]], cursor: _Cursor, align: Any) -> dict[str, Stored]:
    """The tensors by name; their values begin at the next multiple of the alignment."""
    if type(align) is not int or align < 1 or align & (align - 1):
        raise Damage(f"general.alignment is {align!r}, no power of two")
    start, placed = cursor.at + -cursor.at % align, {}
    for name, kind, shape, offset, size in found:
        if name in placed:
            raise Damage(f"{_short(name)} stands there twice")
        cursor.at = start + offset
        placed[name] = Stored(kind, shape, cursor.skip(size), size)
    return placed


def _short(name: str) -> str:
    return repr(name[:60])


def _known() -> str:
    return f"known: {', '.join(GGUF_TYPES)}"
