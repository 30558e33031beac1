"""The best weights so far: of one run and of stacked trials, kept while the state is donated, saved and restored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.train.best import Best, abstract_best, keeps_best, loaded
from lowrank_jax.train.evaluations import EvalConfig, Evaluator
from lowrank_jax.train.loop import Job, fit
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.state import TrainState


def state(value, trials=None):
    """A state whose weights are all `value`, or one value a trial."""
    shape = () if trials is None else (trials,)
    leaf = jnp.broadcast_to(jnp.reshape(jnp.asarray(value, jnp.float32), (*shape, 1, 1)), (*shape, 2, 3)) + 0
    return TrainState(
        jnp.zeros(shape, jnp.int32), {"adapters": {"a": leaf}}, (), jnp.zeros(shape), jnp.zeros((*shape, 2))
    )


def kept(best):
    return np.asarray(best.trainable["adapters"]["a"])[..., 0, 0].tolist()


def test_one_run():
    start = state(0.0)
    best = Best(start, 1)
    jax.tree.map(lambda leaf: leaf.delete(), start.trainable)  # as a step does that takes the state
    assert (kept(best), best.record(0)) == (0, {"step": 0, "loss": np.inf})
    assert loaded(best.saved(), "last", "base", 7) == (
        "last",
        "base",
        7,
    )  # a run that was stopped before its first held-out loss
    for step, loss in enumerate((3.0, 2.0, float("nan"), 2.5, 2.0), 1):
        best.see(state(float(step)), step, {0: loss})
    assert (kept(best), best.record(0)) == (2, {"step": 2, "loss": 2})
    assert loaded(best.saved(), "last", "base", 7) == (best.trainable, "base", 2)
    weights, base = best.weights(state(9.0), "base")
    assert (float(weights.trainable["adapters"]["a"][0, 0]), base) == (2, "base")


def test_a_base_that_merges_change_is_kept_with_them():
    frozen = [{"params": {"kernel": jnp.full((2, 2), float(i))}} for i in range(3)]
    best = Best(state(0.0), 1, frozen[0])
    best.see(state(1.0), 1, {0: 3.0}, frozen[1])
    best.see(state(2.0), 2, {0: 4.0}, frozen[2])
    weights, base = best.weights(state(2.0), frozen[2])
    assert (kept(best), float(base["params"]["kernel"][0, 0])) == (1, 1)
    assert loaded(best.saved(), "last", frozen[2], 2) == (weights.trainable, base, 1)
    shapes = abstract_best(weights.trainable, 1, frozen[0])
    assert jax.tree.structure(best.saved()) == jax.tree.structure(shapes)


def test_trials_have_their_own():
    """A trial that is not evaluated any more keeps its weights; a checkpoint brings all back."""
    best = Best(state((0.0, 0.1, 0.2), 3), 3)
    best.see(state((1.0, 1.1, 1.2), 3), 1, {0: 3.0, 1: 5.0, 2: 4.0})
    best.see(state((2.0, 2.1, 2.2), 3), 2, {0: 4.0, 1: 1.0})
    np.testing.assert_allclose(kept(best), [1.0, 2.1, 1.2])
    assert [best.record(trial) for trial in range(3)] == [
        {"step": 1, "loss": 3}, {"step": 2, "loss": 1}, {"step": 1, "loss": 4},
    ]  # fmt: skip
    saved = best.saved()
    shapes = abstract_best(jax.eval_shape(lambda: state((0.0,) * 3, 3)).trainable, 3)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), saved) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), shapes
    )
    other = Best(state((7.0,) * 3, 3), 3)
    other.restore(saved)
    assert (kept(other), other.record(1)) == (kept(best), best.record(1))


class Records:
    """Stands in for batches, checkpoints and tracker; keeps the evaluations."""

    def __init__(self):
        self.found, self.saved = {}, []

    def __next__(self):
        return {}

    def log(self, step, values):
        self.found |= {(step, name): value for name, value in values.items() if name.startswith("eval/")}

    def get_state(self):
        return {}

    def save(self, step, *rest):
        self.saved.append(step)

    def wait(self):
        pass

    def latest(self):
        return None


def test_without_a_finite_held_out_loss_there_are_none():
    """Of three trials: one always has such a loss, one only at the second step, one never. That one has failed: the
    untrained weights would otherwise be decoded, scored and exported."""
    nan = float("nan")
    losses = [(3.0, nan, nan), (2.0, 5.0, float("inf")), (4.0, nan, nan)]
    start, records = state((0.0, 0.1, 0.2), 3), [Records() for _ in range(3)]
    one = {"loss": jnp.ones(3), "grad_norm": jnp.ones(3), "tokens": jnp.ones(3), "finite": jnp.ones(3, bool)}

    def step(before, frozen, batch):
        weights = jax.tree.map(lambda leaf: leaf + 1, before.trainable)
        return before._replace(step=before.step + 1, trainable=weights), one

    def held_out(now, frozen):
        return [{"loss": loss} for loss in losses[int(now.step[0]) - 1]]

    def decode(now, frozen):
        return [{"value": float(leaf[0, 0])} for leaf in now.trainable["adapters"]["a"]]

    outcome = fit(
        Job(
            start, None, step, records[0], lambda batch: batch,
            [Evaluator("", LoopConfig.evaluates_at, held_out, decides=True),
             Evaluator("text", LoopConfig.evaluates_at, decode, weights="best")],
            [LoopConfig(steps=3, eval_every=1)] * 3, records[0], 0, records, best=Best(start, 3),
        )
    )  # fmt: skip
    assert outcome.statuses == ("finished", "finished", "diverged")
    assert "its held-out loss was never a finite number" in outcome.messages[2]
    decoded = [
        {step: value for (step, name), value in each.found.items() if name == "eval/text/value"} for each in records
    ]
    assert decoded[0] == {1: 1, 2: 2, 3: 2}
    assert decoded[1] == pytest.approx({2: 2.1, 3: 2.1})
    assert decoded[2] == {}
    assert records[0].saved == [3]


def test_a_config_keeps_them_where_an_entry_reads_them():
    assert not keeps_best({})
    assert not keeps_best({"a": EvalConfig()})
    assert keeps_best({"a": EvalConfig(), "b": EvalConfig(weights="best")})
