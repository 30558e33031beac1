"""Toy models in tests: leaves drawn by NumPy and one compiled apply; `init` compiles 0.2 s of draws for each shape."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.adapters import create


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


def created(plan, params=None):
    """What `create` makes of a plan, as one program."""
    return jax.jit(functools.partial(create, plan))(jax.random.key(0), params)


def moved(plan, spread=0.2, seed=0, params=None):
    """{"adapters": ..., "scales": ...} as `create` makes them, but with every leaf of an adapter drawn by NumPy."""
    rng, start = np.random.default_rng(seed), functools.partial(create, plan)
    shapes = jax.eval_shape(start, jax.random.key(0), params)["adapters"]
    leaves = jax.tree.map(lambda leaf: jnp.asarray(spread * rng.normal(size=leaf.shape), leaf.dtype), shapes)
    return {"adapters": leaves, "scales": jax.jit(lambda *given: start(*given)["scales"])(jax.random.key(0), params)}


def unlike(shapes):
    """Names of shapes, of those that differ in sizes alone the last: which parameters a model has is the same."""

    def kind(config):
        values = [getattr(config, field.name) for field in dataclasses.fields(config)]
        return type(config), *(str(value) for value in values if value is True or not isinstance(value, (int, float)))

    return list({kind(config): name for name, config in shapes.items()}.values())


def moved_peft(model, config, folder, seed, by):
    """PEFT's model of a torch model, with noise times `by` added to each trained tensor, saved into the folder."""
    import peft
    import torch

    torch.manual_seed(seed)
    model = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model
