"""What kind of GPU a device is: NVIDIA's compute capability."""

from typing import Any

import jax


def compute_capability(device: Any = None) -> float:
    """Compute capability of an NVIDIA GPU, by default the first device; 0 on other devices."""
    device = jax.devices()[0] if device is None else device
    if device.platform != "gpu":
        return 0.0
    try:
        return float(device.compute_capability)
    except ValueError:  # on AMD this is the name of an architecture ("gfx90a")
        return 0.0
