"""An ordered table of checkpoint keys, and strict, streamed loading through it into stacked leaves."""

import dataclasses
import functools
import itertools
import math
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
from lowrank_jax.core.trees import SMALL, is_small
from lowrank_jax.core.types import Report
from lowrank_jax.interop.readers import Part, Reader
from lowrank_jax.ops.quantized import Quantized

LAYER = "{layer}"
BLOCK = 2**21  # values of a tensor on the host at a time: 8 MiB of float32
Bounds = tuple[range, ...]  # of a part of a leaf, along each of its axes
ShardingFn = Callable[[str, tuple[int, ...]], NamedSharding]  # (path, shape) of a leaf -> its sharding
FinishFn = Callable[[str, jax.Array], Any]  # (path, leaf) as read or drawn -> the leaf to keep


@dataclasses.dataclass(frozen=True)
class Transform:
    """A pair of inverse array functions between the checkpoint's layout and ours.

    Attributes:
      forward: the checkpoint's array -> ours; backward: the inverse.
      shape: the checkpoint's shape -> ours.
      where: (a part of our array, the checkpoint's shape) -> the part of the checkpoint's array with the same values;
        None: there is no such part, and the tensor is read whole.
      transposed: the checkpoint's part has its axes in reverse order.
    """

    forward: Callable[[np.ndarray], np.ndarray]
    backward: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    where: Callable[[Part, tuple[int, ...]], Part] | None = None
    transposed: bool = False


IDENTITY = Transform(lambda x: x, lambda x: x, lambda shape: shape, lambda part, _: part)
TRANSPOSE = Transform(np.transpose, np.transpose, lambda shape: shape[::-1], lambda part, _: part[::-1], True)

LESS_ONE = Transform(
    lambda x: x - 1, lambda x: x + 1, lambda shape: shape
)  # no rule for parts: such a tensor is read whole


def unpermute(heads: int) -> Transform:
    """Undoes llama.cpp's rotary order, then transposes: rows (h, i, half) -> (h, half, i), [out, in] -> [in, out].

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
      ignored: regular expressions of keys without a weight of our model (buffers, a tied head's copy).

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
    report: Report | None = None,
) -> dict[str, Any]:
    """Checkpoint -> params: checks everything, then streams blocks of the tensors into the shards of stacked leaves.

    A leaf's shards are filled on their devices, block by block: for any sharding the host has BLOCK values in memory at
    a time (as read, and in `dtype` where that is another type), and a process reads its own devices' shards. Torch's
    .bin and the q and k that llama.cpp permutes are read a whole tensor at a time.

    Args:
      dtype: of the loaded leaves; cast block by block.
      sharding_fn: (path, shape) -> NamedSharding of a read leaf; None puts it on the default device.
      finish: called with each leaf before the next is read; its result is kept.
      report: called with numbers of values.

    Raises:
      UserError: see `check`; or a tensor cannot be read, or has a value that is not finite.
    """
    check(reader, rows, layers, ignored)
    total = sum(math.prod(row.target_shape(layers)) for row in rows)

    def advance(values: int) -> None:
        if report is not None:
            report(values, total)

    leaves = ((row.target, _leaf(reader, row, layers, dtype, sharding_fn, advance)) for row in rows)
    return unflatten({path: finish(path, leaf) for path, leaf in leaves})


def _leaf(
    reader: Reader,
    row: Row,
    layers: int,
    dtype: Any,
    sharding_fn: ShardingFn | None,
    advance: Callable[[int], None],
) -> jax.Array:
    shape = row.target_shape(layers)
    sharding = sharding_fn(row.target, shape) if sharding_fn else None
    local, shards = (sharding.shard_shape(shape), _addressable(sharding, shape)) if sharding else (shape, 1)
    read_whole = not _is_read_in_parts(reader, row)
    held: dict[str, np.ndarray] = {}  # the last tensor read, where tensors are read whole

    def read(bounds: Bounds) -> np.ndarray:
        layer, inner = (bounds[0].start, bounds[1:]) if LAYER in row.source else (0, bounds)
        key, part = row.sources(layers)[layer], tuple(slice(along.start, along.stop) for along in inner)
        if read_whole:
            if key not in held:
                held.clear()
                held[key] = _cast(reader, row, key, None, dtype)
            found = held[key][part]
        else:
            assert row.transform.where is not None  # `_is_read_in_parts`
            found = _cast(reader, row, key, row.transform.where(part, row.shape), dtype)
        return found if inner is bounds else found[None]

    rows = max(local) if read_whole else BLOCK // shards // math.prod(row.shape[1:])
    blocks = list(_blocks(row, local, rows))
    size, count = math.prod(shape), len(blocks)
    if count == 1:
        leaf = jax.block_until_ready(_place(read, shape, local, *blocks[0], sharding))
        advance(size)
        return leaf
    if size <= min(SMALL, BLOCK) and (sharding is None or sharding.is_fully_addressable):
        host = np.empty(shape, jnp.dtype(dtype))
        for number, (start, block) in enumerate(blocks := list(_blocks(row, shape, max(shape)))):
            place = tuple(slice(at, at + length) for at, length in zip(start, block, strict=True))
            host[place] = read(tuple(range(along.start, along.stop) for along in place))
            advance(size * (number + 1) // len(blocks) - size * number // len(blocks))
        return jax.block_until_ready(jax.device_put(host, sharding))
    bits = _changed_as(jnp.dtype(dtype), sharding)
    # Blocks joined on the host would be one more copy of the leaf, and two until the runtime frees the last.
    leaf, update = jnp.zeros(shape, bits, device=sharding), _updater(sharding)
    for number, (start, block) in enumerate(blocks):
        placed = _place(lambda bounds: read(bounds).view(bits), shape, local, start, block, sharding)
        # Wait: reading would run ahead of a slow device otherwise, with the waiting blocks in the host's memory.
        leaf = jax.block_until_ready(update(leaf, placed, start))
        advance(size * (number + 1) // count - size * number // count)
    return leaf if bits == dtype else _view(leaf, dtype, sharding)


def _is_read_in_parts(reader: Reader, row: Row) -> bool:
    """False too for tensors of at most a block: all shards are cut from one read."""
    return reader.reads_parts and row.transform.where is not None and math.prod(row.shape) > BLOCK


def _addressable(sharding: NamedSharding, shape: tuple[int, ...]) -> int:
    """How many different shards this process's devices have."""
    parts = sharding.addressable_devices_indices_map(shape).values()
    return len({tuple((along.start, along.stop) for along in part or ()) for part in parts})


def _blocks(row: Row, shard: tuple[int, ...], rows: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(start, shape) of the blocks that fill a shard: each of one layer and a number of whole rows in the file.

    All have one shape, for which XLA compiles once: the last one overlaps the one before it.
    """
    lengths = [1 if axis == 0 and LAYER in row.source else length for axis, length in enumerate(shard)]
    along = len(shard) - 1 if row.transform.transposed else len(shard) - len(row.shape)
    lengths[along] = min(max(rows, 1), shard[along])
    starts = [range(0, size - length, length) for size, length in zip(shard, lengths, strict=True)]
    ends = [size - length for size, length in zip(shard, lengths, strict=True)]
    for start in itertools.product(*([*line, end] for line, end in zip(starts, ends, strict=True))):
        yield start, tuple(lengths)


def _place(
    read: Callable[[Bounds], np.ndarray],
    shape: tuple[int, ...],
    shard: tuple[int, ...],
    start: tuple[int, ...],
    block: tuple[int, ...],
    sharding: NamedSharding | None,
) -> jax.Array:
    """The block at `start` of each shard, on its devices: an array sharded alike, with blocks for shards."""
    if sharding is None:  # jnp.asarray makes one more copy on its way
        return jax.device_put(read(tuple(range(at, at + size) for at, size in zip(start, block, strict=True))))
    read = functools.cache(read)  # devices with the same shard share what is read

    def of_shard(part):
        first = [(along.start or 0) // size for along, size in zip(part, block, strict=True)]
        first = [number * size + at for number, size, at in zip(first, shard, start, strict=True)]
        return read(tuple(range(at, at + size) for at, size in zip(first, block, strict=True)))

    blocks = tuple(whole // size * part for whole, size, part in zip(shape, shard, block, strict=True))
    return jax.make_array_from_callback(blocks, sharding, of_shard)


@functools.lru_cache
def _updater(sharding: NamedSharding | None) -> Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array]:
    """(leaf, blocks of `_place`, start) -> leaf with the block at `start` of each shard, in place."""
    update = jax.lax.dynamic_update_slice
    if sharding is None:
        return jax.jit(update, donate_argnums=0)
    specs = (sharding.spec, sharding.spec, PartitionSpec())
    update = jax.shard_map(update, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False)
    return jax.jit(update, donate_argnums=0, out_shardings=sharding)


def _changed_as(dtype: jnp.dtype, sharding: NamedSharding | None) -> jnp.dtype:
    """A bfloat16 array as integers on the CPU, where XLA otherwise converts all of it to float32 to change a part."""
    devices = sharding.device_set if sharding else jnp.zeros(0).devices()
    on_cpu = any(device.platform == "cpu" for device in devices)
    return jnp.dtype("uint16") if on_cpu and dtype.itemsize == 2 else dtype


def _view(leaf: jax.Array, dtype: Any, sharding: NamedSharding | None) -> jax.Array:
    """The same memory of CPU devices as another type of equal size; XLA's cast would keep both in memory."""
    parts = [(np.asarray(part.data).view(dtype), part.device) for part in leaf.addressable_shards]
    if sharding is None:
        return jax.device_put(parts[0][0])
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, [jax.device_put(*part) for part in parts])


def _cast(reader: Reader, row: Row, key: str, part: Part | None, dtype: Any) -> np.ndarray:
    """A part of a tensor, or all of it, in our layout (a view where only that differs) and in `dtype`."""
    tensor = reader.read(key, part)
    with np.errstate(over="ignore"):
        if part is None:
            tensor = row.transform.forward(tensor)
        elif row.transform.transposed:
            tensor = tensor.T
        tensor = tensor.astype(dtype, copy=False)
    if not is_finite(tensor):
        name = jnp.dtype(dtype).name
        raise UserError(f"{reader.path}: {key} is not finite in {name}; use float32 or download it again")
    return tensor


def is_finite(tensor: np.ndarray) -> bool:
    """False for NaN (a damaged file) and inf (float16 ends at 65504); a sum shows both, without a mask."""
    with np.errstate(invalid="ignore"):  # inf - inf
        return bool(np.isfinite(np.sum(tensor, dtype=np.float32)))


def unload(params: Any, rows: Sequence[Row], layers: int) -> Iterator[tuple[str, np.ndarray]]:
    """Params -> (key, array in the checkpoint's layout), tensor by tensor; the inverse of `load`.

    Raises:
      UserError: a kernel is quantised.
      ValueError: the tree's paths or shapes are not the table's.
    """
    flat = flatten(params)
    if codes := [path for path, leaf in flat.items() if isinstance(leaf, Quantized)]:
        raise UserError(f"{codes[0]} is stored as codes, which files of weights cannot have; give dense_tree(params)")
    expected = {row.target: row.target_shape(layers) for row in rows}
    actual = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    if expected != actual:
        wrong = sorted(path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path))
        raise ValueError(f"params do not fit the key table at {wrong}")
    for row in rows:
        leaf = np.asarray(flat[row.target]) if is_small(flat[row.target]) else flat[row.target]
        for layer, key in enumerate(row.sources(layers)):
            part = leaf[layer] if LAYER in row.source else leaf
            yield key, row.transform.backward(np.asarray(part))
