"""Reads and checks a user's own data: rows of one kind from files, folders and named data sets."""

import hashlib
import json
import os
from collections.abc import Sequence

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.row_kinds import KEYS, Row, quoted, read_row
from lowrank_jax.data.sources import is_named, read_source

NAMES = {"chat": "a conversation", **{kind: quoted(KEYS[kind]) for kind in ("text", "completion")}}


class Rows:
    """Random access to the rows of one or several sources, read and checked at the start, before any long work.

    Rows are those of `row_kinds.read_row`; all are of one kind.

    Args:
      paths: one source or several: files (.jsonl, .json, .parquet; .gz or .xz says how JSON is compressed), folders of
        them, hub:owner/name:split or tfds:name:split.

    Attributes:
      kind: "text", "completion" or "chat".
      contents: a data set's name -> digest of its rows; of files the content is digested.

    Raises:
      UserError: a file that is missing or damaged, or a row of another kind; the message names file, line and remedy.
    """

    def __init__(self, paths: str | os.PathLike | Sequence[str | os.PathLike]):
        self.paths = [os.fspath(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        if not self.paths:
            raise UserError("no data file given; set path to one or more .jsonl, .json or .parquet files")
        self.kind, self._rows, self._places, self.contents = "", [], [], {}
        for source in self.paths:
            start = len(self._rows)
            for place, found in read_source(source):
                self._add(place, found)
            if is_named(source):
                self.contents[source] = rows_digest(self._rows[start:])

    def _add(self, place: str, found) -> None:
        before = len(self._rows)
        for word, number, raw in found:
            where = f"{place}, {word} {number}"
            kind, row = read_row(where, raw)
            if self.kind and kind != self.kind:
                raise UserError(
                    f"{where}: has {NAMES[kind]}, the rows before have {NAMES[self.kind]}; "
                    "keep the two kinds in separate runs"
                )
            self.kind = kind
            self._rows.append(row)
            self._places.append((place, word, number))
        if len(self._rows) == before:
            raise UserError(f'{place}: has no rows; each line needs an object such as {{"text": "..."}}')

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def place(self, index: int) -> str:
        """File and line of row `index`, for messages."""
        place, word, number = self._places[index]
        return f"{place}, {word} {number}"


def source_digest(source: str) -> str:
    """Reads a named data set; returns the `rows_digest` of it.

    Raises:
      UserError: as `read_source` and `read_row`.
    """
    found = ((f"{place}, {word} {number}", raw) for place, rows in read_source(source) for word, number, raw in rows)
    return rows_digest([read_row(where, raw)[1] for where, raw in found])


def rows_digest(rows: Sequence[Row]) -> str:
    """sha256 of rows, for a data set that is no file."""
    found = hashlib.sha256()
    for row in rows:
        found.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return found.hexdigest()
