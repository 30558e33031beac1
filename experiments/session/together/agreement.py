"""What the processes of one run agree on: process 0 decides, and none waits for the others for ever."""

import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from lowrank_jax.core.errors import UserError


def decided(decide: Callable[[], str], folder: Path) -> str:
    """What `decide` says on process 0: every process learns of it and of a refusal, so that none waits for ever."""
    verdicts, refusal = ("refused", "new", "resume", "finished"), UserError(f"process 0 cannot use {folder}")
    verdict = "refused"
    if jax.process_index() == 0:
        try:
            verdict = decide()
        except UserError as error:
            refusal = error
    verdict = verdicts[of_chief(verdicts.index(verdict))]
    if verdict == "refused":
        raise refusal
    return verdict


def check_alike(data: dict) -> None:
    """Makes sure that every process of the run reads the same data.

    Raises:
      UserError: on every process, where one of them reads other contents.
    """
    if jax.process_count() == 1:
        return
    digests = " ".join(data[key]["sha256"] for key in sorted(data))
    seen = np.unique(multihost_utils.process_allgather(np.uint32(zlib.crc32(digests.encode()))))
    if len(seen) > 1:
        raise UserError("the processes of this run read other data than each other; give every host the same files")


def of_chief(value: int) -> int:
    """Process 0's value, on every process."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(value))
