"""The named exceptions to strict loading: leaves drawn fresh (a new classifier) and keys left unread (a pooler)."""

import dataclasses
import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.types import Report
from lowrank_jax.interop import keymap
from lowrank_jax.interop.keymap import FinishFn, Row, ShardingFn
from lowrank_jax.interop.readers import Reader

INIT_STD = 0.02
SHOWN = 16  # names in one note


@dataclasses.dataclass(frozen=True)
class Exceptions:
    """What a checkpoint may lack, or have in addition to the model; regular expressions for whole names.

    Attributes:
      fresh: paths below "params" that are drawn where the checkpoint lacks them, or where `unused` names its keys.
      unused: keys of the checkpoint that are not read.
    """

    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("fresh", "unused"):
            for pattern in getattr(self, name):
                check_pattern(f"base.{name} entry", pattern)


STRICT = Exceptions()


def load(
    reader: Reader,
    rows: Sequence[Row],
    layers: int,
    dtype: Any = jnp.float32,
    sharding_fn: ShardingFn | None = None,
    ignored: Sequence[str] = (),
    exceptions: Exceptions = STRICT,
    key: jax.Array | None = None,
    finish: FinishFn | None = None,
    report: Report | None = None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """`keymap.load` with its exceptions: params, and one line each about what was drawn and what was not read.

    Args:
      key: for the fresh leaves: N(0, 0.02^2), biases zero, norms one.
      finish: as in `keymap.load`, for fresh leaves too.

    Raises:
      UserError: see `keymap.load`; the rest of the checkpoint must still fit strictly.
    """
    rows, fresh = split(reader, rows, layers, exceptions)
    patterns = (*ignored, *exceptions.unused)
    try:
        unread = keymap.check(reader, rows, layers, patterns)
    except UserError as error:
        raise UserError(f"{error}; name what is meant in base.fresh (our paths) or base.unused (its keys)") from None
    kept = {"finish": finish} if finish else {}
    params = flatten(keymap.load(reader, rows, layers, dtype, sharding_fn, patterns, report=report, **kept))
    if fresh:
        if key is None:
            raise ValueError(f"drawing {[row.target for row in fresh]} needs a key")
        shapes = {row.target: row.target_shape(layers) for row in fresh}
        params.update(flatten(draw_params(shapes, key, dtype, sharding_fn, finish)))
    found = (("drawn fresh", [row.target for row in fresh]), ("not read", unread))
    notes = tuple(f"{reader.path}: {what}: {_listed(names)}" for what, names in found if names)
    return unflatten(params), notes


def split(
    reader: Reader, rows: Sequence[Row], layers: int, exceptions: Exceptions
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """The rows to read and the rows to draw: of those that `fresh` names, the ones absent or `unused` in the file."""
    keys = reader.keys()
    held = {key for key in keys if not _any(exceptions.unused, key)}
    fresh = [r for r in rows if _any(exceptions.fresh, r.target) and not held & set(r.sources(layers))]
    return tuple(row for row in rows if row not in fresh), tuple(fresh)


def draw_params(
    shapes: Mapping[str, tuple[int, ...]],
    key: jax.Array,
    dtype: Any,
    sharding_fn: ShardingFn | None = None,
    finish: FinishFn | None = None,
) -> Any:
    """Params from N(0, 0.02^2), norms one, biases zero, drawn on their devices.

    Each layer is drawn in float32 and cast before the next: no float32 copy of a stacked leaf exists, and bfloat16
    params are the rounded float32 ones.

    Args:
      shapes: path below "params" -> shape.
      dtype: of the params.
      sharding_fn: (path, shape) -> Sharding.
      finish: called with each leaf before the next is drawn; its result is kept. None draws them in one program.
    """

    def run(shapes):
        return draw_program(shapes, dtype, sharding_fn)(key)

    if finish is None:
        return unflatten(run(shapes))
    return unflatten({path: finish(path, run({path: shape})[path]) for path, shape in shapes.items()})


def draw_program(shapes: Mapping[str, tuple[int, ...]], dtype: Any, sharding_fn: ShardingFn | None = None) -> Any:
    """The jitted key -> {path: leaf} of `draw_params`; the same one for equal arguments."""
    shardings = tuple(sharding_fn(path, shape) for path, shape in shapes.items()) if sharding_fn else None
    return _draw_program(tuple(shapes.items()), jnp.dtype(dtype), shardings)


@functools.cache
def _draw_program(shapes: tuple[tuple[str, tuple[int, ...]], ...], dtype: Any, shardings: tuple | None) -> Any:
    def normal(key, shape):
        return (jax.random.normal(key, shape, jnp.float32) * INIT_STD).astype(dtype)

    def draw(key):
        leaves = {}
        for path, shape in shapes:
            leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))  # independent of the other leaves
            name = path.rpartition("/")[2]
            if name in ("scale", "bias", "offset"):
                leaves[path] = jnp.full(shape, name == "scale", dtype)
            elif path.startswith("layers/"):
                leaves[path] = jax.lax.map(lambda k, s=shape[1:]: normal(k, s), jax.random.split(leaf_key, shape[0]))
            else:
                leaves[path] = normal(leaf_key, shape)
        return leaves

    paths = [path for path, _ in shapes]
    return jax.jit(draw, out_shardings=dict(zip(paths, shardings, strict=True)) if shardings else None)


def _listed(names: Sequence[str]) -> str:
    """The names in order, at most SHOWN of them: a vision tower has hundreds."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(sorted(names)[:SHOWN]) + more


def _any(patterns: Sequence[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
