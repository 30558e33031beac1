"""Lines of a text file, plain or compressed (.gz, .xz); a fault of the file is an error that names it."""

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowrank_jax.core.errors import UserError

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def read_lines(path: Path, newline: str | None = None) -> Iterator[tuple[int, str]]:
    """(number, line) of each line that is not blank, from 1 on; a byte-order mark at the start is left out.

    Args:
      path: its suffix says how the file is compressed.
      newline: as in `open`; with None a line ends at \\n, \\r\\n or \\r, with "\\n" only there.

    Raises:
      UserError: the file is missing, not UTF-8, cut short or damaged.
    """
    number = 0
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the data path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after line {number}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}, after line {number}: cannot be read ({error}); fetch the file again") from error
