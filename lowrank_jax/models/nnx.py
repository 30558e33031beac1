"""Turns a Flax NNX model into params and a function of them, and writes params back into the model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import ApplyFn, Tree


def nnx_function(model: nnx.Module) -> tuple[dict[str, Any], ApplyFn]:
    """(params, apply_fn) of an NNX model, which is not changed.

    Args:
      model: any. Its nnx.Param become the params, by their attributes' names ("layers/0/up/kernel"). The rest of its
        state (running statistics) stays as it is at this call.

    Returns:
      The params, and apply_fn(variables, *inputs, rngs=None, method=None, **kwargs). Dropout acts where the call passes
      rngs={"dropout": key}, and never otherwise; running statistics are used and never updated.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    state, fixed = nnx.to_flat_state(params), nnx.to_flat_state(rest)

    def apply_fn(variables: Tree, *inputs: Any, rngs=None, method: str | None = None, **kwargs: Any) -> Any:
        flat, key = flatten(variables["params"]), (rngs or {}).get("dropout")
        filled = [(path, variable.replace(flat[_name(path)])) for path, variable in state]
        # Copies: each call advances the counters of random numbers, and may not change a variable of an outer trace.
        copied = [(path, variable.replace(_seeded(variable, key, i))) for i, (path, variable) in enumerate(fixed)]
        called = nnx.merge(graph, nnx.from_flat_state(filled), nnx.from_flat_state(copied))
        modes = {"deterministic": key is None, "use_running_average": True}
        called.set_attributes(**modes, raise_if_not_found=False)
        return getattr(called, method or "__call__")(*inputs, **kwargs)

    return unflatten({_name(path): variable[...] for path, variable in state}), apply_fn


def nnx_update(model: nnx.Module, params: Tree) -> None:
    """Writes params into the model, e.g. merged ones.

    Raises:
      UserError: they are of another model.
    """
    state, flat = nnx.to_flat_state(nnx.state(model, nnx.Param)), flatten(params)
    wanted = {_name(path): variable.shape for path, variable in state}
    given = {path: jnp.shape(leaf) for path, leaf in flat.items()}
    if wrong := sorted(path for path in wanted.keys() | given.keys() if wanted.get(path) != given.get(path)):
        raise UserError(f"the params are of another model, which differs at {', '.join(wrong[:4])}; give this one's")
    nnx.update(model, nnx.from_flat_state([(path, v.replace(flat[_name(path)])) for path, v in state]))


def _seeded(variable: nnx.Variable, key: jax.Array | None, number: int) -> jax.Array:
    """A variable's value; of a stream of random numbers the call's key, another one for each stream."""
    if key is None or not isinstance(variable, nnx.RngKey):
        return variable[...]
    typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    return jax.random.fold_in(typed, number)


def _name(path: tuple) -> str:
    return "/".join(map(str, path))
