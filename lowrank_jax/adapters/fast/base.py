"""What a family's fast form may add to its equation."""

import dataclasses
from collections.abc import Callable, Sequence

from lowrank_jax.adapters.base import AdapterSpec, Leaf
from lowrank_jax.core.types import Array


@dataclasses.dataclass(frozen=True)
class Fast:
    """How `adapters.attach` computes a family's update; values and gradients are those of the family's own functions.

    Attributes:
      delta: as `Family.delta`; of a joined leaf, the updates of its sites side by side.
      apply: as `Family.apply`.
      float32: names of the leaf's arrays that a step does not cast to the model's dtype.
      join: None, or (leaves of sites that read one input, None where a site is missing; columns of each) -> the leaf of
        one site for all. Leaves are scaled and cast, stack axes in front.
      joins: (specs, columns of all parts) -> whether `join` serves them and pays.
      tiled: spec -> whether the update is a small array tiled to d_out, so that the kernel that reads x W + delta(x)
        tiles it for less (`ops.products.materialize_product`).
      factors: where delta is x A B, the names of A and B, which decoding computes in another way (`ops.widened`).
    """

    delta: Callable[[Leaf, Array, AdapterSpec], Array]
    apply: Callable[[Leaf, Leaf, Array, Array, AdapterSpec], Array] | None = None
    float32: tuple[str, ...] = ()
    join: Callable[[Sequence[Leaf | None], Sequence[int]], dict[str, Array]] | None = None
    joins: Callable[[Sequence[AdapterSpec], Sequence[int]], bool] = lambda specs, columns: True
    tiled: Callable[[AdapterSpec], bool] = lambda spec: False
    factors: tuple[str, str] | None = None
