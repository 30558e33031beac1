"""The step: what it trains, what it leaves alone, what it costs in memory, and the optimizer it equals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, nbytes, partition
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.models.registry import get_model
from lowrank_jax.train.optimizer import OptimizerConfig, check_multipliers, decay_mask, make_optimizer
from lowrank_jax.train.schedule import ScheduleConfig, make_shape
from lowrank_jax.train.state import init_state, trainable_rules
from lowrank_jax.train.step import make_step

TARGETS = ("query", "down")


def shapes_of(make):
    """What `make` returns, as shapes."""
    return functools.partial(jax.eval_shape, make)


@functools.cache
def setup(method="lora", trainable="adapters", optimizer=OptimizerConfig(learning_rate=1e-2), accumulate=1, config=None,
          dropout=0.0, chunk_tokens=0, make=jax.jit, targets=TARGETS):  # fmt: skip
    """The jitted step, its state, frozen leaves and a batch; once for all tests of the same arguments.

    `make` is jax.jit, or `shapes_of` for a model of shapes alone.
    """
    model = Llama(config or get_model("toy-llama"))
    tokens = np.random.default_rng(1).integers(0, 256, (8, 16)).astype(np.int32)
    params = (drawn(model, tokens) if make is jax.jit else make(model.init)(jax.random.key(1), tokens))["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig(method=method, rank=2, targets=targets, dropout=dropout))
    variables = {"params": params, **make(lambda key: adapters.create(plan, key))(jax.random.key(2))}
    learnt, frozen = partition(variables, trainable_rules(trainable))
    tx = make_optimizer(optimizer)
    state = make(lambda tree: init_state(tree, tx, optimizer.learning_rate, seed=0))(learnt)
    objective = next_token_objective(adapters.attach(model, plan), chunk_tokens)
    step = make_step(objective, tx, make_shape(ScheduleConfig("constant"), 100), accumulate)
    weights = np.random.default_rng(0).integers(0, 2, tokens.shape).astype(np.float32)
    return jax.jit(step), state, frozen, {"tokens": tokens, "weights": weights}


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_only_adapters_move_and_the_loss_falls(method):
    step, state, frozen, batch = setup(method)
    before = flatten(frozen)
    losses = []
    for _ in range(20):
        state, metrics = step(state, frozen, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.2
    assert set(flatten(state.trainable)) == {p for p in flatten(state.trainable) if p.startswith("adapters/")}
    assert all(leaf is before[path] for path, leaf in flatten(frozen).items())
    assert all("adapters" in "/".join(str(k) for k in path) for path, leaf in
               jax.tree_util.tree_leaves_with_path(state.opt_state) if leaf.ndim)  # fmt: skip


def test_full_fine_tuning_equals_optax_adamw_on_the_whole_tree():
    """Our rate-free optimizer times the rate, against optax.adamw with its own clip and decay mask."""
    config = OptimizerConfig(learning_rate=3e-3, weight_decay=0.1, clip_norm=0.5)
    step, state, frozen, batch = setup("none", "full", config)
    objective = next_token_objective(adapters.attach(Llama(get_model("toy-llama")), adapters.make_plan(
        state.trainable["params"], adapters.AdapterConfig(method="none"))))  # fmt: skip
    reference = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(3e-3, weight_decay=0.1, mask=decay_mask))
    params, opt_state = state.trainable, reference.init(state.trainable)

    @jax.jit
    def reference_step(params, opt_state):
        grads = jax.grad(lambda p: (lambda loss, sums: loss / sums["weight"])(*objective(p, batch, None)))(params)
        updates, opt_state = reference.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for _ in range(5):
        state, _ = step(state, frozen, batch)
        params, opt_state = reference_step(params, opt_state)
    for path, leaf in flatten(state.trainable).items():
        np.testing.assert_allclose(leaf, flatten(params)[path], atol=3e-5, err_msg=path)


def test_lora_plus_is_one_step_with_two_rates():
    """Adam's first step is the rate in the direction of the gradient's sign, and decay pulls at the leaf's own rate."""
    plain = setup(optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.5))
    plus = setup(optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.5, multipliers=(("adapters/.*/b", 4.0),)))
    (one, _), (four, _) = (jax.jit(step)(state, frozen, batch) for step, state, frozen, batch in (plain, plus))
    start = flatten(plain[1].trainable)
    for path, leaf in flatten(four.trainable).items():
        factor = 4.0 if path.endswith("/b") else 1.0
        moved = np.asarray(flatten(one.trainable)[path] - start[path])
        np.testing.assert_allclose(leaf - start[path], factor * moved, atol=1e-7, err_msg=path)
        assert np.abs(moved).max() > 1e-3 or path.endswith("/a")  # A has no gradient yet, only decay
    # numpy: B starts at zero, so sign(g) * rate * 4 wherever there is a gradient
    moved = np.abs(np.asarray(flatten(four.trainable)["adapters/layers/attention/query/b"]))
    assert np.median(moved) == pytest.approx(4 * 1e-2, rel=1e-3)


def test_lora_plus_is_adamw_by_numpy_with_the_rate_of_each_leaf():
    """Three steps with moments and decay, without clipping: AdamW as published (Loshchilov & Hutter, algorithm 2)."""
    rate, ratio, decay, b1, b2, eps = 1e-2, 4.0, 0.5, 0.9, 0.95, 1e-6
    config = OptimizerConfig(rate, b1, b2, eps, decay, 0.0, multipliers=(("adapters/.*/b", ratio),))
    step, state, frozen, batch = setup(optimizer=config)
    objective = next_token_objective(adapters.attach(Llama(get_model("toy-llama")), adapters.make_plan(
        frozen["params"], adapters.AdapterConfig(method="lora", rank=2, targets=TARGETS))))  # fmt: skip

    @jax.jit
    def gradient(learnt):
        return jax.grad(lambda leaves: (lambda loss, sums: loss / sums["weight"])(
            *objective(combine(leaves, frozen), batch, None)))(learnt)  # fmt: skip

    weights = {path: np.asarray(leaf, np.float64) for path, leaf in flatten(state.trainable).items()}
    first, second = ({path: np.zeros_like(leaf) for path, leaf in weights.items()} for _ in range(2))
    for t in (1, 2, 3):
        for path, leaf in flatten(gradient(state.trainable)).items():
            g, lr = np.asarray(leaf, np.float64), rate * (ratio if path.endswith("/b") else 1.0)
            first[path] = b1 * first[path] + (1 - b1) * g
            second[path] = b2 * second[path] + (1 - b2) * g**2
            m, v = first[path] / (1 - b1**t), second[path] / (1 - b2**t)
            weights[path] -= lr * (m / (np.sqrt(v) + eps) + decay * weights[path])
        state, _ = step(state, frozen, batch)
        for path, leaf in flatten(state.trainable).items():
            np.testing.assert_allclose(leaf, weights[path], rtol=0, atol=2e-5, err_msg=f"{path}, step {t}")
    moved = {path.rpartition("/")[2]: np.abs(first[path]).max() for path in first}
    assert all(moved[name] > 0 for name in "ab")  # A too has a gradient, as B is no longer zero


def test_a_rate_for_a_leaf_that_nobody_trains_is_refused():
    _, state, *_ = setup("mora")
    with pytest.raises(
        UserError, match=r"has 'adapters/\.\*/b', which matches no trained leaf \(those are called m\); LoRA"
    ):
        check_multipliers((("adapters/.*/b", 4.0),), state.trainable)
    check_multipliers((("adapters/.*/m", 4.0),), state.trainable)
    with pytest.raises(UserError, match=r"optimizer.multipliers: rule '\(' is no regular expression"):
        OptimizerConfig(multipliers=(("(", 2.0),))
    with pytest.raises(UserError, match=r"optimizer.multipliers\[0\]\[1\] is 0.0; it must be above 0"):
        OptimizerConfig(multipliers=((".*", 0.0),))


def test_accumulation_equals_the_whole_batch():
    """Also with weights spread unevenly over micro-batches: sums are added, not means."""
    whole, state, frozen, batch = setup()
    parts, *_ = setup(accumulate=4)
    a, metrics_a = whole(state, frozen, batch)
    b, metrics_b = parts(state, frozen, batch)
    np.testing.assert_allclose(metrics_a["loss"], metrics_b["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics_a["grad_norm"], metrics_b["grad_norm"], rtol=1e-5)
    assert metrics_a["tokens"] == metrics_b["tokens"]
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_chunked_loss_gives_the_same_step():
    plain, state, frozen, batch = setup()
    chunked, *_ = setup(chunk_tokens=24)
    a, _ = plain(state, frozen, batch)
    b, _ = chunked(state, frozen, batch)
    for x, y in zip(jax.tree.leaves(a.opt_state), jax.tree.leaves(b.opt_state), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_a_step_that_is_not_finite_leaves_the_state_alone():
    step, state, frozen, batch = setup()
    bad = combine(frozen)
    bad["params"]["final_norm"]["scale"] = frozen["params"]["final_norm"]["scale"].at[0].set(jnp.nan)
    after, metrics = step(state, bad, batch)
    assert not metrics["finite"]
    for x, y in zip(jax.tree.leaves(after.trainable), jax.tree.leaves(state.trainable), strict=True):
        np.testing.assert_array_equal(x, y)


def test_dropout_differs_by_step_and_repeats_by_seed():
    step, state, frozen, batch = setup(dropout=0.5)
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), state.trainable)  # B away from zero
    state = state._replace(trainable=moved)
    loss = float(step(state, frozen, batch)[1]["loss"])
    assert loss == float(step(state, frozen, batch)[1]["loss"])
    assert loss != float(step(state._replace(step=jnp.int32(1)), frozen, batch)[1]["loss"])


def test_vmap_over_trials_equals_separate_runs():
    """A leading trial axis on state and batch, one shared frozen tree: rates are arrays."""
    step, state, frozen, batch = setup()
    rates = (1e-3, 1e-2)
    states = [state._replace(learning_rate=jnp.float32(rate)) for rate in rates]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    together = jax.jit(jax.vmap(step, in_axes=(0, None, None)))
    stacked, _ = together(stacked, frozen, batch)
    for i, single in enumerate(states):
        single, _ = step(single, frozen, batch)
        for x, y in zip(jax.tree.leaves(stacked.trainable), jax.tree.leaves(single.trainable), strict=True):
            np.testing.assert_allclose(x[i], y, atol=1e-6)


WIDE = LlamaConfig(256, 256, 704, 24, 4, tie_word_embeddings=True, max_position_embeddings=64)


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_memory_contract_no_base_sized_temporary_or_output(method):
    """A 77 MB base under 16 tokens: W + dW, or a gradient of W, would add its size to temporaries or outputs."""
    step, state, frozen, batch = setup(method, config=WIDE, make=shapes_of, targets=("all-linear",))
    batch = jax.tree.map(lambda x: x[:2, :8], batch)
    compiled = jax.jit(step.__wrapped__, donate_argnums=0).lower(state, frozen, batch).compile()
    memory, base = compiled.memory_analysis(), nbytes(frozen["params"])
    assert memory.argument_size_in_bytes >= base
    assert memory.temp_size_in_bytes < base / 4
    assert memory.output_size_in_bytes <= nbytes(state) * 1.01 + 4096
    assert memory.alias_size_in_bytes >= nbytes(state.trainable)  # the old state's buffers are reused


def test_schedules_match_transformers():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    makers = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
    }
    for kind, maker in makers.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        reference, ours = maker(optimizer, 10, 50), make_shape(ScheduleConfig(kind, warmup_steps=10), 50)
        for step in range(50):
            assert float(ours(step)) == pytest.approx(reference.get_last_lr()[0], abs=1e-6)
            optimizer.step()
            reference.step()


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_warm_up_from_one_moves_at_its_first_step(kind):
    """(t + 1) / W to the peak, against t / W; after the warm-up the two are one schedule."""
    zero, one = (make_shape(ScheduleConfig(kind, warmup_steps=4, warmup_start=start), 12) for start in ("zero", "one"))
    np.testing.assert_allclose([zero(t) for t in range(4)], [0, 0.25, 0.5, 0.75], atol=1e-7)
    np.testing.assert_allclose([one(t) for t in range(4)], [0.25, 0.5, 0.75, 1], atol=1e-7)
    np.testing.assert_array_equal([one(t) for t in range(4, 12)], [zero(t) for t in range(4, 12)])
    single = make_shape(ScheduleConfig(kind, warmup_fraction=0.01, warmup_start="one"), 12)  # W = 1
    assert float(single(0)) == 1


def test_bad_schedule_optimizer_and_rules():
    with pytest.raises(UserError, match="warmup_steps is 10"):
        make_shape(ScheduleConfig(warmup_steps=10), 10)
    with pytest.raises(UserError, match=r"learning_rate is 0"):
        OptimizerConfig(learning_rate=0.0)
    with pytest.raises(UserError, match=r"clip_norm is -1.0; it must be at least 0"):
        OptimizerConfig(clip_norm=-1.0)
    with pytest.raises(UserError, match=r"b2 is 1.0; it must lie in \[0, 1\)"):
        OptimizerConfig(b2=1.0)
    with pytest.raises(UserError, match=r"unknown schedule.kind 'cosin'; did you mean cosine"):
        ScheduleConfig("cosin")
    with pytest.raises(UserError, match=r"unknown schedule.warmup_start 'on'; did you mean one"):
        ScheduleConfig(warmup_start="on")
    with pytest.raises(UserError, match=r"end_fraction is 2.0; it must lie in \[0, 1\]"):
        ScheduleConfig(end_fraction=2.0)
    with pytest.raises(UserError, match="did you mean bitfit"):
        trainable_rules("bitfits")
    with pytest.raises(UserError, match="nothing to train"):
        setup("none", "bitfit")  # a Llama has no biases
