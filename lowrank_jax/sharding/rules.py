"""Path rules -> the PartitionSpec of every leaf; adapters inherit the axes of their kernel."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import first_match, flatten, unflatten
from lowrank_jax.core.types import Rules, Tree

# A bottleneck's products: their wide side is whole along "tensor", their narrow side on every axis.
BOTTLENECK = {"down_kernel": ("fsdp", None), "up_kernel": (None, "fsdp")}
# The spec of the last two axes [d_in, d_out]; a layer axis in front is never split. Column-parallel products split
# their output, row-parallel ones their input, so one all-reduce a block is enough along "tensor". "fsdp" divides rows:
# a layer's kernel is gathered along its first axis, where the parts follow each other in memory. With kernels divided
# by columns, XLA copied the whole stack in another order before every step (LLaMA-2-7B shape on two GPUs: 1.8 GiB).
KERNEL_RULES: Rules = (
    (r".*/(query|key|value|qkv|gate|up|gate_up)/kernel", ("fsdp", "tensor")),
    (r".*/(out|down)/kernel", (("tensor", "fsdp"), None)),
    (r"(.*/)?head/kernel", ("fsdp", "tensor")),
    (r"(.*/)?embed(/word)?/embedding", ("tensor", "fsdp")),
    (r".*", ()),
)


def leaf_spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = KERNEL_RULES) -> PartitionSpec:
    """The PartitionSpec of the leaf at `path` ("params/...", "adapters/...", "scales/...").

    LoRA's a [.., d_in, r] takes the kernel's input axis (the table's rows), its b [.., r, d_out] the output axis;
    MoRA's square, a bottleneck's vectors and the scales are whole on every device. An axis whose length the mesh does
    not divide is not split.

    Raises:
      UserError: no rule matches the path.
    """
    collection, _, inner = path.partition("/")
    module, _, name = inner.rpartition("/")
    if collection == "adapters" and name in BOTTLENECK:
        axes = BOTTLENECK[name]
    elif collection == "adapters":
        kernel = _axes(rules, f"{module}/kernel") or _axes(rules, f"{module}/embedding")
        axes = {"a": (*kernel[:1], None), "b": (None, *kernel[1:])}.get(name, ()) if kernel else ()
    elif collection == "scales":
        axes = ()
    else:
        axes = _axes(rules, inner)
    if not axes:
        return PartitionSpec()
    axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
    return PartitionSpec(*(_dividing(axis, length, mesh) for axis, length in zip(axes, shape, strict=True)))


def _dividing(axis: str | tuple[str, ...] | None, length: int, mesh: Mesh) -> str | tuple[str, ...] | None:
    """The axis if it divides the length; of several, as many of the first ones as do; None where none does."""
    if not isinstance(axis, tuple):
        return axis if axis and length % mesh.shape[axis] == 0 else None
    while axis and length % math.prod(mesh.shape[name] for name in axis):
        axis = axis[:-1]
    return axis or None


def _axes(rules: Rules, path: str) -> tuple[str | tuple[str, ...] | None, ...]:
    axes = first_match(rules, path)
    if axes is None:
        raise UserError(f"no sharding rule matches {path!r}; end the rules with ('.*', ()) to keep the rest whole")
    return axes


def tree_shardings(tree: Tree, mesh: Mesh, rules: Rules = KERNEL_RULES) -> dict[str, Any]:
    """The NamedSharding of every leaf of a variable tree ({"params": ..., "adapters": ..., "scales": ...}).

    The codes and scales of a quantised kernel take its axes, each as far as the mesh divides them.
    """
    return unflatten({path: leaf_shardings(path, leaf, mesh, rules) for path, leaf in flatten(tree).items()})


def leaf_shardings(path: str, leaf: Any, mesh: Mesh, rules: Rules = KERNEL_RULES) -> Any:
    """The NamedSharding of the leaf at `path`; for a quantised kernel, a `Quantized` of those of its parts."""
    return jax.tree.map(lambda part: NamedSharding(mesh, leaf_spec(path, part.shape, mesh, rules)), leaf)


def state_shardings(state: Any, trainable_shardings: Mapping[str, Any], mesh: Mesh) -> Any:
    """Shardings of a training state: a leaf whose path ends in a trainable leaf's path takes that leaf's sharding.

    An optimizer's moments mirror the trainable tree within its structures, and their paths end in the same way;
    counters, rates and keys match nothing and are whole on every device.
    """
    known = flatten(trainable_shardings)

    def find(path, leaf):
        keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        for start in range(len(keys)):
            sharding = known.get("/".join(keys[start:]))
            if sharding is not None:
                return sharding
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(find, state)


def shard_tree(tree: Tree, mesh: Mesh, rules: Rules = KERNEL_RULES) -> dict[str, Any]:
    """The tree placed on the mesh by the rules."""
    return jax.device_put(dict(tree), tree_shardings(tree, mesh, rules))
