"""Reads values of a GGUF file's metadata and checks their types; errors name the file and the key."""

from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.gguf.file import GGUFReader

NO_IDS = (-1, 2**32 - 1)  # llama.cpp's "none", signed and unsigned
REMEDY = "download the file again, or convert the model again"


def text(reader: GGUFReader, key: str) -> str | None:
    """The string at a key; None where the file has none.

    Raises:
      UserError: another type of value.
    """
    return _of(reader, key, str, "a string")


def flag(reader: GGUFReader, key: str, default: bool) -> bool:
    """The bool at a key, or the default where the file has none.

    Raises:
      UserError: another type of value.
    """
    found = _of(reader, key, bool, "true or false")
    return default if found is None else found


def texts(reader: GGUFReader, key: str) -> list[str] | None:
    """The list of strings at a key; None where the file has none.

    Raises:
      UserError: another type of value.
    """
    found = _of(reader, key, list, "a list of strings")
    if found and not isinstance(found[0], str):  # all have one type
        raise UserError(f"{reader.path}: {key} must be a list of strings; {REMEDY}")
    return found


def special_id(reader: GGUFReader, part: str, count: int) -> int | None:
    """The id tokenizer.ggml.PART_token_id; None where the file has none.

    Args:
      reader: an open file.
      part: "bos", "eos" and so on.
      count: how many tokens there are.

    Raises:
      UserError: it is no id below `count`.
    """
    key = f"tokenizer.ggml.{part}_token_id"
    found = reader.metadata.get(key)
    if found in NO_IDS:
        return None
    if found is not None and (type(found) is not int or not 0 <= found < count):
        raise UserError(f"{reader.path}: {key} is {str(found)[:40]!r}, no id of its {count} tokens; {REMEDY}")
    return found


def shortest(value: float) -> float:
    """The shortest number that float32 stores as `value`: 9.99999974e-06 was written as 1e-05."""
    return float(str(np.float32(value)))


def _of(reader: GGUFReader, key: str, kind: type, wanted: str) -> Any:
    found = reader.metadata.get(key)
    if found is not None and not isinstance(found, kind):
        raise UserError(f"{reader.path}: {key} must be {wanted}, not {str(found)[:40]!r}; {REMEDY}")
    return found
