"""Checks the counts of a model's shape: layers, widths, heads, rows of tables."""

from collections.abc import Iterable
from typing import Any

from lowrank_jax.core.errors import UserError

# 64 times Gemma 3's vocabulary (262,208) and 315 times LLaMA-3.1 405B's widest layer (53,248). A table of MOST by MOST
# has 2^48 entries, which an int64 index still reaches.
MOST = 2**24
MOST_LAYERS = 4_096  # each is a row of every key table


def check_counts(config: Any, names: Iterable[str]) -> None:
    """Refuses counts below 1 or above the limits, before anything is traced or listed layer by layer.

    Args:
      config: a model's config.
      names: the fields to check.

    Raises:
      UserError: names the first such field.
    """
    for name in names:
        value, most = getattr(config, name), MOST_LAYERS if name == "num_hidden_layers" else MOST
        if type(value) is not int or value < 1:
            raise UserError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if value > most:
            raise UserError(f"{name} is {value}; it must be at most {most}")
