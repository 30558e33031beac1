"""An ordered table of checkpoint keys, and strict, streamed loading through it into stacked leaves."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.quantized import Quantized
from lowrank_jax.interop.readers import Reader

LAYER = "{layer}"
ShardingFn = Callable[[str, tuple[int, ...]], NamedSharding]  # (path, shape) of a leaf -> where it lives
FinishFn = Callable[[str, jax.Array], Any]  # (path, leaf) as it was read or drawn -> the leaf as it is kept


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse array functions: `forward` from the checkpoint's layout to ours, `backward` the other way."""

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]  # the checkpoint's shape -> ours


IDENTITY = Transform(lambda x: x, lambda x: x, lambda shape: shape)
TRANSPOSE = Transform(np.transpose, np.transpose, lambda shape: shape[::-1])


def unpermute(heads: int) -> Transform:
    """llama.cpp's rotary order undone, then transposed: rows (h, i, half) -> (h, half, i), [out, in] -> [in, out].

    llama.cpp rotates neighbouring pairs (2i, 2i+1); HF and we rotate (i, i + hd/2). Its converter interleaves the rows
    of q and k so that both agree.

    Args:
      heads: heads of this projection (key/value heads for k).
    """

    def forward(x):
        return x.reshape(heads, -1, 2, x.shape[-1]).swapaxes(1, 2).reshape(x.shape).T

    def backward(x):
        x = x.T
        return x.reshape(heads, 2, -1, x.shape[-1]).swapaxes(1, 2).reshape(x.shape)

    return Transform(forward, backward, lambda shape: shape[::-1])


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      source: key in the checkpoint; "{layer}" in it means one tensor per layer, stacked in our leaf.
      target: path of our leaf below "params".
      shape: shape of one source tensor, from the config.
      transform: the checkpoint's layout to ours.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    transform: Transform = IDENTITY

    def sources(self, layers: int) -> list[str]:
        """The checkpoint's keys of this row, one per layer when stacked."""
        if LAYER not in self.source:
            return [self.source]
        return [self.source.replace(LAYER, str(layer)) for layer in range(layers)]

    def target_shape(self, layers: int) -> tuple[int, ...]:
        """Shape of our leaf: [L, ...] when stacked."""
        shape = self.transform.shape(self.shape)
        return (layers, *shape) if LAYER in self.source else shape


def check(reader: Reader, rows: Sequence[Row], layers: int, ignored: Sequence[str] = ()) -> list[str]:
    """Compares the checkpoint's keys and shapes with the table, before any weight is read.

    Args:
      ignored: regular expressions of keys that carry no weight of ours (buffers, a tied head's copy).

    Returns:
      The ignored keys.

    Raises:
      UserError: lists every missing, unknown, duplicate and misshapen key in one line.
    """
    held = Counter(reader.keys())
    wanted = {key: row for row in rows for key in row.sources(layers)}
    skipped = [key for key in held if key not in wanted and any(re.fullmatch(p, key) for p in ignored)]
    missing = [key for key in wanted if key not in held]
    unknown = [key for key in held if key not in wanted and key not in skipped]
    duplicate = [key for key, times in held.items() if times > 1 and key not in skipped]
    misshapen = []
    for key, row in wanted.items():
        if key in held and (found := reader.shape(key)) != row.shape:
            misshapen.append(f"{key} {list(found)} instead of {list(row.shape)}")
    faults = [("missing", missing), ("unknown", unknown), ("in two shards", duplicate), ("misshapen", misshapen)]
    if found := [f"{name}: {', '.join(keys)}" for name, keys in faults if keys]:
        raise UserError(f"{reader.path} does not fit its config; {'; '.join(found)}")
    return skipped


def load(
    reader: Reader,
    rows: Sequence[Row],
    layers: int,
    dtype: Any = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    ignored: Sequence[str] = (),
    finish: FinishFn = lambda path, leaf: leaf,
) -> dict[str, Any]:
    """Checkpoint -> params: checks everything, then streams one tensor at a time into stacked leaves.

    A leaf is built where it lives, layer by layer, so the host holds one tensor at a time: as it is read, and in
    `dtype` where that is another type. It is copied to its devices from there.

    Args:
      dtype: of the loaded leaves; cast tensor by tensor.
      sharding_fn: (path, shape) -> NamedSharding of a read leaf; None puts it on the default device.
      finish: called with each leaf before the next is read; what it returns is kept.

    Raises:
      UserError: see `check`; or a tensor cannot be read, or holds a value that is not finite.
    """
    check(reader, rows, layers, ignored)
    return unflatten({row.target: finish(row.target, _leaf(reader, row, layers, dtype, sharding_fn)) for row in rows})


def _leaf(reader: Reader, row: Row, layers: int, dtype: Any, sharding_fn: ShardingFn | None) -> jax.Array:
    shape = row.target_shape(layers)
    sharding = sharding_fn(row.target, shape) if sharding_fn else None
    if LAYER not in row.source:
        return jax.block_until_ready(place(_read(reader, row, row.source, dtype), sharding))
    # A stack of layers on the host would be one more copy of the leaf, and two until the runtime lets go of the last.
    one = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    put = jax.jit(jax.lax.dynamic_update_index_in_dim, static_argnums=3, donate_argnums=0, out_shardings=sharding)
    leaf = jnp.zeros(shape, dtype, device=sharding)
    for layer, key in enumerate(row.sources(layers)):
        # Blocked: reading runs ahead of a slow device otherwise, and what waits is held by the host.
        leaf = jax.block_until_ready(put(leaf, place(_read(reader, row, key, dtype), one), layer, 0))
    return leaf


def _read(reader: Reader, row: Row, key: str, dtype: Any) -> np.ndarray:
    """One tensor in our layout (a view where only that differs) and in `dtype`."""
    with np.errstate(over="ignore"):
        tensor = row.transform.forward(reader.read(key)).astype(dtype, copy=False)
    if not is_finite(tensor):
        name = jnp.dtype(dtype).name
        raise UserError(f"{reader.path}: {key} is not finite in {name}; use float32 or download it again")
    return tensor


def is_finite(tensor: np.ndarray) -> bool:
    """False for NaN (a damaged file) and inf (float16 ends at 65504); a sum carries both, and needs no mask."""
    with np.errstate(invalid="ignore"):  # inf - inf
        return bool(np.isfinite(np.sum(tensor, dtype=np.float32)))


def place(array: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """A host array as a jax array in its sharding; each process copies only the parts of its own devices."""
    if sharding is None:
        return jax.device_put(array)  # jnp.asarray makes one more copy on its way
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def unload(params: Any, rows: Sequence[Row], layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Params -> (key, array in the checkpoint's layout), tensor by tensor; the inverse of `load`.

    Raises:
      UserError: a kernel is quantised.
      ValueError: the tree's paths or shapes are not the table's.
    """
    flat = flatten(params)
    if codes := [path for path, leaf in flat.items() if isinstance(leaf, Quantized)]:
        raise UserError(f"{codes[0]} is held as codes, which files of weights do not hold; give dense_tree(params)")
    expected = {row.target: row.target_shape(layers) for row in rows}
    actual = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if expected != actual:
        wrong = sorted(path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path))
        raise ValueError(f"params do not fit the key table at {wrong}")
    for row in rows:
        leaf = flat[row.target]
        for layer, key in enumerate(row.sources(layers)):
            part = leaf[layer] if LAYER in row.source else leaf
            yield key, row.transform.backward(np.asarray(part))
