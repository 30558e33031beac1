"""Kernels that read one input side by side in one leaf: "attention/{query,key,value}" as "attention/qkv", and back.

One wide product reads its input once, forward and backward, where three read it three times. A layout of the run alone:
plans, adapters, files, fingerprints and exports know the kernels by their own names.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import is_coded
from lowrank_jax.core.types import Tree
from lowrank_jax.layouts.base import cut, run, sharding_of

Groups = Mapping[str, tuple[tuple[str, int], ...]]  # fused module's path -> (member's path, its columns), in order


@dataclasses.dataclass(frozen=True)
class Fused:
    """[.., d, n_1], [.., d, n_2], ... <-> [.., d, n_1 + n_2 + ...] for each group, sharded as its first member.

    Attributes:
      groups: which kernels lie side by side; each member has a kernel, and all of a group a bias or none.
    """

    groups: Groups

    def apply(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.apply`.

        Raises:
          UserError: a member's kernel is not there (it is trained, or of another model) or of codes that cannot be
            joined, a member has more leaves, or some members alone have a bias.
        """
        flat = dict(flatten(params))
        parts = {}
        for path, members in self.groups.items():
            leaves, biases = [], []
            for member, columns in members:
                kernel = flat.pop(f"{member}/kernel", None)
                if kernel is None:
                    raise UserError(f"no frozen {member}/kernel to fuse into {path}; set base.fused to false")
                if is_coded(kernel) and not kernel.splits:
                    raise UserError(
                        f"base.fused joins kernels that base.quantize holds as codes of {kernel.kind}; set one of them "
                        "back (false, or none)"
                    )
                if leaves and is_coded(kernel) is not is_coded(leaves[0]):
                    raise UserError(f"some parts of {path} alone are codes; name all or none of them in base.fp8.keep")
                if (bias := flat.pop(f"{member}/bias", None)) is not None:
                    biases.append(bias)
                if beside := [other for other in flat if other.startswith(f"{member}/")]:
                    raise UserError(f"{beside[0]} stands beside a kernel that is to be fused; set base.fused to false")
                if kernel.shape[-1] != columns:
                    raise UserError(f"{member}/kernel has {kernel.shape[-1]} columns where the model has {columns}")
                leaves.append(kernel)
            parts[f"{path}/kernel"] = leaves
            if biases and len(biases) < len(members):
                raise UserError(f"some parts of {path} alone have a frozen bias; set base.fused to false")
            if biases:
                parts[f"{path}/bias"] = biases
        shardings = tuple((path, sharding_of(leaves[0])) for path, leaves in parts.items())
        return unflatten(flat | (run(_join(shardings), parts, shardings=dict(shardings)) if parts else {}))

    def undo(self, params: Tree) -> dict[str, Any]:
        """See `base.Layout.undo`."""
        flat = dict(flatten(params))
        for path, members in self.groups.items():
            for leaf in ("kernel", "bias"):
                whole, first = flat.pop(f"{path}/{leaf}", None), 0
                for member, columns in members if whole is not None else ():
                    flat[f"{member}/{leaf}"] = cut(whole, first, first + columns, axis=-1)
                    first += columns
        return unflatten(flat)


@functools.cache  # trials of one base are laid out alike, one after the other
def _join(shardings: tuple[tuple[str, Any], ...]) -> Any:
    def join(parts):
        return {path: _side_by_side(*leaves) for path, leaves in parts.items()}

    return jax.jit(join, out_shardings=dict(shardings))


def _side_by_side(first: Any, *others: Any) -> Any:
    if is_coded(first):
        return first.beside(others)
    return jnp.concatenate([first, *others], axis=-1)
