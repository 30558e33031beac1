"""Values that rematerialisation saves by name (`models.stack.POLICIES`)."""

from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Float

from lowrank_jax.core.types import Array


def saved_product(y: Float[Array, "*shape"], name: str) -> Float[Array, "*shape"]:
    """y under a name that a remat policy can save; y is the output of a matrix product.

    The barrier is for XLA's GPU backend: where a scan stacks a product for the backward pass and the block uses it too,
    it runs the product twice, the second time straight into the stack (seen in jaxlib 0.11's programs for an H100,
    with Triton products off).
    """
    return checkpoint_name(lax.optimization_barrier(y), name)
