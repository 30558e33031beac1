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


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Updates for a rate of 1: clip, Adam's direction, decoupled decay.

    The rate is an array in the state, so that runs with different rates can share one vmapped step.
    """
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay, mask=decay_mask))
    return optax.chain(*parts)


def decay_mask(trainable: Tree) -> dict:
    """True for the leaves that weight decay acts on."""
    return unflatten({path: re.fullmatch(NO_DECAY, path) is None for path in flatten(trainable)})
