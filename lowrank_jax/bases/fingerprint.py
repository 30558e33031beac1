"""The fingerprint of a base, which adapters and checkpoints record: a digest of all its values and of its config.

It ends with the older fingerprint (16 values a leaf, no config), with which older files are compared
(`core.fingerprints`).
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.bases.leaf_sums import sums, sums_on_host
from lowrank_jax.core.fingerprints import join
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import is_small

# Fields of a config that are left out: they do not change the outputs, or show in the leaves' paths and shapes, or
# belong to a fresh head.
LEFT_OUT = {
    *("head", "num_labels", "pooler", "tie_word_embeddings", "max_position_embeddings"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),
}


class Sample(NamedTuple):
    """What enters the fingerprint of one leaf.

    Attributes:
      shape: of the leaf.
      values: 16 of them in bfloat16, for the older fingerprint.
      sums: over all values, each mixed with its place; see `leaf_sums`.
    """

    shape: tuple[int, ...]
    values: bytes
    sums: bytes


def fingerprint(params: Any, config: Any = None) -> str:
    """The digest of every leaf's path, shape and values in bfloat16 and of the config, then the older fingerprint.

    Copies in float32 and in bfloat16 have the same fingerprint, as do sharded and NumPy arrays. It tells apart
    bases that were edited or confused; it does not protect against somebody who makes two with one fingerprint.

    Args:
      params: the tree below "params".
      config: the model's, a dataclass; None for weights alone.
    """
    return digest({path: sample(leaf) for path, leaf in flatten(params).items()}, config)


def sample(leaf: Any) -> Sample:
    """What enters the fingerprint of one leaf; a large one is read where it lies, in one pass and without a copy."""
    points = _points(leaf.shape)
    if is_small(leaf):
        host = np.asarray(leaf)
        values, found = host[points], sums_on_host(host)
    else:
        leaf = jnp.asarray(leaf)
        values, found = jax.device_get(_program(leaf.sharding)(leaf, points))
    return Sample(tuple(leaf.shape), values.astype(np.float32).astype(jnp.bfloat16).tobytes(), found.tobytes())


def digest(samples: Mapping[str, Sample], config: Any = None) -> str:
    """The fingerprint of a tree from the `sample` of each leaf by path, taken before the leaf was changed."""
    older, whole = hashlib.sha256(), hashlib.sha256(_outputs_of(config).encode())
    for path, one in flatten(unflatten(samples)).items():  # in the order of a tree's leaves
        for found, content in ((older, one.values), (whole, one.sums)):
            found.update(f"{path}{one.shape}".encode())
            found.update(content)
    return join(whole.hexdigest(), older.hexdigest())


def _outputs_of(config: Any) -> str:
    """The config's fields that change the outputs, as JSON, without defaults: a field added later changes nothing."""
    if config is None:
        return ""
    fields = {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in LEFT_OUT and _plain(getattr(config, field.name)) != _plain(field.default)
    }
    return json.dumps([type(config).__name__, fields], sort_keys=True)


def _plain(value: Any) -> Any:
    """The value as JSON has it, with its numbers rounded to float32, as GGUF stores them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(np.float32(value)) if isinstance(value, float) else value


@functools.cache  # leaves of one shape are read by one program, whatever their base
def _program(sharding: Any) -> Any:
    return jax.jit(lambda leaf, points: (leaf[points], sums(leaf, sharding)), out_shardings=_whole(sharding))


def _points(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    indices = np.linspace(0, math.prod(shape) - 1, 16).astype(np.int64)
    return tuple(axis.astype(np.int32) for axis in np.unravel_index(indices, shape))


def _whole(sharding: Any) -> Any:
    """Replicated, so that every process of a pod can read the values."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return sharding
