"""A pytree as named leaves: their names, shapes and dtypes, storable values, and checksums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.paths import SEPARATOR
from lowrank_jax.core.trees import SMALL

SHOWN = 6  # names listed in one error before "and N more"


def named(tree: Any) -> dict[str, Any]:
    """{"0/mu/adapters/...": leaf} for any pytree: names that do not depend on the classes of its nodes."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=SEPARATOR) or "leaf": leaf for path, leaf in pairs}


def rebuild(tree: Any, leaves: dict[str, Any]) -> Any:
    """The inverse of `named` and `storable`: a pytree like `tree` from its stored leaves."""

    def value(name, like):
        if like.size == 0:
            return jnp.zeros(like.shape, like.dtype)
        return jax.random.wrap_key_data(leaves[name], impl=_key_impl(like)) if _is_key(like) else leaves[name]

    return jax.tree.unflatten(jax.tree.structure(tree), [value(name, like) for name, like in named(tree).items()])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(like: Any) -> Any:
    """jax.random.key_impl, called on a tracer as it refuses ShapeDtypeStructs."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), like)
    return found[0]


def storable(leaves: dict[str, Any]) -> dict[str, Any]:
    """The tree with typed PRNG keys as their uint32 words, Python numbers as arrays, and without empty arrays.

    Arrays of Python numbers have jax's dtype. orbax refuses empty arrays; `rebuild` creates them again.
    """

    def convert(leaf):
        if isinstance(leaf, jax.Array):
            return jax.random.key_data(leaf) if _is_key(leaf) else leaf
        return np.asarray(leaf, None if hasattr(leaf, "dtype") else _python_dtype(leaf))

    return {name: convert(leaf) for name, leaf in leaves.items() if np.size(leaf)}


def _python_dtype(value: Any) -> np.dtype:
    return jax.dtypes.canonicalize_dtype(np.asarray(value).dtype)


def abstract(leaves: dict[str, Any]) -> dict[str, Any]:
    """The type, shape and sharding in which orbax restores each leaf."""

    def convert(leaf):
        if isinstance(leaf, np.ndarray | np.generic):
            return np.asarray(leaf)
        words = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)

    return {name: convert(leaf) for name, leaf in leaves.items() if leaf.size}


def describe(tree: Any) -> dict[str, str]:
    """{name: "float32[2,3]"}."""

    def look(leaf):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else _python_dtype(leaf)
        return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"

    return {name: look(leaf) for name, leaf in named(tree).items()}


def misfits(saved: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """A phrase for each leaf that is missing, unknown or of another shape or dtype, from two results of `describe`."""
    both = [name for name in wanted if name in saved]
    lines = [f"{name} is {saved[name]}, not {wanted[name]}" for name in both if saved[name] != wanted[name]]
    lines += [f"{name} is missing" for name in wanted if name not in saved]
    return lines + [f"{name} is unknown here" for name in saved if name not in wanted]


def checksums(leaves: dict[str, Any]) -> dict[str, int]:
    """{name: checksum} of stored leaves; of large ones computed on their devices."""

    def words(leaf):  # jit would cut 8-byte host values to 4 bytes
        if isinstance(leaf, jax.Array) or leaf.dtype.itemsize < 8:
            return leaf
        return np.ascontiguousarray(leaf)[..., None].view(np.uint32)

    def one(leaf):
        small = leaf.size <= SMALL and getattr(leaf, "is_fully_addressable", True)
        return checksum_on_host(np.asarray(leaf)) if small else checksum(leaf)

    sums = jax.device_get({name: one(words(leaf)) for name, leaf in leaves.items()})
    return {name: int(value) for name, value in sums.items()}


def checksum_on_host(leaf: np.ndarray) -> np.uint32:
    """`checksum` in NumPy: no program is compiled, and a few copies are made."""
    leaf = np.ascontiguousarray(leaf)
    bits = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(np.uint32)
    weights = np.ones(bits.shape, np.uint32)
    for axis, size in enumerate(bits.shape):
        places = np.arange(size, dtype=np.uint32) * np.uint32(_step(axis))
        weights += places.reshape(-1, *(1,) * (bits.ndim - axis - 1))
    return (bits * weights).sum(dtype=np.uint32)


@jax.jit
def checksum(leaf: jax.Array) -> jax.Array:
    """Checksum of one leaf that does not depend on its sharding.

    sum_i bits_i w_i mod 2^32 with odd w_i, so any one changed element changes it. No reshape: a sharded leaf is not
    gathered.
    """
    if leaf.dtype == jnp.bool_:
        bits = leaf.astype(jnp.uint32)
    else:
        width = min(4, leaf.dtype.itemsize)  # eight-byte leaves become pairs of words
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * width}")).astype(jnp.uint32)
    weights = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):
        weights += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(_step(axis))
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def _step(axis: int) -> int:
    """The factor of a place along an axis: even, so that the weights 1 + i step stay odd."""
    return (2 * 0x9E3779B1 * (2 * axis + 1)) % 2**32


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
