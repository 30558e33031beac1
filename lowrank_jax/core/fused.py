"""Kernels that read one input side by side in one leaf: "attention/{query,key,value}" as "attention/qkv", and back.

One wide product reads its input once, forward and backward, where three read it three times. A layout of the run alone:
plans, adapters, files, fingerprints and exports know the kernels by their own names.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree

Groups = Mapping[str, tuple[tuple[str, int], ...]]  # fused module's path -> (member's path, its columns), in order


def fuse(params: Tree, groups: Groups) -> dict[str, Any]:
    """[.., d, n_1], [.., d, n_2], ... -> [.., d, n_1 + n_2 + ...] for each group, sharded as its first member.

    Args:
      params: arrays or ShapeDtypeStructs; each member has a kernel and nothing else.

    Raises:
      UserError: a member's kernel is not there (it is trained, or of another model), or a member has more leaves.
    """
    flat = dict(flatten(params))
    for path, members in groups.items():
        leaves = []
        for member, columns in members:
            kernel = flat.pop(f"{member}/kernel", None)
            if kernel is None:
                raise UserError(f"no frozen {member}/kernel to fuse into {path}; set base.fused to false")
            if beside := [other for other in flat if other.startswith(f"{member}/")]:
                raise UserError(f"{beside[0]} stands beside a kernel that is to be fused; set base.fused to false")
            if kernel.shape[-1] != columns:
                raise UserError(f"{member}/kernel has {kernel.shape[-1]} columns where the model has {columns}")
            leaves.append(kernel)
        flat[f"{path}/kernel"] = _side_by_side(leaves)
    return unflatten(flat)


def separate(params: Tree, groups: Groups) -> dict[str, Any]:
    """The inverse of `fuse`, on arrays."""
    flat = dict(flatten(params))
    for path, members in groups.items():
        kernel, first = flat.pop(f"{path}/kernel"), 0
        for member, columns in members:
            flat[f"{member}/kernel"] = kernel[..., first : first + columns]
            first += columns
    return unflatten(flat)


def _side_by_side(leaves: list) -> Any:
    first = leaves[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        shape = (*first.shape[:-1], sum(leaf.shape[-1] for leaf in leaves))
        return jax.ShapeDtypeStruct(shape, first.dtype, sharding=first.sharding)
    return jax.jit(lambda *parts: jnp.concatenate(parts, axis=-1), out_shardings=first.sharding)(*leaves)
