"""Finds how many rows a PEFT folder's embedding and output layer have, and whether the two are still equal."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.peft.config import CONFIG, HEAD
from lowrank_jax.interop.peft.files import PeftFiles
from lowrank_jax.interop.peft.keys import (
    DELTA,
    EMBEDDINGS,
    GROWN,
    PREFIX,
    TABLE,
    read_finite,
    table_name,
    whole_key,
)


@dataclasses.dataclass(frozen=True)
class Tables:
    """What the base's embedding and output layer must be for the folder to fit.

    Attributes:
      rows: of the embedding, and of the output layer.
      untied: the base's embedding is its output layer too, and in the folder the two differ.
    """

    rows: int
    untied: bool


def tables_of(
    files: PeftFiles, flat: Mapping[str, Any], rows: Sequence[Row], tied: bool, decoder: bool
) -> Tables | None:
    """What the folder needs of the base's tables; None for a base without an embedding of tokens.

    Args:
      files: the open folder.
      flat: the base's params by path.
      rows: its key table in the folder's spelling.
      tied: the base has no output layer of its own.
      decoder: the base is a decoder, whose output layer is called lm_head.

    Raises:
      UserError: a vocabulary that has grown without its embedding, or tables of different lengths.
    """
    path, name = next((path for path in EMBEDDINGS if path in flat), None), table_name(rows)
    if path is None:
        return None
    own, width = flat[path].shape
    _check_shapes(files, name, width)
    lengths = {name: _length(files, name, own)}
    if decoder:
        lengths[HEAD] = _length(files, HEAD, own)
    _check_ids(files, name, lengths)
    if len(set(lengths.values())) > 1:
        said = " and ".join(f"{module} with {length} rows" for module, length in lengths.items())
        raise UserError(f"{files.reader.path} makes {said} of this base of {own}: {GROWN}")
    return Tables(lengths[name], tied and _differ(files, name, flat[path]))


def _check_shapes(files: PeftFiles, name: str, width: int) -> None:
    """Refuses tables that are not as wide as the base's, and rows of them that are more or fewer than their ids."""
    for module in (name, HEAD):
        ids = files.config.rows_of(module, module == name)
        wanted = {whole_key(files.reader, module): None, f"{PREFIX}{module}.{DELTA}": ids and len(ids)}
        wanted |= {f"{PREFIX}{module}.{leaf}": None for leaf in (f"{TABLE}A", "lora_B.weight")}
        for key, rows in wanted.items():
            if key is None or key not in set(files.reader.keys()):
                continue
            shape = files.reader.shape(key)
            wide = len(shape) == 2 and ("lora" in key or shape[1] == width)
            if not wide or (rows and shape[0] != rows):
                raise UserError(
                    f"{files.reader.path}: {key} is {list(shape)}, and not [{rows or 'rows'}, {width}] as this base "
                    "has it; save the adapter again"
                )


def _length(files: PeftFiles, module: str, own: int) -> int:
    """The number of rows of a table in the folder, or the base's own."""
    key = whole_key(files.reader, module)
    return own if key is None else files.reader.shape(key)[0]


def _check_ids(files: PeftFiles, name: str, lengths: Mapping[str, int]) -> None:
    """Refuses ids of an adapter that its tables do not have."""
    held = set(files.reader.keys())
    needed = {}
    for module, length in lengths.items():
        ids = files.config.rows_of(module, module == name)
        needed[f"{CONFIG}'s trainable_token_indices"] = (max(ids) + 1 if ids else 0, length)
        for key, axis in ((f"{PREFIX}{module}.{TABLE}A", 1), (f"{PREFIX}{module}.lora_B.weight", 0)):
            if key in held:
                needed[key] = (files.reader.shape(key)[axis], length)
        for what, (least, most) in needed.items():
            if least > most:
                raise UserError(f"{files.folder}: {what} reaches {least} ids, and {module} has {most}: {GROWN}")


def _differ(files: PeftFiles, name: str, own: Any) -> bool:
    """Whether embedding and output layer, one table in the base, are two in the folder."""
    config, reader = files.config, files.reader
    follows = config.ensure_weight_tying and config.adapts(name)
    if config.adapts(HEAD) and not config.all_linear and f"{PREFIX}{HEAD}.lora_A.weight" in set(reader.keys()):
        return True
    if follows:  # one update, of the table's rows and of the output layer's columns
        return True
    first, second = config.rows_of(name, True), config.rows_of(HEAD, False)
    if first is not None and second in (None, first):  # the output layer follows the embedding's rows
        second = first
    table = _value(files, name, own, first, name)
    head = _value(files, HEAD, own, second, name if second is first else HEAD)
    return table is not head and not np.array_equal(table.astype(own.dtype), head.astype(own.dtype))


def _value(files: PeftFiles, module: str, own: Any, ids: Sequence[int] | None, of: str) -> np.ndarray:
    """A table with its rows replaced; `of` names the module whose rows they are."""
    key = whole_key(files.reader, module)
    if key is None and ids is None:
        return own
    table = np.array(own, np.float32) if key is None else read_finite(files.reader, key).copy()
    delta = f"{PREFIX}{of}.{DELTA}"
    if ids is not None and delta in set(files.reader.keys()):
        table[list(ids)] = read_finite(files.reader, delta)
    return table
