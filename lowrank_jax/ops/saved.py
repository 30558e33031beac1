"""Values that rematerialisation saves by name (`models.parts.stack.POLICIES`)."""

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.core.types import Array


def saved_product(y: Float[Array, "*shape"], name: str, once: bool = True) -> Float[Array, "*shape"]:
    """y under a name that a remat policy can save; y is the output of a matrix product.

    Where gradients are taken, y is behind a barrier. Without one, XLA's GPU backend runs a product twice where a scan
    stacks it for the backward pass and the block uses it too, the second time straight into the stack (seen in jaxlib
    0.11's programs for an H100, with Triton products off). Without gradients a barrier would only hinder fusion.

    Args:
      once: whether a barrier makes the gradient one array too, computed once; without it XLA may write what it makes of
        the gradient (its largest entry, FP8 codes) in the kernel that computes it.
    """
    return checkpoint_name(_computed_once(y) if once else behind_barrier(y), name)


@jax.custom_vjp
def behind_barrier(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """y, where gradients are taken behind a barrier: no reader computes it again. Its gradient is behind none."""
    return y


behind_barrier.defvjp(lambda y: (lax.optimization_barrier(y), None), lambda _, g: (g,))


@jax.custom_jvp
def _computed_once(y: Array) -> Array:
    return y


@_computed_once.defjvp
def _barriers(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The rule that `optimization_barrier` itself has: a barrier each for the value and its tangent."""
    return lax.optimization_barrier(primals[0]), lax.optimization_barrier(tangents[0])
