"""The layout of a run's frozen parameters: which of fused and unstacked it takes."""

from typing import Any

from lowrank_jax.core.types import Tree
from lowrank_jax.layouts.base import Composed, compose
from lowrank_jax.layouts.fused import Fused, Groups
from lowrank_jax.layouts.unstacked import Unstacked


def layout_of(groups: Groups, unrolled: bool) -> Composed:
    """The layout in which a step reads frozen parameters.

    Args:
      groups: whose kernels lie side by side (`layouts.fused`).
      unrolled: the layers are no loop, and become arrays of their own (`layouts.unstacked`).
    """
    return compose(*([Fused(groups)] if groups else []), *([Unstacked()] if unrolled else []))


def present(params: Tree) -> dict[str, Any]:
    """{"params": params}, or nothing where none is frozen."""
    return {"params": params} if params else {}
