"""Writes safetensors files whose bytes depend on their content alone; the library orders metadata keys at random."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

ALIGNMENT = 8
# The format's names, in the order that the library writes: the widest types first.
DTYPES = {
    **{"uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32"},
    **{"bfloat16": "BF16", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8"},
    "bool": "BOOL",
}


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes the file tensor by tensor; the same bytes for the same content, in any process.

    Args:
      path: replaced if it exists.
      tensors: in any order, on the host.
      metadata: texts, read back as `safe_open(path, ...).metadata()`.
    """
    with open(path, "wb") as file:
        for part in _parts(tensors, metadata):
            file.write(part)


def safetensors_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The content of the file that `write_safetensors` writes."""
    return b"".join(_parts(tensors, metadata))


def _parts(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> Iterator[Any]:
    """Length of the header, header, and each tensor's bytes."""
    widths = list(DTYPES)
    order = sorted(tensors, key=lambda name: (widths.index(tensors[name].dtype.name), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        kind = DTYPES[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        little = tensors[name].astype(tensors[name].dtype.newbyteorder("<"), order="C", copy=False)
        yield little.reshape(-1).view(np.uint8).data
