"""The best weights so far: of one run and of stacked trials, kept while the state is donated, saved and restored."""

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.train.best import Best, abstract_best, keeps_best
from lowrank_jax.train.loop import EvalConfig
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
    for step, loss in enumerate((3.0, 2.0, float("nan"), 2.5, 2.0), 1):
        best.see(state(float(step)), step, {0: loss})
    assert (kept(best), best.record(0)) == (2, {"step": 2, "loss": 2})
    assert float(best.state(state(9.0)).trainable["adapters"]["a"][0, 0]) == 2


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


def test_a_config_keeps_them_where_an_entry_reads_them():
    assert not keeps_best({})
    assert not keeps_best({"a": EvalConfig()})
    assert keeps_best({"a": EvalConfig(), "b": EvalConfig(weights="best")})
