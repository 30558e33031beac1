"""Refuses `learning_rate=auto`: no rule for a learning rate is built in."""

from typing import Any

from lowrank_jax.core.errors import UserError

RATE = "optimizer.learning_rate"  # key of a config
AUTO = "auto"
NO_RULE = (
    "no rule for a learning rate is built in; give a number, or search it as the grids configs/sweeps/rates_*.py do "
    "(docs/reproducing.md, Methods at tuned rates)"
)


def refuse_auto(value: Any, shown: str) -> None:
    """Refuses AUTO as a learning rate.

    Args:
      value: the learning rate as given.
      shown: the key as given, for the message.

    Raises:
      UserError: the value is AUTO; says how a rate is found.
    """
    if isinstance(value, str) and value.strip().lower() == AUTO:
        raise UserError(f"{shown}={value}: {NO_RULE}")
