"""Virtual tokens in one call of a model: remembers where they are, and replaces what the base computes there."""

import math

import jax.numpy as jnp

from lowrank_jax.adapters.base import AdapterSpec, Family, Leaf
from lowrank_jax.adapters.prefix.places import VirtualTokens
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array


class VirtualCall:
    """Made anew for each call, as it keeps the call's token ids between the embedding and the layers.

    Args:
      tokens: of the plan.
    """

    def __init__(self, tokens: VirtualTokens):
        self.tokens = tokens
        self.which: Array | None = None

    def read(self, ids: Array) -> Array:
        """Remembers where virtual tokens are; returns the ids with 0, which the base's table has, in their place.

        A larger id than theirs stays as it is, outside the table.
        """
        number = ids - self.tokens.first
        virtual = (number >= 0) & (number < self.tokens.prefix + self.tokens.infix)
        self.which = jnp.where(virtual, number, -1)
        return jnp.where(virtual, 0, ids)

    def replaced(self, y: Array, family: Family, leaf: Leaf, spec: AdapterSpec) -> Array:
        """y [B, T, ...] with the leaf's vectors at the virtual tokens.

        Raises:
          UserError: the model's embedding was not called before, or y is not of the call's tokens.
        """
        which = self.which
        if which is None or y.shape[: which.ndim] != which.shape or math.prod(y.shape[which.ndim :]) != spec.d_out:
            told = "no token ids" if which is None else f"token ids {which.shape}"
            raise UserError(
                f"adapter.method {family.name} replaces vectors of {spec.d_out} at virtual tokens; the model has read "
                f"{told} and computes {y.shape}; use one of the package's causal models"
            )
        vectors = family.delta(leaf, which, spec).astype(y.dtype).reshape(y.shape)
        return jnp.where((which >= 0).reshape(*which.shape, *(1,) * (y.ndim - which.ndim)), vectors, y)
