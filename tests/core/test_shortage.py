"""A lack of memory is told from other errors, by what XLA, numpy, Python and the system say of it."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core import shortage
from lowrank_jax.core.errors import UserError, memory_named

XLA = jax.errors.JaxRuntimeError


def of_gpu(words):
    raise XLA(words)


SHORT = {
    "a device": (lambda: jnp.zeros(2**48).block_until_ready(), "1048576.00 GiB more were asked for than are left"),
    "numpy": (lambda: np.empty(2**46), "524288.00 GiB more were asked for than are left"),
    "Python": (lambda: bytearray(2**60), "MemoryError"),
    "the system": (lambda: of_system(errno.ENOMEM), "[Errno 12] Cannot allocate memory"),
    "a GPU": (
        lambda: of_gpu("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12.34GiB.\n[tid]"),
        "12.34 GiB more were asked for than are left",
    ),
    "a GPU in bytes": (
        lambda: of_gpu("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 536870912 bytes."),
        "0.50 GiB more were asked for than are left",
    ),
    "a GPU's driver": (
        lambda: of_gpu("INTERNAL: failed call: CUDA_ERROR_OUT_OF_MEMORY"),
        "INTERNAL: failed call: CUDA_ERROR_OUT_OF_MEMORY",
    ),
}
OTHER = {
    "a kernel": lambda: of_gpu("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 300000"),
    "a message": lambda: of_gpu("RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)"),
    "a shape": lambda: of_gpu("INVALID_ARGUMENT: no such shape"),
    "a disk": lambda: of_system(errno.ENOSPC),
    "a store": lambda: of_value("RESOURCE_EXHAUSTED: Error writing"),
}


def of_system(code):
    raise OSError(code, os.strerror(code))


def of_value(words):
    raise ValueError(words)


@pytest.mark.parametrize("case", SHORT)
def test_a_lack_of_memory_has_one_line(case):
    fails, said = SHORT[case]
    with pytest.raises(UserError) as error, memory_named("loading"):
        fails()
    assert str(error.value) == f"out of memory in loading: {said}; {shortage.REMEDIES}"


@pytest.mark.parametrize("case", OTHER)
def test_other_errors_stay(case):
    with pytest.raises((XLA, OSError, ValueError)), memory_named("loading"):
        OTHER[case]()
