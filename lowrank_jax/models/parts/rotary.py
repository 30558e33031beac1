"""Rotary positions: tables of cos and sin, their scalings for longer contexts, and the rotation of queries and keys."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import platform

Tables = tuple[Array, Array]  # cos and sin, [..., T, 1, rotated / 2] each


@dataclass(frozen=True)
class RopeScaling:
    """Base class of the scalings, which change the frequencies of the rotation for a longer context.

    Attributes:
      rope_type: HF's name.
      by_length: whether the frequencies depend on how long the rows are.
    """

    rope_type: ClassVar[str] = "default"
    by_length: ClassVar[bool] = False

    @property
    def amplitude(self) -> float:
        """What cos and sin are multiplied by."""
        return 1.0

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """Scaled frequencies, in radians a position.

        Args:
          frequency: theta^(-2j/d) of the d / 2 rotated pairs.
          length: number of positions of the longest row, int32; only read by a scaling `by_length`.
        """
        raise NotImplementedError

    def _check(self, *names: str, least: float = 1) -> None:
        for name in names:
            if not getattr(self, name) >= least:
                raise UserError(
                    f"{self.rope_type} rope scaling has {name} {getattr(self, name)}; give at least {least}"
                )


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """LLaMA-3's: low frequencies are lowered, high ones kept, those between interpolated.

    With wavelength w = 2 pi / frequency and old = original_max_position_embeddings: w > old / low_freq_factor is
    divided by factor, w < old / high_freq_factor is kept. Defaults are LLaMA-3.1's.
    """

    rope_type: ClassVar[str] = "llama3"
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def __post_init__(self):
        if not (self.factor >= 1 and 0 < self.low_freq_factor < self.high_freq_factor):
            raise UserError(f"{self} needs a factor of at least 1 and 0 < low_freq_factor < high_freq_factor")
        self._check("original_max_position_embeddings")

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """See `RopeScaling.apply`."""
        turns = self.original_max_position_embeddings * frequency / (2 * jnp.pi)  # in the old context
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = jnp.clip(kept, 0.0, 1.0)
        return frequency * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Position interpolation (arXiv 2306.15595): every frequency is divided by factor."""

    rope_type: ClassVar[str] = "linear"
    factor: float

    def __post_init__(self):
        self._check("factor")

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """See `RopeScaling.apply`."""
        return frequency / self.factor


@dataclass(frozen=True)
class DynamicScaling(RopeScaling):
    """Dynamic NTK: past the old context theta grows with the length n, by (factor n / old - factor + 1)^(d / (d - 2)).

    The model has factor times the old context's positions.
    """

    rope_type: ClassVar[str] = "dynamic"
    by_length: ClassVar[bool] = True
    factor: float
    original_max_position_embeddings: int

    def __post_init__(self):
        self._check("factor", "original_max_position_embeddings")

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """See `RopeScaling.apply`."""
        old, dim = self.original_max_position_embeddings, 2 * frequency.shape[-1]
        longest = jnp.maximum(jnp.asarray(length, jnp.float32), old)
        growth = self.factor * longest / old - (self.factor - 1)
        return frequency * growth ** jnp.asarray(-np.arange(0, dim, 2) / (dim - 2), jnp.float32)


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN (arXiv 2309.00071): divides low frequencies by factor, keeps high ones, with a ramp between.

    Attributes:
      beta_fast, beta_slow: a frequency is kept from beta_fast turns in the old context on, and divided up to beta_slow.
      attention_factor: multiplies cos and sin; None computes it from factor, mscale and mscale_all_dim.
      truncate: whether the ramp begins and ends at whole pairs.
    """

    rope_type: ClassVar[str] = "yarn"
    factor: float
    original_max_position_embeddings: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    def __post_init__(self):
        self._check("factor", "original_max_position_embeddings")
        if not self.beta_fast >= self.beta_slow > 0:
            raise UserError(f"yarn rope scaling needs beta_fast {self.beta_fast} >= beta_slow {self.beta_slow} > 0")

    @property
    def amplitude(self) -> float:
        """See `RopeScaling.amplitude`."""
        if self.attention_factor is not None:
            return self.attention_factor

        def grown(scale: float) -> float:
            return 0.1 * scale * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return grown(self.mscale) / grown(self.mscale_all_dim)
        return grown(1.0)

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """See `RopeScaling.apply`."""
        dim, old = 2 * frequency.shape[-1], self.original_max_position_embeddings
        low, high = (  # the pairs, not rounded, that make so many turns in the old context
            dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        high += 0.001 if low == high else 0
        divided = jnp.asarray(np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1), jnp.float32)
        return frequency / self.factor * divided + frequency * (1 - divided)


@dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """LongRoPE (arXiv 2402.13753): divides each pair's frequency by its own factor, by another one in long rows.

    Attributes:
      short_factor, long_factor: a factor for each rotated pair, for rows within the old context and for longer ones.
      factor: ratio of the new context's length to the old one's.
      attention_factor: multiplies cos and sin; None computes it from factor.
    """

    rope_type: ClassVar[str] = "longrope"
    by_length: ClassVar[bool] = True
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position_embeddings: int
    factor: float
    attention_factor: float | None = None

    def __post_init__(self):
        self._check("original_max_position_embeddings", least=2)
        if not min((*self.short_factor, *self.long_factor), default=0) > 0:
            raise UserError("longrope needs short_factor and long_factor with numbers above 0")

    @property
    def amplitude(self) -> float:
        """See `RopeScaling.amplitude`."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.factor <= 1:
            return 1.0
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original_max_position_embeddings))

    def apply(self, frequency: Array, theta: float, length: Any = None) -> Array:
        """See `RopeScaling.apply`."""
        short, long = (jnp.asarray(factors, jnp.float32) for factors in (self.short_factor, self.long_factor))
        return frequency / jnp.where(length > self.original_max_position_embeddings, long, short)


SCALINGS = {one.rope_type: one for one in (LinearScaling, DynamicScaling, YarnScaling, LongRopeScaling, Llama3Scaling)}


def rotary_tables(
    positions: Array, head_dim: int, theta: float, scaling: RopeScaling | None = None, length: Any = None
) -> Tables:
    """cos and sin of p theta^(-2j/head_dim), j < head_dim/2, float32, shaped to broadcast over heads.

    Args:
      positions: int [T] or [B, T].
      head_dim: the rotated part of a head.
      scaling: changes the frequencies; None keeps them.
      length: see `RopeScaling.apply`.

    Returns:
      two arrays [..., T, 1, head_dim/2].
    """
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    amplitude = 1.0
    if scaling is not None:
        frequency, amplitude = scaling.apply(frequency, theta, length), scaling.amplitude
    angle = positions.astype(jnp.float32)[..., None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (x_j, x_{j + d/2}) of [B, T, heads, head_dim] in float32: HF's half-split layout.

    d is twice the tables' width; the rest of a head is left as it is.
    """
    if (rotated := 2 * cos.shape[-1]) < x.shape[-1]:
        return jnp.concatenate([rotate(x[..., :rotated], cos, sin), x[..., rotated:]], axis=-1)
    if platform() == "gpu":
        return rotate_whole(x, cos, sin)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def rotate_whole(x: Array, cos: Array, sin: Array) -> Array:
    """`rotate` of whole heads, the same numbers: (x_j, x_{j + d/2}) cos + (-x_{j + d/2}, x_j) sin.

    XLA's GPU backend has a slower kernel for a concatenation than for this product and sum, in which each thread writes
    several neighbours (docs/performance_log.md, "Figures behind comments in the code").
    """
    halves = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, -1)
    signs = jnp.array([[-1.0], [1.0]], jnp.float32)
    turned = halves * cos[..., None, :] + jnp.flip(halves, -2) * (signs * sin[..., None, :])
    return turned.reshape(x.shape).astype(x.dtype)


def unrotate(x: Array, cos: Array, sin: Array) -> Array:
    """The inverse of `rotate`, whatever amplitude a scaling has given the tables."""
    square = cos * cos + sin * sin
    return rotate(x, cos / square, -sin / square)


class Rotation(NamedTuple):
    """The rotary tables of a stack of layers.

    Attributes:
      tables: for the layers that attend to all keys, or for all layers.
      local: for the layers with a sliding window, where theirs differ.
      query_scale: [..., T, 1, 1], multiplies rotated queries; None leaves them.
    """

    tables: Tables
    local: Tables | None = None
    query_scale: Array | None = None

    def of_layer(self, layer: dict[str, Array]) -> Tables:
        """One layer's tables.

        Args:
          layer: bool scalars where layers differ: "local", whether the layer has a window; "rotated", whether it
            rotates queries and keys at all.
        """
        cos, sin = self.tables
        if self.local is not None:
            cos, sin = (jnp.where(layer["local"], near, far) for near, far in zip(self.local, (cos, sin), strict=True))
        if "rotated" in layer:
            cos, sin = jnp.where(layer["rotated"], cos, 1.0), jnp.where(layer["rotated"], sin, 0.0)
        return cos, sin


def query_scale(positions: Array, beta: float, period: int) -> Array:
    """1 + beta ln(1 + floor(p / period)), [..., T, 1, 1]: sharper attention at later positions (Llama 4)."""
    return 1 + beta * jnp.log1p(jnp.floor(positions.astype(jnp.float32) / period))[..., None, None]
