"""Quantises a base's leaves while they are read, one at a time: the layers' kernels, if the config says so."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import jax

from lowrank_jax.core.paths import unknown_name
from lowrank_jax.interop.keymap import ShardingFn
from lowrank_jax.ops.fp8 import RECIPE, Fp8Config
from lowrank_jax.ops.quantized import NONE, quantize

# Not the embeddings, heads and poolers: they are read once a step, at 4% of a 7B model's weights.
KERNELS = r"layers/(.*/)?kernel"


def quantize_leaf(
    path: str, leaf: jax.Array, kind: str, sharding_fn: ShardingFn | None = None, recipe: Fp8Config = RECIPE
) -> Any:
    """The leaf, quantised if KERNELS matches; waits for the codes, so that the leaf's memory is free before the next.

    Args:
      path: below "params".
      kind: a name of `ops.quantized.QUANTIZE`.
      sharding_fn: (path, shape) -> Sharding, called for each part of the codes; None leaves the sharding to the
        compiler.
      recipe: of fp8.
    """
    if not _is_quantized(path, kind, recipe):
        return leaf
    parts = jax.eval_shape(functools.partial(quantize, kind=kind, recipe=recipe), leaf)
    shardings = jax.tree.map(lambda part: sharding_fn(path, part.shape), parts) if sharding_fn else None
    return jax.block_until_ready(jax.jit(quantize, static_argnums=(1, 2), out_shardings=shardings)(leaf, kind, recipe))


def abstract_leaves(
    shapes: Mapping[str, tuple[int, ...]],
    dtype: Any,
    kind: str,
    sharding_fn: ShardingFn | None = None,
    recipe: Fp8Config = RECIPE,
) -> dict[str, Any]:
    """`quantize_leaf` for all leaves' shapes: ShapeDtypeStructs with their shardings, by path.

    Raises:
      UserError: a name in `recipe.keep` that no kernel has.
    """
    names = sorted({_name(path) for path in shapes if re.fullmatch(KERNELS, path)})
    for kept in recipe.keep:
        if kept not in names:
            raise unknown_name("base.fp8.keep", kept, names)
    return {path: _abstract_leaf(path, shape, dtype, kind, sharding_fn, recipe) for path, shape in shapes.items()}


def _abstract_leaf(
    path: str, shape: tuple[int, ...], dtype: Any, kind: str, sharding_fn: ShardingFn | None, recipe: Fp8Config
) -> Any:
    leaf = jax.ShapeDtypeStruct(shape, dtype)
    if _is_quantized(path, kind, recipe):
        leaf = jax.eval_shape(functools.partial(quantize, kind=kind, recipe=recipe), leaf)

    def placed(part):
        sharding = sharding_fn(path, part.shape) if sharding_fn else None
        return jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding)

    return jax.tree.map(placed, leaf)


def _is_quantized(path: str, kind: str, recipe: Fp8Config) -> bool:
    return kind != NONE and re.fullmatch(KERNELS, path) is not None and _name(path) not in recipe.keep


def _name(path: str) -> str:
    return path.split("/")[-2]
