"""FLOPs of a training step in products with weights: the base's and each adapter's, from shapes alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.adapters.base import AdapterSpec, Family
from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.plan import Plan
from lowrank_jax.ops.flops import product_flops


def adapter_flops(plan: Plan, tokens: int) -> int:
    """Forward and backward pass of every site's update over `tokens` rows, gradients of leaf and input included.

    LoRA: 6 (d_in + d_out) r a row; MoRA's groups 6 p^2, its rotation 6 p^2 a block (Jiang et al., section 4.2), with p
    rounded up to a multiple of 8 as the products are.
    """
    return sum(_site(site.family, site.spec, tokens) * math.prod(site.spec.stack) for site in plan.sites)


def kernel_flops(shapes: list[tuple[int, ...]], tokens: int, trained: bool = False) -> int:
    """y = x W and dL/dx = dL/dy W^T of kernels over `tokens` rows: 4 a weight, and 2 more for a trained one's gradient.

    Args:
      shapes: [..., d_in, d_out] each; leading axes are layers.
    """
    return (6 if trained else 4) * tokens * sum(map(math.prod, shapes))


def _site(family: Family, spec: AdapterSpec, tokens: int) -> int:
    fast = get_fast(family)
    leaf = family.leaf(spec)
    if family.virtual:
        return 0  # its vectors replace others, and no weight is multiplied
    if family.place == "table":
        rows = jax.ShapeDtypeStruct((tokens,), jnp.int32)
        return product_flops(lambda leaf, rows: _pull(lambda leaf: fast.delta(leaf, rows, spec), leaf), leaf, rows)
    x = jax.ShapeDtypeStruct((tokens, spec.d_in), jnp.float32)
    apply = fast.apply
    if apply is None:
        return product_flops(lambda leaf, x: _pull(lambda leaf, x: fast.delta(leaf, x, spec), leaf, x), leaf, x)
    kernel = jax.ShapeDtypeStruct((spec.d_in, spec.d_out), jnp.float32)
    y = jax.ShapeDtypeStruct((tokens, spec.d_out), jnp.float32)

    def whole(leaf, kernel, x, y):
        def update(leaf, x, y):
            return apply(leaf, {"kernel": kernel, "product": y}, x, y, spec)

        return _pull(update, leaf, x, y)

    return product_flops(whole, leaf, kernel, x, y)


def _pull(fn: Any, *args: Any) -> Any:
    """The gradients of fn for a cotangent of its own value: no work beside the passes themselves."""
    value, pullback = jax.vjp(fn, *args)
    return pullback(value)
