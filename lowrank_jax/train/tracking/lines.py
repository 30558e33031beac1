"""Reads the JSON-lines files of a run's folder (metrics, samples, decoded texts), and cuts them where it resumes."""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.json_text import parse

METRICS, SAMPLES, DECODED = "metrics.jsonl", "samples.jsonl", "decoded.jsonl"


def read_metrics(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a run, in the order they were written; a half-written last line is left out.

    Raises:
      UserError: there is no metrics.jsonl, or a line other than the last is damaged.
    """
    return _read(Path(run_folder) / METRICS, str | list | dict)


def read_samples(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The samples of a run: {"step", "name", "prompt", "continuation", "reference" if there is one} of each text.

    Raises:
      UserError: as `read_metrics`, of samples.jsonl.
    """
    return _read(Path(run_folder) / SAMPLES, list | dict)


def read_decoded(run_folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The scored texts of a run: {"step", "name", "prompt", "continuation", "references": a list} of each.

    Raises:
      UserError: as `read_metrics`, of decoded.jsonl.
    """
    return _read(Path(run_folder) / DECODED, dict, "copy the file again, or train the run again")


def _read(path: Path, refused: Any, remedy: str = "delete that line") -> list[dict[str, Any]]:
    """The records of a file; a line without a step, or with a value of a refused type, is damaged."""
    lines = read_bytes(path, f"no {path.name} in {path.parent}; give the folder of a run").split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = parse(line, finite=True)
            record["step"] = int(record["step"])
            if any(isinstance(value, refused) for value in record.values()):
                raise TypeError("a record has no such values")
            records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) and lines[number:] != [b""]:
                raise UserError(f"line {number} of {path} is damaged; {remedy}") from error
    return records


def cut(path: Path, read: Callable[[Path], list[dict[str, Any]]], step: int) -> None:
    """Keeps the complete records up to `step`, and drops the others."""
    if not path.exists():
        return
    records = [record for record in read(path.parent) if record["step"] <= step] if step else []
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text)
    os.replace(partial, path)


@contextlib.contextmanager
def writing(path: Path):
    """Names the file and the reason where writing fails.

    Raises:
      UserError: of any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); free space there or choose another folder") from error
