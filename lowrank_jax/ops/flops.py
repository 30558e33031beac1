"""How many multiplications and additions the products of a traced function make, from its shapes alone."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def product_flops(fn: Callable, *args: Any) -> int:
    """Sum over the products of fn(*args) of 2 m k n, with the products inside a scan counted at each step.

    Args:
      fn: traced, not run.
      args: arrays or ShapeDtypeStructs.

    Raises:
      ValueError: a loop whose number of steps is not known before it runs, with a product inside.
    """
    trace = getattr(fn, "trace", None)  # a jitted fn with compiler options cannot be traced inside another
    return _of((jax.make_jaxpr(fn)(*args) if trace is None else trace(*args).jaxpr).jaxpr)


def _of(jaxpr: Any) -> int:
    return sum(_dot(eqn) if eqn.primitive.name == "dot_general" else _inside(eqn) for eqn in jaxpr.eqns)


def _dot(eqn: Any) -> int:
    (contracted, _), _batch = eqn.params["dimension_numbers"]
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def _inside(eqn: Any) -> int:
    counts = [_of(jaxpr) for jaxpr in _jaxprs(eqn.params)]
    if eqn.primitive.name == "while" and any(counts):
        raise ValueError("a while loop does not say how often it multiplies")
    if eqn.primitive.name == "cond":
        return max(counts)
    return sum(counts) * eqn.params.get("length", 1)


def _jaxprs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
