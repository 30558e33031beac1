"""AdamW over the trainable tree, without its learning rate: the step multiplies by peak x shape(step)."""

import dataclasses
import re
from typing import Annotated

import optax

from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Tree

NO_DECAY = r".*[/_](bias|scale)"  # a bottleneck's are "up_bias", "norm_scale"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter) on the trainable tree.

    Attributes:
      learning_rate: peak rate.
      b1, b2, eps: Adam's moments and denominator.
      weight_decay: decoupled, times the rate; biases and norm scales are left out.
      clip_norm: global gradient norm above which gradients are scaled down; 0: no clipping.
    """

    learning_rate: Annotated[float, Range(above=0)] = 1e-3
    b1: Annotated[float, Range(least=0, below=1)] = 0.9
    b2: Annotated[float, Range(least=0, below=1)] = 0.999
    eps: Annotated[float, Range(above=0)] = 1e-8
    weight_decay: Annotated[float, Range(least=0)] = 0.0
    clip_norm: Annotated[float, Range(least=0)] = 1.0

    def __post_init__(self):
        check_ranges(self, "optimizer")


MERGED, KEPT = "merged", "kept"  # the two Adams of `make_optimizer(apart=True)`


def make_optimizer(config: OptimizerConfig, apart: bool = False) -> optax.GradientTransformation:
    """Updates for a rate of 1: clip, Adam's direction, decoupled decay.

    The rate is an array in the state, so that runs with different rates can share one vmapped step.

    Args:
      config: see there.
      apart: adapters have moments and a count of steps of their own, as they begin anew at a merge (`train.restart`)
        and other trained leaves do not.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
    parts.append(optax.partition({MERGED: adam, KEPT: adam}, _apart) if apart else adam)
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    return optax.chain(*parts)


def _apart(trainable: Tree) -> dict:
    """Which of the two Adams each leaf has."""
    return unflatten({path: MERGED if path.startswith("adapters/") else KEPT for path in flatten(trainable)})


def decay_mask(trainable: Tree) -> dict:
    """True for the leaves that weight decay acts on."""
    return unflatten({path: re.fullmatch(NO_DECAY, path) is None for path in flatten(trainable)})
