"""How far codes change training: gradients and losses beside a quantised base, compared with those of the weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.bench.training.study import described
from experiments.config.schema import RunConfig
from experiments.records.environment import environment_record
from experiments.session.build import build
from experiments.session.experiment import Experiment
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, is_coded
from lowrank_jax.core.types import Objective
from lowrank_jax.ops.quantized import NONE, dense
from lowrank_jax.train.state import TrainState

Leaves = Mapping[str, np.ndarray]  # gradients by path
LAST = 10  # steps whose mean loss is compared
ROWS = 8  # of a batch, which are compared each by itself


def compare(config: RunConfig) -> dict[str, Any]:
    """{"start", "end": cosines, "loss": means of the last steps} of one seed.

    At the start and after the run's steps, both bases are given the same adapters: those that were trained beside the
    weights. "cosine" is between the gradients of all adapters on one batch; "products" the same between products of the
    codes and dequantised products of the same codes; "lowest" the five leaves that differ most; "row", of tasks with a
    loss a token, the median cosine of one row's gradients each, as any rounding makes a few rows' explode.

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
    probe = next(iter(plain.batches()))
    programs = [jax.jit(_gradient(one.objective), compiler_options=one.options) for one in (plain, coded)]

    def gradients(one, trained, frozen, like):
        """[{path: gradient}] of the experiment's program at some leaves, on the host: the batch's, then rows'."""
        given = jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), trained, like)
        found = []
        for batch in (probe, *_single_rows(probe)):
            flat = flatten(jax.device_get(programs[one is coded](given, frozen, one.place(dict(batch)))))
            found.append({path: np.asarray(leaf, np.float64).ravel() for path, leaf in flat.items()})
        return found

    # One base at a time: first the weights.
    state, frozen, _ = plain.load()
    places = {"start": jax.device_get(state.trainable)}
    state, losses = _train(plain, state, frozen)
    places["end"] = jax.device_get(state.trainable)
    exact = {when: gradients(plain, trained, frozen, state.trainable) for when, trained in places.items()}
    del state, frozen

    state, frozen, _ = coded.load()
    ours = {when: gradients(coded, trained, frozen, state.trainable) for when, trained in places.items()}
    state, coded_losses = _train(coded, state, frozen)
    frozen["params"] = jax.tree.map(dense, frozen["params"], is_leaf=is_coded)
    same = {when: gradients(plain, trained, frozen, state.trainable) for when, trained in places.items()}
    found: dict[str, Any] = {when: _compared(exact[when], ours[when], same[when]) for when in places}
    return found | {
        "loss": {"weights": losses, config.base.quantize: coded_losses, "ratio": coded_losses / losses},
    }


def recorded(config: RunConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """The record of what `compare` has found: cosines and losses, with the config's settings and the environment."""
    cosines = {f"{when}_{name}": found[when].get(name) for when in ("start", "end") for name in ("cosine", "row")}
    return {
        "seed": config.seed,
        **described(config),
        "steps": config.train.steps,
        "codes": _codes(config),
        **cosines,
        "loss_weights": found["loss"]["weights"],
        "loss_codes": found["loss"][config.base.quantize],
        **environment_record(),
    }


def _codes(config: RunConfig) -> str:
    """The quantisation and the settings of base.fp8 that are not the defaults: "fp8 forward=weights"."""
    plain = type(config.base.fp8)()
    given = {one.name: getattr(config.base.fp8, one.name) for one in dataclasses.fields(plain)}
    words = [f"{name}={value}" for name, value in given.items() if value != getattr(plain, name)]
    return " ".join([config.base.quantize, *words])


def _train(experiment: Experiment, state: TrainState, frozen: Any) -> tuple[TrainState, float]:
    """The state after the run's steps, and the mean loss of the last ones."""
    step, batches, losses = experiment.compile(), iter(experiment.batches()), []
    for _ in range(experiment.config.train.steps):
        state, metrics = step(state, frozen, experiment.place(next(batches)))
        losses.append(metrics["loss"])
    return state, float(np.mean(jax.device_get(losses[-LAST:])))


def _single_rows(batch: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """The batch with the weights of one of its first ROWS rows alone; none of a batch without weights."""
    weights = batch.get("weights")
    if weights is None:
        return []
    chosen = [row for row in range(min(ROWS, len(weights))) if np.any(weights[row, 1:])]
    return [{**batch, "weights": weights * (np.arange(len(weights)) == row)[:, None]} for row in chosen]


def _compared(exacts: list[Leaves], all_ours: list[Leaves], sames: list[Leaves]) -> dict[str, Any]:
    """The cosines of `compare` at one place."""
    (exact, *exact_rows), (ours, *our_rows), same = exacts, all_ours, sames[0]
    rows = [_cosine(*map(_whole, pair)) for pair in zip(exact_rows, our_rows, strict=True)]
    each = sorted((_cosine(exact[path], ours[path]), path) for path in exact if np.any(exact[path]))
    return {
        "cosine": _cosine(*map(_whole, (exact, ours))),
        "products": _cosine(*map(_whole, (same, ours))),
        **({"row": float(np.median(rows))} if rows else {}),
        "lowest": [[path, cosine] for cosine, path in each[:5]],
    }


def _gradient(objective: Objective) -> Callable:
    def gradient(trainable, frozen, batch):
        return jax.grad(lambda leaves: objective(combine(leaves, frozen), batch, None)[0])(trainable)

    return gradient


def _whole(gradients: Leaves) -> np.ndarray:
    return np.concatenate([gradients[path] for path in sorted(gradients)])


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
