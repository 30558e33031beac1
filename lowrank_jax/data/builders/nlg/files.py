"""Reads the official files of the generation data sets: CSV, JSON and JSON lines, plain, .gz or .xz."""

import csv
import io
import lzma
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, refuse_special
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.data.lines import DAMAGES, OPENERS, read_lines

SUFFIXES = ("", *OPENERS)
MOST_CELL = 2**20  # characters of a CSV cell; Python's own limit is 131,072


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the names that the folder has, plain or compressed."""
    for name in names:
        for suffix in SUFFIXES:
            if kind_of(path := folder / f"{name}{suffix}") is not None:
                return path
    return None


def read_whole(path: Path) -> str:
    """The text of a file.

    Raises:
      UserError: it is missing, not UTF-8, cut short or damaged.
    """
    refuse_special(path)
    try:
        with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8") from None
    except (*DAMAGES, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch the file again") from error


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and row, {column: text}) of each row of a CSV file; quoted cells may contain line breaks.

    Raises:
      UserError: the header lacks a column or has it twice, or a row has fewer or more cells than the header.
    """
    csv.field_size_limit(MOST_CELL)
    reader = csv.reader(io.StringIO(read_whole(path), newline=""), strict=True)
    number = 0
    try:
        header = next(reader, [])
        if missing := [name for name in columns if name not in header]:
            shown = ", ".join(map(repr, header))[:200] or "nothing"
            raise UserError(
                f"{path}, row 1: the header lacks the column {missing[0]!r}, it has {shown}; use the official file"
            )
        if twice := [name for name in columns if header.count(name) > 1]:
            raise UserError(f"{path}, row 1: the header has the column {twice[0]!r} twice; use the official file")
        for number, cells in enumerate(reader, 1):
            if not cells:
                continue
            where = f"{path}, row {number}"
            if len(cells) < len(header):
                raise UserError(
                    f"{where}: has {len(cells)} of {len(header)} columns; the file is damaged, fetch it again"
                )
            if len(cells) > len(header):  # the rest of a text that was cut at its comma
                raise UserError(
                    f"{where}: has {len(cells)} cells for {len(header)} columns; put texts with commas in quotes"
                )
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}, after row {number}: no CSV ({error}); fetch the file again") from None


def read_value(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
      UserError: it is not JSON.
    """
    try:
        return parse(read_whole(path))
    except NotJson as error:
        raise UserError(f"{path} is not JSON ({error}); fetch the file again") from None


def read_objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, object) of each line of a file of JSON lines.

    Raises:
      UserError: a line is no object.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        try:
            value = parse(line)
        except NotJson as error:
            raise UserError(f"{where}: not JSON ({error}); fetch the file again") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: is a JSON {type(value).__name__}, not an object; use the official file")
        yield where, value


def take(where: str, row: Any, key: str, kind: type, empty: bool = True) -> Any:
    """The value of a key in a row, with its kind checked.


    Args:
      where: file and row, for messages.
      row: the row as it was read; it should be an object.
      key: the key that it should have.
      kind: the type of the value.
      empty: whether a text may be blank.

    Raises:
      UserError: the key is missing, or its value is of another kind or blank; names the row.
    """
    if not isinstance(row, Mapping) or key not in row:
        found = ", ".join(map(repr, list(row)[:8])) if isinstance(row, Mapping) else f"a {type(row).__name__}"
        raise UserError(f"{where}: lacks {key!r}, it has {found or 'nothing'}; use the official file")
    value = row[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {key!r} is a {type(value).__name__}, not a {kind.__name__}; use the official file")
    if kind is str and not empty:
        check_reference(where, key, value)
    return value


def check_reference(where: str, key: str, text: str) -> None:
    """Refuses a blank text.

    Raises:
      UserError: names the row.
    """
    if not text.strip():
        raise UserError(f"{where}: {key!r} is empty; remove the row, or use the official file")


def check_unicode(where: str, text: str) -> None:
    """Refuses half of a surrogate pair, which JSON can hold and no tokenizer reads.

    Raises:
      UserError: names the row.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: a text holds half of a surrogate pair (\\ud800-\\udfff); remove it") from None
