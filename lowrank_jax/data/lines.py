"""Lines of a text file, plain or compressed (.gz, .xz); a fault of the file is an error that names it."""

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import refuse_special

DAMAGES = (OSError, EOFError, lzma.LZMAError, zlib.error)  # raised for a file that is cut short or changed
OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def read_lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """(number, line) of each line that is not blank, from 1 on; a byte-order mark at the start is left out.

    Args:
      path: its suffix says how the file is compressed.
      newline: as in `open`; with None a line ends at \\n, \\r\\n or \\r, with "\\n" only there.

    Raises:
      UserError: the file is missing, not UTF-8, cut short or damaged.
    """
    refuse_special(path)
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the data path") from None
    except UnicodeDecodeError as error:
        line, column = _wrong_byte(path, number)
        raise UserError(
            f"{path}, line {line}: not UTF-8 ({error.reason} at byte {column}); save the file as UTF-8"
        ) from error
    except DAMAGES as error:
        raise UserError(f"{path}, after line {number}: cannot be read ({error}); fetch the file again") from error


def _wrong_byte(path: Path, read: int) -> tuple[int, int]:
    """(line, byte in it) of the first byte that is not UTF-8; text is decoded in blocks, far ahead of the line read.

    Args:
      read: lines that were read as text. Where the file is damaged as well, the next one is named.
    """
    number, line = read, b""
    with contextlib.suppress(*DAMAGES), OPENERS.get(path.suffix, open)(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, error.start + 1
        return number, len(line)  # the file ends within a character
    return read + 1, 1
