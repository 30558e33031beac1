"""Toy models in tests: parameters drawn by NumPy and one compiled apply; `init` compiles 0.2 s of draws a shape."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def drawn(model, *given, seed=0):
    """{"params": ...} as `model.init(key, *given)` has them: kernels by their inputs, small embeddings, norms of 1."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name, dims = path[-1].key, shape.shape
        if name in ("scale", "bias", "offset"):
            return jnp.full(dims, float(name == "scale"), shape.dtype)
        if name not in ("kernel", "embedding", "filters"):
            raise ValueError(f"no draw is known for {jax.tree_util.keystr(path)}")
        inputs = math.prod(dims[:-1]) if name == "filters" else dims[-2]
        std = 0.02 if name == "embedding" else inputs**-0.5
        return jnp.asarray(rng.normal(0, std, dims), shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(model.init, jax.random.key(0), *given))


@functools.cache
def jitted(model, **options):
    """The model's apply with these options as one program: op by op, each of its products and sums is compiled too."""
    return jax.jit(functools.partial(model.apply, **options))
