"""Damage of a checkpoint: told by checksums, and by several processes together."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lowrank_jax.checkpoints.leaves import listed


class Damaged(Exception):
    """A step folder that cannot be read completely; `Checkpoints.restore` turns it into a UserError with the remedy."""


def together(action: Callable[[], Any]) -> Any:
    """What `action` gives; where it raises Damaged on one of several processes, on all, so that none waits for it."""
    error, value = None, None
    try:
        value = action()
    except Damaged as found:
        error = found
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import process_allgather

        seen = np.ravel(process_allgather(np.array(error is not None)))
        if seen.any() and error is None:
            error = Damaged(f"as process {int(seen.argmax())} reads it")
    if error is not None:
        raise error
    return value


def check_sums(found: dict[str, dict[str, int]], saved: dict[str, dict[str, int]]) -> None:
    """Raises Damaged where a leaf is not what was saved; {item: {leaf: checksum}} of both."""
    changed = [
        f"{item}/{name}" for item in found for name, value in saved[item].items() if found[item].get(name) != value
    ]
    if changed:
        raise Damaged(f"other bits than were saved in {listed(changed)}")
