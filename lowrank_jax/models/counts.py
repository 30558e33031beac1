"""The counts of a model's shape (layers, widths, heads, rows of tables) within what arrays can have."""

from collections.abc import Iterable
from typing import Any

from lowrank_jax.core.errors import UserError

MOST = 2**24  # sixteen times the largest vocabulary, forty times the widest model; a table of MOST by MOST has an index
MOST_LAYERS = 4_096  # each is a row of every key table


def check_counts(config: Any, names: Iterable[str]) -> None:
    """Refuses counts below 1 and beyond reason, before anything is traced or listed layer by layer.

    Args:
      config: of a model.
      names: its fields.

    Raises:
      UserError: names the first such field.
    """
    for name in names:
        value, most = getattr(config, name), MOST_LAYERS if name == "num_hidden_layers" else MOST
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if value > most:
            raise UserError(f"{name} is {value}; it must be at most {most}")
