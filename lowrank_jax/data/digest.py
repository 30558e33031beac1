"""Digests of files' contents, and stamps (size, time) that tell whether an earlier digest is still valid."""

import functools
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import refuse_special
from lowrank_jax.data.lines import OPENERS

BLOCK = 2**20
SAMPLES, SAMPLE_BYTES = 64, 2**14  # a sampled digest reads 1 MiB of a file, whatever its size

Stamp = list  # [name, bytes, mtime in ns], as read back from JSON


def stamp(path: Path) -> Stamp:
    """The file's stamp, by which a change is seen without reading it; OSError where there is no file.

    Raises:
      UserError: a folder, pipe, socket or device, which has no content to be digested.
    """
    refuse_special(path)
    found = os.stat(path)
    return [path.name, found.st_size, found.st_mtime_ns]


def content_digest(path: Path) -> str:
    """sha256 of a file's content after decompression (.gz, .xz): recompressed data is the same. Read once a process.

    Raises:
      UserError: it is damaged, or changed while it was read.
    """
    return _digest(path.absolute(), *stamp(path)[1:], False)


def sampled_digest(path: Path) -> str:
    """sha256 of a large file's size and of 64 evenly strided blocks: takes milliseconds.

    For weights, which another training or quantisation changes everywhere; a change in one place may go unnoticed.
    """
    return _digest(path.absolute(), *stamp(path)[1:], True)


def text_digest(columns: Sequence[Sequence[str]], labels: bytes) -> str:
    """sha256 of rows in memory: columns of texts, and the labels' bytes."""
    found = hashlib.sha256()
    for column in columns:
        for first in range(0, len(column), 10_000):
            found.update(json.dumps(column[first : first + 10_000]).encode())
        found.update(b"\n")
    found.update(labels)
    return found.hexdigest()


@functools.cache
def _digest(path: Path, size: int, mtime_ns: int, sampled: bool) -> str:
    found = hashlib.sha256()
    try:
        if sampled:
            found.update(str(size).encode())
            with open(path, "rb") as file:
                for i in range(SAMPLES):
                    file.seek(i * max(size - SAMPLE_BYTES, 0) // (SAMPLES - 1))
                    found.update(file.read(SAMPLE_BYTES))
        else:
            with OPENERS.get(path.suffix, open)(path, "rb") as file:
                while block := file.read(BLOCK):
                    found.update(block)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the file again") from error
    if stamp(path)[1:] != [size, mtime_ns]:
        raise UserError(f"{path} was written to while it was read; run again when it is whole")
    return found.hexdigest()
