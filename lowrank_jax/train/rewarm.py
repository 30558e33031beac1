"""The rate of a run with restarts: a multiplier in [0, 1] of the peak rate, which warms up again after each merge."""

import math

import jax.numpy as jnp
import optax

from lowrank_jax.core.errors import UserError
from lowrank_jax.train.restart import RestartConfig
from lowrank_jax.train.schedule import ScheduleConfig, make_shape, warmup_of


def make_restart_shape(config: ScheduleConfig, restart: RestartConfig, total_steps: int) -> optax.Schedule:
    """step -> multiplier, as `schedule.make_shape` makes it, with the warm-ups that `restart.schedule` says.

    Raises:
      UserError: a warm-up that does not end before the first merge; a jagged schedule that is no cosine.
    """
    plain = make_shape(config, total_steps)
    if not restart.every or restart.schedule == "none":
        return plain
    if (warmup := warmup_of(config, total_steps)) >= restart.every:
        raise UserError(
            f"the warm-up takes {warmup} steps and the first merge comes after {restart.every}; lower "
            "schedule.warmup_steps, or raise restart.every"
        )
    if restart.schedule == "restart":
        return _again(config, restart, warmup, total_steps)
    if config.kind != "cosine":
        raise UserError(
            f"restart.schedule=jagged is a cosine, and schedule.kind is {config.kind!r}; set kind=cosine, or "
            "restart.schedule to restart or none"
        )
    return _jagged(config, restart, warmup, total_steps)


def _jagged(config: ScheduleConfig, restart: RestartConfig, warmup: int, total_steps: int) -> optax.Schedule:
    """The cosine with restarts of ReLoRA's and MoRA's code.

    With T steps between merges, N = total_steps rounded up to a multiple of T, w0 and w1 steps of warm-up, the cosine
    E(s) = e + (1 - e) (1 + cos(pi (s - w0) / (N - w0))) / 2, and c = s mod T:

        s < w0: s / w0;    s >= T and c < w1: (c / w1) E(s - c + w1);    otherwise: E(s)
    """
    every, again = restart.every, restart.warmup_steps
    length = math.ceil(total_steps / every) * every - warmup
    shift = float(config.warmup_start == "one")

    def cosine(step):
        return _decay(config, (step - warmup) / length)

    def shape(step):
        since = step % every
        rising = (since + shift) / max(again, 1) * cosine(step - since + again)
        after = jnp.where((step >= every) & (since < again), rising, cosine(step))
        return jnp.where(step < warmup, (step + shift) / max(warmup, 1), after)

    return shape


def _again(config: ScheduleConfig, restart: RestartConfig, warmup: int, total_steps: int) -> optax.Schedule:
    """After merge k the schedule again: its peak is the rate that merge found, its length the steps that are left."""
    every, shift = restart.every, float(config.warmup_start == "one")
    count = (total_steps - 1) // every + 1
    warmups = [warmup] + [restart.warmup_steps] * (count - 1)
    decays = [max(total_steps - k * every - rise, 1) for k, rise in enumerate(warmups)]
    peaks = [1.0]
    for rise, length in zip(warmups[:-1], decays[:-1], strict=True):
        peaks.append(peaks[-1] * float(_decay(config, (every - rise) / length)))
    rises, lengths, highest = jnp.asarray(warmups), jnp.asarray(decays), jnp.asarray(peaks)

    def shape(step):
        k = jnp.minimum(step // every, count - 1)
        since, rise = step - k * every, rises[k]
        falling = _decay(config, (since - rise) / lengths[k])
        return highest[k] * jnp.where(since < rise, (since + shift) / jnp.maximum(rise, 1), falling)

    return shape


def _decay(config: ScheduleConfig, share):
    """The multiplier after a share in [0, 1] of the decay; see `schedule.make_shape`."""
    share, end = jnp.clip(share, 0.0, 1.0), config.end_fraction
    if config.kind == "constant":
        return jnp.ones_like(share)
    if config.kind == "linear":
        return 1 + (end - 1) * share
    return end + (1 - end) * (1 + jnp.cos(jnp.pi * share)) / 2
