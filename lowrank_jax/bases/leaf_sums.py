"""Sums over all values of a leaf, each mixed with its place: without a copy for any sharding, or on the host."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank_jax.core.types import Array

# Odd numbers for each of the two sums: the factor of the value, then those of its place along each axis from the last.
FACTORS = (
    (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1),
    (0xD3A2646D, 0xFD7046C5, 0xB55A4F09, 0x8CB92BA7, 0xE95DE9A3),
)
BLOCK = 2**20  # values at a time: XLA's CPU backend keeps 10 bytes for each of them


def sums(leaf: Array, sharding: Any = None) -> Array:
    """Two sums modulo 2^32 over all values in bfloat16, each mixed with its place: uint32 [2].

    A sum does not depend on the order: it is the same for every sharding. Each shard is added up in place, by blocks.

    Args:
      leaf: an array, or a tracer.
      sharding: of the leaf.
    """
    leaf = leaf if leaf.ndim else leaf[None]
    spec = tuple(sharding.spec) if isinstance(sharding, jax.sharding.NamedSharding) else ()
    spec += (None,) * (leaf.ndim - len(spec))
    names = [(axes,) if isinstance(axes, str) else tuple(axes or ()) for axes in spec]
    if not any(names):
        return _shard_sums(leaf, (0,) * leaf.ndim)

    def shard(part):
        first = [lax.axis_index(axes) * size if axes else 0 for axes, size in zip(names, part.shape, strict=True)]
        return lax.psum(_shard_sums(part, first), tuple(name for axes in names for name in axes))

    whole = jax.sharding.PartitionSpec()
    return jax.shard_map(shard, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=whole, check_vma=False)(leaf)


def sums_on_host(values: np.ndarray) -> np.ndarray:
    """`sums` in NumPy, of an array in floating point: no program is compiled, and a few copies are made."""
    values = values.reshape(values.shape or (1,))
    bits, found = values.astype(jnp.bfloat16).view(np.uint16).astype(np.uint32), []
    for factor, *factors in FACTORS:
        mixed = bits * np.uint32(factor)
        for i, size in enumerate(reversed(values.shape)):
            places = np.arange(size, dtype=np.uint32) * np.uint32(factors[i % len(factors)])
            mixed += places.reshape(-1, *(1,) * i)
        found.append(_scramble(mixed).sum(dtype=np.uint32))
    return np.stack(found)


def _shard_sums(part: Array, first: Sequence[Any]) -> Array:
    """`sums` of a shard whose first value is at `first` in the leaf."""
    *lead, columns = part.shape
    rows = part.reshape(-1, columns)
    most = max(BLOCK // columns, 1)
    # Rows of a block: all, or a divisor of them unless it is small. Remaining rows need a second compiled block.
    count = next((n for n in range(min(most, len(rows)), most // 8, -1) if len(rows) % n == 0), most)

    def add(start, total, count):
        cuts = {"cpu": partial(_cut_on_cpu, count=count), "default": partial(_cut, count=count)}
        bits = lax.platform_dependent(rows, start, **cuts)
        return total + _block_sums(bits, *_places(start + jnp.arange(count), lead, columns, first))

    blocks, rest = divmod(len(rows), count)
    total = jnp.zeros(2, jnp.uint32)
    if (blocks, rest) == (1, 0):
        return add(0, total, count)
    if blocks:
        total = lax.fori_loop(0, blocks, lambda i, total: add(i * count, total, count), total)
    return add(blocks * count, total, rest) if rest else total


def _cut(rows: Array, start: Any, count: int) -> Array:
    """The bits of `count` rows, cast to bfloat16."""
    return _bits(lax.dynamic_slice_in_dim(rows, start, count).astype(jnp.bfloat16))


def _cut_on_cpu(rows: Array, start: Any, count: int) -> Array:
    """`_cut` for XLA's CPU backend, without a copy of the whole leaf.

    To slice bfloat16, that backend converts the whole array to float32 before the loop. Bits are sliced as they are; a
    barrier keeps the conversion to bits inside the loop.
    """
    if rows.dtype != jnp.bfloat16:
        return _cut(rows, start, count)
    return lax.dynamic_slice_in_dim(_bits(lax.optimization_barrier((rows, start))[0]), start, count)


def _places(rows: Array, lead: Sequence[int], columns: int, first: Sequence[Any]) -> tuple[Array, Array]:
    """A number for each row and for each column, [2, rows] and [2, columns], whose sum tells a value's place."""
    ours, theirs = [], []
    at = [*(jnp.unravel_index(rows, tuple(lead)) if lead else ()), jnp.arange(columns)]
    for _, *factors in FACTORS:
        terms = [
            (index + start).astype(jnp.uint32) * np.uint32(factors[i % len(factors)])
            for i, (index, start) in enumerate(zip(reversed(at), reversed(first), strict=True))
        ]
        theirs.append(terms[0])
        ours.append(sum(terms[1:], jnp.zeros(len(rows), jnp.uint32)))
    return jnp.stack(ours), jnp.stack(theirs)


def _block_sums(bits: Array, rows: Array, columns: Array) -> Array:
    bits, found = bits.astype(jnp.uint32), []
    for (factor, *_), row, column in zip(FACTORS, rows, columns, strict=True):
        mixed = bits * np.uint32(factor) + row[:, None] + column[None, :]
        found.append(jnp.sum(_scramble(mixed), dtype=jnp.uint32))
    return jnp.stack(found)


def _bits(x: Array) -> Array:
    return lax.bitcast_convert_type(x, jnp.uint16)


def _scramble(x: Any) -> Any:
    """Mixes x so that every bit of the result depends on every bit of x (MurmurHash3's finalizer)."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return x ^ (x >> 16)
