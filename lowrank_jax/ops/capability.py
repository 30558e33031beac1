"""Says which device programs are traced for, its platform, and the compute capability of an NVIDIA GPU."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_MEANT = contextvars.ContextVar("meant", default=None)  # the device of `meant_for`


def device() -> Any:
    """The device that programs are traced for: that of `meant_for`, otherwise jax's first one."""
    found = _MEANT.get()
    return jax.devices()[0] if found is None else found


def platform() -> str:
    """The platform of `device()`: "cpu", "gpu" or "tpu"."""
    return device().platform


@contextlib.contextmanager
def meant_for(other: Any) -> Iterator[None]:
    """Inside, programs are traced for a device that this machine need not have.

    What is traced differs between platforms: attention's kernel, the form of some products. jax does not trace again
    what it has traced before: use this in a process that makes programs for one kind of device alone.

    Args:
      other: a device, of `jax.devices()` or of a compiler's description of a machine.
    """
    token = _MEANT.set(other)
    try:
        yield
    finally:
        _MEANT.reset(token)


def compute_capability(of: Any = None) -> float:
    """Compute capability of an NVIDIA GPU, by default of `device`; 0 on other devices."""
    found = device() if of is None else of
    if found.platform != "gpu":
        return 0.0
    try:
        return float(found.compute_capability)
    except ValueError:  # on AMD this is the name of an architecture ("gfx90a")
        return 0.0
