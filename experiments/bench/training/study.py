"""Which rounding of a frozen base's products costs how much of the adapters' gradients: one case after the other."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.training.rounding import PRECISE, VALUES, WEIGHTS, Rounded
from experiments.config.schema import RunConfig
from experiments.session.build import build
from lowrank_jax.bases.codes import KERNELS
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import Array, Tree
from lowrank_jax.ops.quantized import NONE


@dataclasses.dataclass(frozen=True)
class Case:
    """What is rounded.

    Attributes:
      what: in words.
      x, g: rules of `rounding.VALUES` for a product's input and its gradient.
      w, back: rules of `rounding.WEIGHTS` for the weights in the forward and in the backward pass; None: as `w`.
      kernels: regular expression of the kernels' names; others, and the layers that are left out, are not rounded.
      first, last: how many layers are left out.
    """

    what: str
    x: str = "tensor"
    w: str = "tensor"
    g: str = "tensor"
    back: str | None = None
    kernels: str = ".*"
    first: int = 0
    last: int = 0


def _kept(names: str) -> str:
    return f"(?!({names})$).*"


CASES = (
    Case("all operands in bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    Case("FP8, as base.quantize=fp8"),
    Case("inputs alone", w="-", g="-"),
    Case("weights alone", x="-", g="-"),
    Case("weights alone, of the forward pass", x="-", g="-", back="-"),
    Case("weights alone, of the backward pass", x="-", w="-", g="-", back="tensor"),
    Case("gradients alone", x="-", w="-"),
    Case("gradients alone, e5m2", "-", "-", "e5m2"),
    Case("gradients alone, e5m2 in a fixed scale", "-", "-", "fixed"),
    Case("gradients alone, rounded at random", "-", "-", "stochastic"),
    Case("weights alone, scales of any size", "-", "any scale", "-"),
    Case("weights alone, a scale an output", "-", "output", "-"),
    Case("weights alone, a scale for 64 x 64", "-", "tiles", "-"),
    Case("weights alone, int8 with a scale an output", "-", "int8", "-"),
    Case("weights alone, the sum of two codes", "-", "twice", "-"),
    Case("inputs alone, a scale a token", "row", "-", "-"),
    Case("inputs alone, a scale for 64 entries of a token", "blocks", "-", "-"),
    Case("query, key alone", kernels="query|key"),
    Case("value alone", kernels="value"),
    Case("out alone", kernels="out"),
    Case("gate, up alone", kernels="gate|up"),
    Case("down alone", kernels="down"),
    Case("base.fp8.gradients=fixed", g="fixed"),
    Case("base.fp8.activations=row", x="row"),
    Case("base.fp8.forward=weights", "-", "-", "tensor", "tensor"),
    Case("base.fp8.forward=weights, gradients=fixed", "-", "-", "fixed", "tensor"),
    Case("the finest scales: 64 entries, an output, a token", "blocks", "output", "row"),
    Case("weights as the sum of two codes", w="twice"),
    Case("weights and inputs as sums of two codes", "twice", "twice"),
    Case("all but query, key, value", kernels=_kept("query|key|value")),
    Case("all but value, out", kernels=_kept("value|out")),
    Case("all but query, key, value, out", kernels=_kept("query|key|value|out")),
    Case("all but gate, up", kernels=_kept("gate|up")),
    Case("all but down", kernels=_kept("down")),
    Case("all but the first 2 and last 2 layers", first=2, last=2),
    Case("all but the first 4 layers", first=4),
    Case("all but the last 4 layers", last=4),
    Case("all but the first 15 layers", first=15),
)


def study(config: RunConfig, cases: tuple[Case, ...] = CASES) -> Iterator[dict[str, Any]]:
    """{"case", "cosine", "row", "growth", "loss", "time"} for each case, on the run's first batch, at the start.

    "cosine" is between the adapters' gradients of the batch and those of the unrounded float32 base; "row" the median
    of the same over the batch's rows, each by itself; "growth" the largest factor by which a row's gradient is longer
    (or shorter): of some rows any rounding changes it by 10 times and more, which decides the cosine of the batch.
    "loss" is how much the mean loss grows (0.01: 1%), "time" that of the layers' frozen products over that of FP8's, if
    bfloat16's take twice as long.

    Args:
      config: of a run in float32 whose base is not quantised.
      cases: what is rounded.

    Raises:
      UserError: another base, no adapters, or batches of several lengths.
    """
    if config.base.quantize != NONE or config.base.dtype != "float32":
        raise UserError("--study rounds a float32 base by itself; set base.quantize=none and base.dtype=float32")
    if config.trainable != "adapters" or config.base.fused:
        raise UserError("--study compares gradients of adapters at kernels; set trainable=adapters, base.fused=false")
    run = build(config)
    if run.form.bucketed and run.task is not None:
        raise UserError("--study compiles one length; give a task whose batches have one")
    batch = run.place(dict(next(iter(run.batches()))))
    state, frozen, _ = run.load()
    params = frozen.pop("params")

    @jax.jit
    def gradient(trainable, params, frozen, batch):
        def of_row(row):
            def loss(leaves):
                return run.objective(combine(leaves, {**frozen, "params": params}), row, None)

            (total, sums), found = jax.value_and_grad(loss, has_aux=True)(trainable)
            return total, sums["weight"], found

        return jax.lax.map(of_row, jax.tree.map(lambda x: x[:, None], batch))

    def gradients(case):
        losses, weights, found = jax.device_get(gradient(state.trainable, rounded(params, case), frozen, batch))
        leaves = [leaf.reshape(len(losses), -1) for leaf in jax.tree.leaves(found)]
        return losses.sum() / weights.sum(), np.concatenate(leaves, 1, dtype=np.float64)

    exact_loss, exact = gradients(Case("nothing", "-", "-", "-"))
    scored = np.any(exact, 1)  # a row of padding has no gradient
    exact = exact[scored]
    for case in cases:
        loss, found = gradients(case)
        found = found[scored]
        longer = np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        yield {
            "case": case.what,
            "cosine": _cosine(exact.sum(0), found.sum(0)),
            "row": float(np.median([_cosine(*pair) for pair in zip(exact, found, strict=True)])),
            "growth": float(np.maximum(longer, 1 / longer).max()),
            "loss": float(loss / exact_loss - 1),
            "time": relative_time(params, case),
        }


def rounded(params: Tree, case: Case) -> dict[str, Any]:
    """The parameters with a `Rounded` in place of each layer's kernel."""
    flat, names = dict(flatten(params)), list(VALUES)
    for path, kernel, layers in _kernels(params, case):
        ahead, back = (_weights(kernel, layers, rule) for rule in (case.w, case.w if case.back is None else case.back))
        x, g = (jnp.where(layers, names.index(rule), 0).astype(jnp.int32) for rule in (case.x, case.g))
        flat[path] = Rounded(ahead, back, x, g)
    return unflatten(flat)


def relative_time(params: Tree, case: Case) -> float:
    """The layers' frozen products over those of FP8 codes, if a product of bfloat16 takes twice as long.

    A sum of two codes is two products; of both operands, three (the fourth is of what both have left over).
    """
    parts = {"twice": 2.0}
    times, total = 0.0, 0.0
    for _, kernel, layers in _kernels(params, case):
        ahead = 2.0 if {case.x, case.w} & set(PRECISE) else parts.get(case.x, 1) * parts.get(case.w, 1)
        back = 2.0 if {case.g, case.back or case.w} & set(PRECISE) else parts.get(case.w, 1)
        size = kernel.size / len(layers)
        times += size * float(np.where(layers, min(ahead, 3) + back, 4).sum())
        total += size * 2 * len(layers)
    return times / total


def _kernels(params: Tree, case: Case) -> Iterator[tuple[str, Array, np.ndarray]]:
    """(path, kernel [L, d_in, d_out], which layers of it are rounded) of the layers' kernels."""
    for path, leaf in flatten(params).items():
        if re.fullmatch(KERNELS, path):
            layers = np.full(len(leaf), re.fullmatch(case.kernels, path.split("/")[-2]) is not None)
            layers[: case.first] = False
            layers[len(layers) - case.last :] = False
            yield path, leaf, layers


def _weights(kernel: Array, layers: np.ndarray, rule: str) -> Array:
    if rule == "-" or not layers.any():
        return kernel
    return jnp.where(layers[:, None, None], _each(kernel, rule), kernel)


@functools.partial(jax.jit, static_argnames="rule")
def _each(kernel: Array, rule: str) -> Array:
    return jax.lax.map(WEIGHTS[rule], kernel)


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def described(config: RunConfig) -> Mapping[str, Any]:
    """What a study's records say of its run."""
    batch, length = config.train.batch_size, config.task.seq_len
    return {
        "base": config.base.name,
        "method": config.adapter.method,
        "rank": config.adapter.rank,
        "batch": [batch, length],
    }
