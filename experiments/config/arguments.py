"""Errors and remarks in the words of the config file that a user gave: its own arguments beside the config's keys."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

from experiments.config import faults
from lowrank_jax.core.errors import UserError

TABLE = "ARGUMENTS"  # of a config file: {"task.path": "data", ...}, which of its arguments sets a key
FILE = "file"  # of an entry of a file of cells: the config file that they come from
_names: dict[str, str] = {}  # of the config file that this program was given


def take_names(table: Any) -> None:
    """Takes the arguments of a config file that was loaded; {} where it has none."""
    _names.clear()
    if isinstance(table, Mapping):
        _names.update({key: word for key, word in table.items() if isinstance(key, str) and isinstance(word, str)})


def spoken(text: str) -> str:
    """The text with each key that an argument sets named by both: "data= (--config.task.path) is empty"."""

    def both(found: re.Match) -> str:
        key, value = found.groups()
        return f"{_names[key]}={value or ''} (--config.{key})"

    if not _names:
        return text
    keys = "|".join(map(re.escape, sorted(_names, key=len, reverse=True)))
    return re.sub(rf"(?<![\w.])({keys})(?![\w.]*\w)(?:=([\w./-]*\w))?", both, text)


def in_its_words(main: Callable[..., Any]) -> Callable[..., Any]:
    """The `main` of a program, whose errors then name the arguments of its config file; a sweep is told of them."""

    @functools.wraps(main)
    def speaking(*words: Any) -> Any:
        try:
            return main(*words)
        except UserError as error:
            faults.tell(error)
            error.args = (spoken(str(error)),)
            raise

    return speaking
