"""How far codes change training: gradients and losses beside a quantised base, compared with those of the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.config.schema import RunConfig
from experiments.session.build import build
from experiments.session.experiment import Experiment
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, is_coded
from lowrank_jax.core.types import Objective
from lowrank_jax.ops.quantized import NONE, dense

LAST = 10  # steps whose mean loss is compared


def compare(config: RunConfig) -> dict[str, Any]:
    """{"start", "end": cosines, "loss": means of the last steps} of one seed.

    At the start and after the run's steps, both bases are given the same adapters: those that were trained beside the
    weights. "cosine" is between the gradients of all adapters on one batch; "products" the same between products of the
    codes and dequantised products of the same codes; "lowest" the five leaves that differ most.

    Args:
      config: of a run with base.quantize set; its steps are taken beside the codes, and beside the weights.

    Raises:
      UserError: the base is not quantised, or trials, restarts or batches of several lengths would be needed.
    """
    if config.base.quantize == NONE:
        raise UserError("experiments.gradients compares codes with weights; set base.quantize, for example to fp8")
    if config.restart.every or config.trainable != "adapters":
        raise UserError("experiments.gradients compares gradients of adapters; set trainable=adapters, restart.every=0")
    plain_base = dataclasses.replace(config.base, quantize=NONE, fp8=type(config.base.fp8)())
    coded, plain = build(config), build(dataclasses.replace(config, base=plain_base))
    if coded.form.bucketed and coded.task is not None:
        raise UserError("experiments.gradients compiles one length; give a task whose batches have one")
    probe, found = next(iter(plain.batches())), {}
    gradients = _Gradients(coded, plain, probe)
    found["start"] = gradients.cosines(None)
    state, losses = _train(plain)
    _, coded_losses = _train(coded)
    found["end"] = gradients.cosines(state)
    found["loss"] = {"weights": losses, config.base.quantize: coded_losses, "ratio": coded_losses / losses}
    return found


def _train(experiment: Experiment) -> tuple[Any, float]:
    """What was trained, on the host, and the mean loss of the last steps."""
    state, frozen, _ = experiment.load()
    step, batches, losses = experiment.compile(), iter(experiment.batches()), []
    for _ in range(experiment.config.train.steps):
        state, metrics = step(state, frozen, experiment.place(next(batches)))
        losses.append(metrics["loss"])
    return jax.device_get(state.trainable), float(np.mean(jax.device_get(losses[-LAST:])))


class _Gradients:
    """The adapters' gradients of one batch beside the codes and beside the weights; one base at a time is loaded."""

    def __init__(self, coded: Experiment, plain: Experiment, probe: Mapping[str, Any]):
        self.coded, self.plain, self.probe = coded, plain, dict(probe)
        self.programs = [jax.jit(_gradient(one.objective), compiler_options=one.options) for one in (coded, plain)]

    def cosines(self, trained: Any) -> dict[str, Any]:
        """See `compare`; None takes the adapters that a run starts with."""
        exact, trained = self._at(self.plain, trained)
        ours, _ = self._at(self.coded, trained)
        same, _ = self._at(self.coded, trained, dequantised=True)
        each = sorted((_cosine(exact[path], ours[path]), path) for path in exact if np.any(exact[path]))
        return {
            "cosine": _cosine(*map(_whole, (exact, ours))),
            "products": _cosine(*map(_whole, (same, ours))),
            "lowest": [[path, cosine] for cosine, path in each[:5]],
        }

    def _at(self, one: Experiment, trained: Any, dequantised: bool = False) -> tuple[dict[str, np.ndarray], Any]:
        """({path: gradient}, the leaves that it was taken at), on the host."""
        state, frozen, _ = one.load()
        trained = jax.device_get(state.trainable) if trained is None else trained
        given = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), trained, state.trainable)
        if dequantised:
            frozen["params"] = jax.tree.map(dense, frozen["params"], is_leaf=is_coded)
        found = self.programs[one is self.plain or dequantised](given, frozen, one.place(self.probe))
        flat = flatten(jax.device_get(found))
        return {path: np.asarray(leaf, np.float64).ravel() for path, leaf in flat.items()}, trained


def _gradient(objective: Objective) -> Callable:
    def gradient(trainable, frozen, batch):
        return jax.grad(lambda leaves: objective(combine(leaves, frozen), batch, None)[0])(trainable)

    return gradient


def _whole(gradients: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([gradients[path] for path in sorted(gradients)])


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
