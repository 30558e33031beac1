"""Reads files that a user names, if they are regular files: a pipe or a device would make the program wait for ever."""

import contextlib
import os
import stat
from pathlib import Path

from lowrank_jax.core.errors import UserError

KINDS = (
    (stat.S_ISDIR, "folder"),
    (stat.S_ISFIFO, "pipe"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


def kind_of(path: str | os.PathLike) -> str | None:
    """ "file", "folder", "pipe", "socket" or "device", after following links; None where nothing has that name."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # absent, a link to nothing, out of reach, or a name that no file can have
        return None
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "file")


def check_file(path: str | os.PathLike, missing: str = "") -> Path:
    """Checks that a path is a regular file, and returns it.

    Args:
      missing: the message where nothing has that name.

    Raises:
      UserError: there is nothing, a folder, or something whose reading may never end: a pipe, socket or device.
    """
    kind = kind_of(path)
    if kind is None:
        raise UserError(missing or _nothing_at(path))
    if kind != "file":
        raise UserError(f"{os.fspath(path)} is a {kind}, not a file; name a regular file")
    return Path(path)


def refuse_special(path: str | os.PathLike) -> None:
    """Refuses a path that exists and is not a regular file. An absent one passes: its reader has a better message.

    Raises:
      UserError: a folder, pipe, socket or device.
    """
    if kind_of(path) is not None:
        check_file(path)


def read_bytes(path: str | os.PathLike, missing: str = "") -> bytes:
    """The content of a regular file.

    Args:
      missing: as in `check_file`.

    Raises:
      UserError: as `check_file`, or the file cannot be read.
    """
    try:
        return check_file(path, missing).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read ({error.strerror}); check the file") from error


def read_text(path: str | os.PathLike, missing: str = "") -> str:
    """The text of a regular UTF-8 file; a byte-order mark is left out.

    Args:
      missing: as in `check_file`.

    Raises:
      UserError: as `read_bytes`, or the text is not UTF-8; names the line of the first wrong byte.
    """
    content = read_bytes(path, missing)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{os.fspath(path)}, line {line}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _nothing_at(path: str | os.PathLike) -> str:
    shown = os.fspath(path)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    with contextlib.suppress(OSError, ValueError):
        if os.path.islink(path):
            return f"{shown} is a link to {os.readlink(path)}, which is not there; name a file"
    return f"there is no file {shown!r}; check the path"
