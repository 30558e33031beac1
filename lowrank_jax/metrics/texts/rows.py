"""Predictions and references side by side, checked row by row."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lowrank_jax.core.errors import UserError


@dataclass(frozen=True)
class Texts:
    """Each row's prediction, and its references."""

    predictions: list[str]
    references: list[list[str]]


def check(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    empty_references: bool = False,
    most: int | None = None,
) -> Texts:
    """The texts with single spaces between their words, which no metric can tell from other white space.

    A newline inside a text would be the end of a row to the official programs.

    Args:
      predictions: a text a row.
      references: texts, one or more a row.
      empty_references: whether a row may have empty references beside another one.
      most: references of a row that are kept, the first ones; None keeps all.

    Raises:
      UserError: no rows, different counts, a row without references, an empty reference, or something that is no
        text. The message has the row's number; the first is 1.
    """
    if len(predictions) == len(references) == 0:
        raise UserError("there are no predictions to score")
    if len(predictions) != len(references):
        fewer = "prediction" if len(predictions) < len(references) else "references"
        count = f"{len(predictions)} predictions for {len(references)} rows of references"
        raise UserError(f"{count}: row {min(len(predictions), len(references)) + 1} has no {fewer}")
    checked = Texts([], [])
    for number, (prediction, texts) in enumerate(zip(predictions, references, strict=True), start=1):
        row = f"row {number} of {len(predictions)}"
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise UserError(f"{row}: its references are of type {type(texts).__name__}, not a list of texts")
        checked.predictions.append(_plain(prediction, f"{row}: the prediction"))
        plain = [
            _plain(text, f"{row}: reference {place}")
            for place, text in enumerate(itertools.islice(texts, most), start=1)
        ]
        if not any(plain):
            raise UserError(f"{row} has no reference{' but empty ones' if plain else ''}; leave the row out")
        if not empty_references and "" in plain:
            raise UserError(f"{row}: reference {plain.index('') + 1} is empty; leave it out")
        checked.references.append(plain)
    return checked


def streams(references: list[list[str]]) -> list[list[Any]]:
    """As sacrebleu takes references: the first ones of all rows, the second ones, ...; None where a row has fewer."""
    most = max(len(row) for row in references)
    return [[row[i] if i < len(row) else None for row in references] for i in range(most)]


def _plain(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise UserError(f"{what} is of type {type(text).__name__}, not a text")
    return " ".join(text.encode("utf-8", "replace").decode().split())  # half a surrogate pair is no character to Java
