"""The one named mesh: axes data (batch), fsdp (batch and weights), tensor (weights)."""

import dataclasses
import math
from typing import Annotated

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
SIZE = Range(least=1, also=(-1,))


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 (at most once) takes the devices that the others leave.

    Attributes:
      data: copies of the model, each with its share of the batch.
      fsdp: splits the batch and every weight; weights are gathered where they are used.
      tensor: splits heads and hidden units.
    """

    data: Annotated[int, SIZE] = -1
    fsdp: Annotated[int, SIZE] = 1
    tensor: Annotated[int, SIZE] = 1

    def __post_init__(self):
        check_ranges(self, "mesh")


def make_mesh(config: MeshConfig = MeshConfig(), devices: list | None = None) -> Mesh:
    """The mesh over all devices, or over `devices`.

    Raises:
      UserError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    if sizes.count(-1) > 1:
        raise UserError(f"mesh {dict(zip(AXES, sizes, strict=True))}: one of them may be -1, not more")
    given = dict(zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        needed = f"a multiple of {fixed}" if -1 in sizes else f"{fixed}"
        remedy = f"set mesh.data=-1 and sizes that divide {len(devices)}"
        raise UserError(f"mesh {given} needs {needed} devices, {len(devices)} are here; {remedy}")
    # Auto axes: make_mesh defaults to Explicit ones in jax 0.10, and flax's Embed raises under those.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding with a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding that splits axis `axis` over the batch axes, for arrays [..., batch, ...]."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, BATCH_AXES))


def batch_share(mesh: Mesh) -> dict[str, int]:
    """{"process_index", "process_count"}: which share of a batch this process reads, and how many shares there are.

    Processes whose devices hold the same rows, as where "tensor" divides the weights between them, read the same share.

    Raises:
      UserError: some rows, but not all, of one process are also another's.
    """
    parts = np.arange(math.prod(mesh.shape[axis] for axis in BATCH_AXES)).reshape(*mesh.devices.shape[:2], 1)
    held: dict[int, set[int]] = {}
    for part, device in zip(np.broadcast_to(parts, mesh.devices.shape).flat, mesh.devices.flat, strict=True):
        held.setdefault(device.process_index, set()).add(int(part))
    shares = sorted({tuple(sorted(one)) for one in held.values()})
    if sum(map(len, shares)) != parts.size or len(set(map(len, shares))) > 1:
        each = len(mesh.devices.flat) // len(held)
        raise UserError(
            f"mesh {dict(mesh.shape)} gives the {len(held)} processes unequal shares of a batch; choose a "
            f"mesh.tensor that divides the {each} devices of a process, or is a multiple of them"
        )
    return {"process_index": shares.index(tuple(sorted(held[jax.process_index()]))), "process_count": len(shares)}


def check_batch(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Checks that a global batch splits into `accumulate` parts over the mesh.

    Raises:
      UserError: it does not; names the nearest batch sizes that do.
    """
    shares = accumulate * math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % shares:
        below = batch_size // shares * shares
        raise UserError(
            f"batch_size {batch_size} does not divide into {accumulate} accumulation steps x {shares // accumulate} "
            f"batch shards of the mesh; use {f'{below} or ' if below else ''}{below + shares}"
        )
