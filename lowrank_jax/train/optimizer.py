"""AdamW over the trainable tree, without its learning rate: the step multiplies by peak x shape(step)."""

import dataclasses
import re
from typing import Annotated, Any

import optax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import first_match, flatten, unflatten
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.core.types import Rules, Tree

NO_DECAY = r".*[/_](bias|scale)"  # a bottleneck's are "up_bias", "norm_scale"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter) on the trainable tree.

    Attributes:
      learning_rate: peak rate.
      b1, b2, eps: Adam's moments and denominator.
      weight_decay: decoupled, times the rate; biases and norm scales are left out.
      clip_norm: global gradient norm above which gradients are scaled down; 0: no clipping.
      multipliers: (regular expression, factor) pairs; a leaf whose whole path matches has its rate (and so its decay)
        multiplied by the factor, the first match wins, other leaves keep the rate. LoRA+ (Hayou et al.) is
        (("adapters/.*/b", 4.0),): B learns 4 times as fast as A.
    """

    learning_rate: Annotated[float, Range(above=0)] = 1e-3
    b1: Annotated[float, Range(least=0, below=1)] = 0.9
    b2: Annotated[float, Range(least=0, below=1)] = 0.999
    eps: Annotated[float, Range(above=0)] = 1e-8
    weight_decay: Annotated[float, Range(least=0)] = 0.0
    clip_norm: Annotated[float, Range(least=0)] = 1.0
    multipliers: tuple[tuple[str, Annotated[float, Range(above=0)]], ...] = ()

    def __post_init__(self):
        check_ranges(self, "optimizer")
        for pattern, _ in self.multipliers:
            check_pattern("optimizer.multipliers: rule", pattern)


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
    if config.multipliers:
        parts.append(optax.stateless(lambda updates, _: multiplied(updates, config.multipliers)))
    return optax.chain(*parts)


def multiplied(updates: Any, rules: Rules) -> dict:
    """Each leaf times the factor of the first rule that matches its path, 1 where none does."""
    return unflatten({path: leaf * first_match(rules, path, 1.0) for path, leaf in flatten(updates).items()})


def check_multipliers(rules: Rules, trainable: Tree) -> None:
    """Refuses a rule of `OptimizerConfig.multipliers` that matches no trained leaf, and so would change nothing.

    Raises:
      UserError: names the rule and what the leaves of adapters are called.
    """
    paths = list(flatten(trainable))
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, path) for path in paths):
            leaves = sorted({path.rpartition("/")[2] for path in paths})
            square = "; LoRA+ multiplies the rate of LoRA's B, and MoRA's one square has none" if "m" in leaves else ""
            raise UserError(
                f"optimizer.multipliers has {pattern!r}, which matches no trained leaf (those are called "
                f"{', '.join(leaves[:6])}){square}; leave the rule out, or name a leaf that is trained"
            )


def _apart(trainable: Tree) -> dict:
    """Which of the two Adams each leaf has."""
    return unflatten({path: MERGED if path.startswith("adapters/") else KEPT for path in flatten(trainable)})


def decay_mask(trainable: Tree) -> dict:
    """True for the leaves that weight decay acts on."""
    return unflatten({path: re.fullmatch(NO_DECAY, path) is None for path in flatten(trainable)})
