"""Many trials in one program: ranks padded and cut, schedules as tables, and no communication between devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.train import trials
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.schedule import ScheduleConfig, make_shape
from lowrank_jax.train.state import init_state
from lowrank_jax.train.step import make_step

D, R, WIDE = 6, 2, 4
OPTIMIZER = make_optimizer(OptimizerConfig(weight_decay=0.1))


def objective(variables, batch, rngs):
    """Squared error of x (W + s A B)."""
    del rngs
    leaf = variables["adapters"]["w"]
    kernel = variables["params"]["w"]
    y = batch["x"] @ kernel + variables["scales"]["w"] * (batch["x"] @ leaf["a"] @ leaf["b"])
    return jnp.sum(jnp.square(y - batch["y"])), {"weight": jnp.float32(len(y)), "correct": jnp.float32(0)}


def adapter(seed, rank):
    rng = np.random.default_rng(seed)
    return {
        "adapters": {"w": {"a": rng.normal(size=(D, rank)).astype(np.float32), "b": np.zeros((rank, D), np.float32)}}
    }


def problem(seed):
    rng = np.random.default_rng(100 + seed)
    return {name: rng.normal(size=(8, D)).astype(np.float32) for name in ("x", "y")}


FROZEN = {"params": {"w": np.random.default_rng(7).normal(size=(D, D)).astype(np.float32)}}
RANKS, RATES, SCALES, LASTS = (R, WIDE, 1, WIDE), (1e-2, 3e-2, 1e-3, 1e-1), (1.0, 2.0, 0.5, 1.0), (10, 10, 10, 4)


def stacked():
    """Four trials of other ranks, rates, scales and lengths: (state, frozen, batch, tables, lasts)."""
    wide = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, adapter(0, WIDE)))
    states = [
        init_state(jax.tree.map(jnp.asarray, trials.widen(adapter(i, RANKS[i]), wide)), OPTIMIZER, RATES[i], seed=i)
        for i in range(4)
    ]
    frozen = trials.share([{**FROZEN, "scales": {"w": jnp.float32(scale)}} for scale in SCALES])
    tables = np.stack([trials.schedule_table(shape_of(i), 10, 12) for i in range(4)])
    batch = {k: np.stack([problem(i)[k] for i in range(4)]) for k in ("x", "y")}
    return trials.stack(states), frozen, batch, tables, np.asarray(LASTS, np.int32)


def shape_of(trial):
    return make_shape(ScheduleConfig("linear", warmup_steps=trial), 10)


@pytest.mark.parametrize("devices", [1, 4])
def test_each_trial_is_the_run_it_would_be_alone(devices):
    """Ten steps with AdamW and decay: every trial equals `make_step` of its own rank, and its padding stays zero."""
    state, frozen, batch, tables, lasts = stacked()
    mesh = trials.trial_mesh(4, jax.devices()[:devices])
    assert mesh.size == devices
    step = trials.together(trials.make_trial_step(objective, OPTIMIZER), trials.frozen_axes(frozen), mesh)
    state, batch, tables, lasts = (trials.place(tree, mesh) for tree in (state, batch, tables, lasts))
    frozen = trials.place_frozen(frozen, mesh)
    for _ in range(10):
        state, _metrics = step(state, frozen, batch, tables, lasts)
    assert state.step.tolist() == list(LASTS)
    for i, (rank, last) in enumerate(zip(RANKS, LASTS, strict=True)):
        alone = init_state(jax.tree.map(jnp.asarray, adapter(i, rank)), OPTIMIZER, RATES[i], seed=i)
        plain = jax.jit(make_step(objective, OPTIMIZER, shape_of(i)))
        for _ in range(last):
            alone, _ = plain(alone, {**FROZEN, "scales": {"w": jnp.float32(SCALES[i])}}, problem(i))
        mine = trials.take(state.trainable, i)
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-6),
            trials.narrow(mine, alone.trainable),
            alone.trainable,
        )
        assert not np.any(mine["adapters"]["w"]["a"][:, rank:])
        assert not np.any(mine["adapters"]["w"]["b"][rank:])


def test_devices_exchange_nothing():
    """The compiled program of 4 trials on 4 devices has no collective."""
    state, frozen, batch, tables, lasts = stacked()
    mesh = trials.trial_mesh(4, jax.devices())
    step = trials.together(trials.make_trial_step(objective, OPTIMIZER), trials.frozen_axes(frozen), mesh)
    placed = [trials.place(tree, mesh) for tree in (state, batch, tables, lasts)]
    text = step.lower(placed[0], trials.place_frozen(frozen, mesh), *placed[1:]).compile().as_text()
    assert not [word for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute") if word in text]


def test_the_mesh_takes_the_most_devices_that_divide_the_trials():
    assert [trials.trial_mesh(n, jax.devices()).size for n in (1, 3, 8, 12, 7)] == [1, 3, 8, 6, 7]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_a_table_is_its_schedule(kind):
    shape = make_shape(ScheduleConfig(kind, warmup_steps=3, end_fraction=0.1), 20)
    table = trials.schedule_table(shape, 20, 25)
    np.testing.assert_allclose(table[:20], [float(shape(jnp.int32(i))) for i in range(20)], atol=1e-7)
    assert not table[20:].any()
    with pytest.raises(ValueError, match="a table of 19 for 20"):
        trials.schedule_table(shape, 20, 19)


def test_trees_of_other_leaves_or_larger_ones_are_refused():
    wide = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, adapter(0, R)))
    with pytest.raises(UserError, match="run them separately"):
        trials.widen(adapter(0, WIDE), wide)
    with pytest.raises(UserError, match="other leaves"):
        trials.widen({"adapters": {"v": adapter(0, R)["adapters"]["w"]}}, wide)


def test_warmup_as_a_fraction_of_the_steps():
    """HF's Trainer: ceil(0.06 * 688) = 42 steps up, then down."""
    shape = make_shape(ScheduleConfig("linear", warmup_fraction=0.06), 688)
    expected = optax.join_schedules([optax.linear_schedule(0, 1, 42), optax.linear_schedule(1, 0, 646)], [42])
    steps = [*range(50), *range(50, 688, 11), 687]
    np.testing.assert_allclose([shape(i) for i in steps], [expected(i) for i in steps], atol=1e-6)
    with pytest.raises(UserError, match="set one of them to 0"):
        ScheduleConfig(warmup_steps=3, warmup_fraction=0.1)
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        ScheduleConfig(warmup_fraction=1.0)
