"""A row of a generation data set, and rows of equal inputs merged into one."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_jax.data.digest import text_digest


@dataclasses.dataclass(frozen=True)
class NlgRow:
    """An input and the texts that are written for it.

    Attributes:
      context: the input as text, in the official form.
      references: texts; of a training row one.
      place: file and row, for messages.
      category: of WebNLG.
      table: of WikiSQL: {"id", "header"}, and of the official files {"types", "rows"} and the query as "sql" too.
    """

    context: str
    references: tuple[str, ...]
    place: str = ""
    category: str = ""
    table: Mapping[str, Any] | None = None


def pairs(rows: Iterable[NlgRow]) -> list[NlgRow]:
    """One row for each text, in order: what is trained on."""
    return [dataclasses.replace(row, references=(text,)) for row in rows for text in row.references]


def merged(rows: Iterable[NlgRow]) -> list[NlgRow]:
    """One row for each input, in the order of their first rows, with the texts of all."""
    found: dict[str, list[NlgRow]] = {}
    for row in rows:
        found.setdefault(row.context, []).append(row)
    return [
        dataclasses.replace(same[0], references=tuple(text for row in same for text in row.references))
        for same in found.values()
    ]


def capped(rows: Iterable[NlgRow], most: int) -> list[NlgRow]:
    """Rows with exactly `most` texts: further ones are left out, and the first is repeated where there are fewer."""
    return [dataclasses.replace(row, references=(row.references + row.references[:1] * most)[:most]) for row in rows]


def rows_digest(rows: Sequence[NlgRow]) -> str:
    """sha256 of the rows, whatever files they come from."""
    texts = [json.dumps([row.references, row.category]) for row in rows]
    return text_digest([[row.context for row in rows], texts], b"")
