"""A user's own data: JSON lines with "text", or with "prompt" and "completion"; plain, .gz or .xz."""

import os
from collections.abc import Sequence
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.data.lines import read_lines

KINDS = {"text": ("text",), "completion": ("prompt", "completion")}


class JsonLines:
    """Random access to the rows of one or several files, read and checked at the start, before any long work.

    A row is an object with the string "text", or with the strings "prompt" and "completion"; other keys are ignored.
    All rows must be of one kind. An empty prompt is allowed; empty text and an empty completion are not.

    Args:
      paths: one path or several; the suffix .gz or .xz says how each is compressed.

    Raises:
      UserError: a file that is missing or damaged, or a row of another kind; the message names file, line and remedy.
    """

    def __init__(self, paths: str | os.PathLike | Sequence[str | os.PathLike]):
        self.paths = [Path(p) for p in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
        if not self.paths:
            raise UserError("no data file given; set path to one or more .jsonl, .jsonl.gz or .jsonl.xz files")
        self.kind, self._rows, self._places = "", [], []
        for path in self.paths:
            before = len(self._rows)
            for number, line in read_lines(path):
                where = f"{path}, line {number}"
                kind, row = _row(where, line)
                if self.kind and kind != self.kind:
                    raise UserError(
                        f"{where}: has {_quoted(KINDS[kind])}, the rows before have {_quoted(KINDS[self.kind])}; "
                        "keep the two kinds in separate runs"
                    )
                self.kind = kind
                self._rows.append(row)
                self._places.append((path, number))
            if len(self._rows) == before:
                raise UserError(f'{path}: has no rows; each line needs an object such as {{"text": "..."}}')

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self._rows[index]

    def place(self, index: int) -> str:
        """File and line of row `index`, for messages."""
        path, number = self._places[index]
        return f"{path}, line {number}"


def _row(where: str, line: str) -> tuple[str, dict[str, str]]:
    """(kind, the row's known keys)."""
    try:
        row = parse(line)
    except NotJson as error:
        raise UserError(f"{where}: not JSON ({error}); write one JSON object per line") from error
    if not isinstance(row, dict):
        raise UserError(f'{where}: is a JSON {type(row).__name__}, not an object; write {{"text": "..."}}')
    kinds = [kind for kind, keys in KINDS.items() if all(key in row for key in keys)]
    if len(kinds) != 1:
        found = _quoted(list(row)[:5]) or "no key"
        raise UserError(f'{where}: needs either the key "text" or both "prompt" and "completion"; found {found}')
    kept = {key: row[key] for key in KINDS[kinds[0]]}
    for key, value in kept.items():
        if not isinstance(value, str):
            raise UserError(f'{where}: "{key}" is a {type(value).__name__}, not a string; put it in quotes')
        if not value and key != "prompt":
            raise UserError(f'{where}: "{key}" is empty; remove the row')
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f'{where}: "{key}" holds half of a surrogate pair (\\ud800-\\udfff); remove it') from None
    return kinds[0], kept


def _quoted(keys) -> str:
    return ", ".join(f'"{key}"' for key in keys)
