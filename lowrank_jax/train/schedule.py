"""The shape of the learning rate over a run: a multiplier in [0, 1] of the peak rate."""

import dataclasses
import math
from typing import Annotated, Literal, get_args

import optax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges

Kind = Literal["constant", "linear", "cosine"]
KINDS = get_args(Kind)
Start = Literal["zero", "one"]
STARTS = get_args(Start)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up and decay.

    Attributes:
      kind: decay after the warm-up: `constant`, `linear` or `cosine`.
      warmup_steps: W, optimizer steps of linear warm-up.
      warmup_fraction: the same as a share of the run's steps, rounded up as HF's Trainer does; give one of the two.
      warmup_start: the rate of step t = 1, 2, ..., W of the warm-up: `zero` is peak (t - 1) / W, as in transformers and
        in every recorded run, and step 1 then changes nothing; `one` is peak t / W.
      end_fraction: multiplier at the last step.
    """

    kind: Kind = "linear"
    warmup_steps: Annotated[int, Range(least=0)] = 0
    warmup_fraction: Annotated[float, Range(least=0, below=1)] = 0.0
    warmup_start: Start = "zero"
    end_fraction: Annotated[float, Range(least=0, most=1)] = 0.0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise unknown_name("schedule.kind", self.kind, KINDS)
        if self.warmup_start not in STARTS:
            raise unknown_name("schedule.warmup_start", self.warmup_start, STARTS)
        check_ranges(self, "schedule")
        if self.warmup_steps and self.warmup_fraction:
            raise UserError("schedule.warmup_steps and schedule.warmup_fraction are both given; set one of them to 0")


def make_shape(config: ScheduleConfig, total_steps: int) -> optax.Schedule:
    """step [] int32 -> multiplier [] float32 of the peak rate.

    Count t = 0, 1, ... of updates already made, W steps of warm-up, N = total_steps, decay d(s) over s in [0, 1]:

        t < W: t / W ("zero") or (t + 1) / W ("one");    t >= W: d((t - W) / (N - W))

    Raises:
      UserError: the warm-up does not end before the run does.
    """
    if config.warmup_steps >= total_steps:
        raise UserError(f"schedule.warmup_steps is {config.warmup_steps}; it must lie in [0, {total_steps}), the steps")
    warmup = warmup_of(config, total_steps)
    decay_steps = total_steps - warmup
    decay = {
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, config.end_fraction, decay_steps),
        "cosine": optax.cosine_decay_schedule(1.0, decay_steps, config.end_fraction),
    }[config.kind]
    if not warmup:
        return decay
    rise = optax.linear_schedule(0.0, 1.0, warmup)
    if config.warmup_start == "one":
        return optax.join_schedules([lambda step: rise(step + 1), decay], [warmup])
    return optax.join_schedules([rise, decay], [warmup])


def warmup_of(config: ScheduleConfig, total_steps: int) -> int:
    """W, from whichever of the two keys gives it."""
    return config.warmup_steps or min(math.ceil(config.warmup_fraction * total_steps), total_steps - 1)
