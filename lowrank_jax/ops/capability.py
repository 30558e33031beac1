"""Which device programs are made for, and what kind of GPU a device is: NVIDIA's compute capability."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax

_MEANT = contextvars.ContextVar("meant", default=None)


def device() -> Any:
    """The device that programs are made for: jax's first one, or that of `meant_for`."""
    found = _MEANT.get()
    return jax.devices()[0] if found is None else found


def platform() -> str:
    """Its platform: "cpu", "gpu" or "tpu"."""
    return device().platform


@contextlib.contextmanager
def meant_for(other: Any) -> Iterator[None]:
    """Programs that are traced inside are for a device that need not be here.

    What is traced differs between platforms: attention's kernel, the form of some products. What jax has traced before
    it does not trace again, so that this is for a process that makes programs for one kind of device alone.

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
