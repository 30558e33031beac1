"""Values that rematerialisation saves by name (`models.stack.POLICIES`)."""

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.core.types import Array


def saved_product(y: Float[Array, "*shape"], name: str, once: bool = True) -> Float[Array, "*shape"]:
    """y under a name that a remat policy can save; y is the output of a matrix product.

    The barrier is for XLA's GPU backend: where a scan stacks a product for the backward pass and the block uses it too,
    it runs the product twice, the second time straight into the stack (seen in jaxlib 0.11's programs for an H100,
    with Triton products off).

    Args:
      once: whether a barrier makes the gradient one array too, computed once; without it XLA may write what it makes of
        the gradient (its largest entry, FP8 codes) in the kernel that computes it.
    """
    return checkpoint_name(lax.optimization_barrier(y) if once else behind_barrier(y), name)


@jax.custom_vjp
def behind_barrier(y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """y behind a barrier: nothing that reads it computes it again; its gradient behind none."""
    return lax.optimization_barrier(y)


behind_barrier.defvjp(lambda y: (lax.optimization_barrier(y), None), lambda _, g: (g,))
