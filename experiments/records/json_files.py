"""JSON files of runs: written whole or not at all, read with one clear line for what is wrong."""

import contextlib
import errno
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from lowrank_jax.core import json_text
from lowrank_jax.core.errors import UserError


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON; a reader sees either the old file or the complete new one. Non-finite numbers become null.

    Raises:
      UserError: the disk is full or the folder is not writable; the previous file is kept.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    text = json.dumps(finite(value), indent=1, allow_nan=False) + "\n"
    # A list of plain values on one line; no string holds a raw newline, so none is touched.
    text = re.sub(r"\[\n\s*([^\[\]{}]*?)\n\s*\]", lambda found: "[" + re.sub(r"\n\s*", " ", found[1]) + "]", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        remedy = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        raise UserError(f"cannot write {path}: {error.strerror}; {remedy} and run again: it resumes") from error


def read_json(path: str | Path, remedy: str) -> Any:
    """Reads JSON; raises UserError with the given remedy for one that cannot be read."""
    return json_text.read_json(path, remedy, f"cannot read {path}: there is no such file; {remedy}", finite=True)


def finite(value: Any) -> Any:
    """A value for JSON: numbers that are not finite become None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
