"""MoRA's matrix in the files of the authors' PEFT fork, and in our own.

The fork (kongds/MoRA, peft-mora) keeps PEFT's layout: adapter_config.json with `use_mora: true` and `mora_type` (1, 2,
3, 4 or 6), and per module one square as torch stores a Linear [out, in], written twice: `lora_A.weight` and
`lora_B.weight` are the same parameter. alpha is stored and never applied. Our m multiplies rows from the right, so it
is the transpose. Stock PEFT warns of the unknown fields and then fails on the shapes, or, in older versions, ignores
them.

Our own format, for every MoRA scheme (truncation, decoupling, padding, layouts), is that of
`checkpoints.adapters_only`: a folder with adapter.safetensors, whose tensors are the stacked leaves by path
(`adapters/layers/attention/query/m` [layers, p, p], `scales/layers/attention/query/scale` [layers]), and adapter.json
with the format version, the AdapterConfig, each leaf's dtype and shape, the file's sha256, and the base's name and
fingerprint.
"""

import numpy as np

from lowrank_jax.adapters.base import MoraConfig
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.peft.config import MORA_SCHEMES

# The fork's MoRA: the input's head as padding, pairs (j, j + p/2), the size rounded half up.
_PAPER_NAMES = {"sharing": 1, "rotation": 6}


def to_leaf(first: np.ndarray, second: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """{"m": [p, p]} from the two copies of the square.

    Raises:
      UserError: the copies differ: they are not a MoRA adapter's.
    """
    if first.shape != second.shape or first.shape[0] != first.shape[-1] or not np.array_equal(first, second):
        raise UserError(
            f"{name}: lora_A and lora_B are not the same square, so this is no MoRA adapter; check use_mora"
        )
    return {"m": first.T}


def from_leaf(m: np.ndarray) -> dict[str, np.ndarray]:
    """{"lora_A.weight", "lora_B.weight"}: the same square twice."""
    return {f"lora_{half}.weight": np.ascontiguousarray(m.T) for half in "AB"}


def options(mora_type: int) -> MoraConfig:
    """Our maps for the fork's mora_type."""
    return MoraConfig(MORA_SCHEMES[mora_type])


def type_of(config: MoraConfig) -> int:
    """The fork's mora_type for our maps.

    Raises:
      UserError: the fork has no such maps.
    """
    numbers = {name: number for number, name in MORA_SCHEMES.items()} | _PAPER_NAMES
    number = numbers.get(config.compression)
    # Zeros in place of the head, and pairs of neighbours, are not in its code; types 2 and 3 do not pad.
    padded = number in (1, 4, 6) and config.padding != "wrap"
    turned = number == 6 and config.layout != "half"
    if number is None or padded or turned or config.rounding != "half_up":
        raise UserError(
            f"the MoRA fork has no {config.compression} with padding {config.padding}, layout {config.layout} and "
            f"rounding {config.rounding}; keep the adapter in our own format, or merge it"
        )
    return number
