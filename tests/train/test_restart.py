"""Merges by NumPy: kernels, groupings, moments, rates; and what a merge may hold in memory."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.adapters import AdapterConfig, MoraConfig, create, make_plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import nbytes, partition
from lowrank_jax.layouts.run_time import layout_of
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh
from lowrank_jax.sharding.rules import state_shardings, tree_shardings
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.restart import RestartConfig, check_restart, cycling, make_merge
from lowrank_jax.train.rewarm import make_restart_shape
from lowrank_jax.train.schedule import ScheduleConfig
from lowrank_jax.train.state import init_state

LAYERS, WIDE, OUT, SIZE = 3, 10, 11, 4  # sqrt(21) = 4.58 by floor: a square of 4 divides neither side
GROUPS = {"qkv": (("query", OUT), ("value", OUT))}
RULES = (("adapters/.*", True), ("params/norm/.*", True), (".*", False))


def params(dtype=np.float32, layers=LAYERS, wide=WIDE, out=OUT):
    rng = np.random.default_rng(0)
    kernels = {name: {"kernel": rng.normal(size=(layers, wide, out)).astype(dtype)} for name in ("query", "value")}
    return {"layers": kernels, "norm": {"scale": np.ones(wide, np.float32)}}


def plan_of(tree, groups="code", rank=1):
    both = [
        AdapterConfig("lora", rank + 1, alpha=6.0, targets=("query",)),
        AdapterConfig("mora", rank, targets=("value",), mora=MoraConfig(rounding="floor")),
    ]
    return cycling(make_plan(tree, both), groups)


def groups_of(prefix="layers"):
    parts = tuple((f"{prefix}/{member}", columns) for member, columns in GROUPS["qkv"])
    return {f"{prefix}/qkv": parts}


def begun(plan, tree, config, seed=0):
    """(state with every trained leaf and moment random, frozen)."""
    rng, optimizer = np.random.default_rng(1), make_optimizer(OptimizerConfig(), apart=True)
    trainable, frozen = partition({"params": jax.tree.map(jnp.asarray, tree), **create(plan, jax.random.key(3))}, RULES)
    state = init_state(trainable, optimizer, 1e-3, seed)._replace(step=jnp.int32(config.every))
    noisy = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype) if x.ndim else x + 5, state[1:3])
    return state._replace(trainable=noisy[0], opt_state=noisy[1]), frozen, optimizer


def by_numpy(m, number):
    """The update of one square by the official code's grouping 1 to 4, entry by entry."""
    owner = lambda length: [i for i, part in enumerate(np.array_split(range(length), SIZE)) for _ in part]  # noqa: E731
    wrapped = -(-WIDE // SIZE) * SIZE
    reads = [(i % WIDE, i % SIZE) for i in range(wrapped)] if number in (1, 4) else [*enumerate(owner(WIDE))]
    writes = [i % SIZE for i in range(OUT)] if number in (1, 3) else owner(OUT)
    delta = np.zeros((WIDE, OUT))
    for i, row in reads:
        delta[i] += m[row][writes]
    return delta


@pytest.mark.parametrize("layout", ["stacked", "fused", "unstacked"])
def test_merges_add_each_update_once_and_begin_anew(layout):
    """Four merges through the code's four groupings: kernels, squares, moments and what is not merged."""
    config, tree = RestartConfig(every=2, reset="all", groups="code", warmup_steps=0), params()
    plan = plan_of(tree)
    groups = groups_of() if layout != "stacked" else {}
    form = layout_of(groups, unrolled=layout == "unstacked")
    state, frozen, optimizer = begun(plan, tree, config)
    frozen["params"] = form.apply(frozen["params"])
    merge = (
        make_merge(plan, config, groups, optimizer.init).lower(state, frozen).compile()
    )  # one program for all groupings
    expected = {name: tree["layers"][name]["kernel"].astype(np.float64) for name in ("query", "value")}
    seen = []
    for number in (1, 2, 3, 4, 1):
        rng = np.random.default_rng(number)
        leaves = jax.tree.map(lambda x, rng=rng: rng.normal(size=x.shape).astype("f4"), state.trainable["adapters"])
        query, m = leaves["layers"]["query"], leaves["layers"]["value"]["m"]
        expected["query"] += 6.0 / 2 * np.einsum("ldr,lrn->ldn", query["a"], query["b"])
        expected["value"] += np.stack([by_numpy(one, number) for one in m])
        kept = np.asarray(state.trainable["params"]["norm"]["scale"]), jax.device_get(state.opt_state[1][0]["kept"])
        state = state._replace(trainable={**state.trainable, "adapters": jax.tree.map(jnp.asarray, leaves)})
        state, frozen = merge(state, frozen)
        found = form.undo(frozen["params"])["layers"]
        for name in expected:
            np.testing.assert_allclose(found[name]["kernel"], expected[name], rtol=0, atol=2e-5)
        assert frozen["scales"]["layers"]["value"]["group"].tolist() == [number % 4] * LAYERS
        fresh = state.trainable["adapters"]["layers"]
        assert not np.any(fresh["query"]["b"])
        assert not np.any(fresh["value"]["m"])
        assert 0.9 / math.sqrt(WIDE) < np.abs(fresh["query"]["a"]).max() <= 1 / math.sqrt(WIDE)
        seen.append(np.asarray(fresh["query"]["a"]))
        np.testing.assert_array_equal(kept[0], state.trainable["params"]["norm"]["scale"])
        inner = state.opt_state[1][0]
        jax.tree.map(np.testing.assert_array_equal, kept[1], jax.device_get(inner["kept"]))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(inner["merged"]))  # counts too
        state = state._replace(step=state.step + config.every)
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(seen))  # each merge draws its own


def by_algorithm(m, kind, wide, out):
    """The update of the paper's algorithm (appendix B) for sides that the square divides: its two kinds of groups.

    Kind 0 sums the rows of x.reshape(wide / size, size), and tiles; kind 1 the columns of x.reshape(size, wide / size),
    and repeats each.
    """
    size, x = len(m), np.eye(wide)
    if kind == 0:
        return np.tile(x.reshape(wide, wide // size, size).sum(1) @ m, out // size)
    return np.repeat(x.reshape(wide, size, wide // size).sum(2) @ m, out // size, axis=1)


def test_the_papers_two_groupings_alternate():
    """Four merges by groups="paper": kinds 0, 1, 0, 1, each as its algorithm has it, and a rank above one square's."""
    wide, out = 12, 24  # sqrt(36) = 6: a square that divides both sides
    config, tree = RestartConfig(every=2, groups="paper", warmup_steps=0), params(wide=wide, out=out)
    square = AdapterConfig("mora", 1, targets=("value",), mora=MoraConfig(rounding="floor"))
    plan = cycling(make_plan(tree, square), "paper")
    state, frozen, optimizer = begun(plan, tree, config)
    merge = make_merge(plan, config, {}, optimizer.init).lower(state, frozen).compile()
    expected = tree["layers"]["value"]["kernel"].astype(np.float64)
    for kind in (0, 1, 0, 1):
        adapters = state.trainable["adapters"]
        m = np.random.default_rng(kind).normal(size=adapters["layers"]["value"]["m"].shape).astype("f4")
        expected = expected + np.stack([by_algorithm(one, kind, wide, out) for one in m])
        state = state._replace(trainable={**state.trainable, "adapters": {"layers": {"value": {"m": jnp.asarray(m)}}}})
        state, frozen = merge(state, frozen)
        found = np.asarray(frozen["params"]["layers"]["value"]["kernel"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        state = state._replace(step=state.step + config.every)
    size = m.shape[-1]
    ranks = np.linalg.matrix_rank(found - tree["layers"]["value"]["kernel"], tol=1e-3)
    assert (wide % size, out % size) == (0, 0)
    assert ranks.min() > size


@pytest.mark.parametrize(("reset", "share"), [("magnitude", 0.0), ("random", 0.0), ("none", 0.0)])
def test_moments_are_pruned_matrix_by_matrix(reset, share):
    """Of the merged adapters alone; nothing else of the optimizer's state changes, counts included."""
    config, tree = RestartConfig(every=2, reset=reset, prune=share, warmup_steps=0), params(layers=2, wide=60, out=70)
    plan = plan_of(tree, "fixed", rank=9)
    state, frozen, optimizer = begun(plan, tree, config)
    before = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_leaves_with_path(state.opt_state)}
    state, _ = make_merge(plan, config, {}, optimizer.init)(state, frozen)
    pruned = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        old, name = before[jax.tree_util.keystr(path)], jax.tree_util.keystr(path)
        if reset == "none" or "adapters" not in name or leaf.ndim < 3:
            np.testing.assert_array_equal(leaf, old)
            continue
        pruned += 1
        for now, then in zip(np.asarray(leaf), old, strict=True):
            if reset == "magnitude":
                least = np.quantile(np.abs(then), share or 0.99)
                np.testing.assert_array_equal(now, np.where(np.abs(then) > least, then, 0))
            else:
                assert np.all((now == then) | (now == 0))
                assert np.mean(now == then) < 0.01
    assert pruned == (0 if reset == "none" else 6)  # mu and nu of A, B and M


def test_a_bfloat16_kernel_is_the_exact_sum_rounded_once():
    config, tree = RestartConfig(every=2, warmup_steps=0), params(jnp.bfloat16)
    plan = plan_of(tree)
    state, frozen, optimizer = begun(plan, tree, config)
    leaf = jax.device_get(state.trainable["adapters"]["layers"]["query"])
    exact = np.asarray(tree["layers"]["query"]["kernel"], np.float64)
    exact += 3.0 * np.einsum("ldr,lrn->ldn", leaf["a"].astype("f8"), leaf["b"].astype("f8"))
    _, frozen = make_merge(plan, config, {}, optimizer.init)(state, frozen)
    found = frozen["params"]["layers"]["query"]["kernel"]
    assert found.dtype == jnp.bfloat16
    assert np.abs(np.asarray(found, np.float64) - exact).max() <= np.abs(exact).max() * 2**-8


@pytest.mark.parametrize("layout", ["joined", "sharded"])
def test_a_merge_holds_one_base(layout):
    """All that is returned lies in what was given, and no temporary is as large as the smallest stack of kernels."""
    joined = layout == "joined"
    tree = params(layers=4 if joined else 16, wide=96, out=128)
    groups = {"layers/qkv": (("layers/query", 128), ("layers/value", 128))} if joined else {}
    config, plan = RestartConfig(every=2, warmup_steps=0), plan_of(tree, "paper", rank=2)
    state, frozen, optimizer = begun(plan, tree, config)
    frozen["params"] = layout_of(groups, joined).apply(frozen["params"])
    places = None
    if layout == "sharded":
        mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
        places = (tree_shardings(state.trainable, mesh), tree_shardings(frozen, mesh))
        places = (state_shardings(state, places[0], mesh), places[1])
        state, frozen = jax.device_put((state, frozen), places)
    merge = make_merge(plan, config, groups, optimizer.init, places)
    memory = merge.lower(state, frozen).compile().memory_analysis()
    parts = 4 if places else 1
    stack = nbytes(tree["layers"]["query"]) / parts
    assert memory.alias_size_in_bytes > 0.999 * memory.output_size_in_bytes - 4096
    assert memory.output_size_in_bytes > nbytes(frozen["params"]) / parts
    assert memory.temp_size_in_bytes < stack, (memory.temp_size_in_bytes, stack)


def test_the_jagged_cosine():
    """The formula of the official code, step by step, in Python."""
    total, every, first, again, end = 23, 6, 3, 2, 0.1
    config = ScheduleConfig("cosine", warmup_steps=first, end_fraction=end)
    shape = jax.jit(make_restart_shape(config, RestartConfig(every=every, warmup_steps=again), total))
    length = 24

    def cosine(s):
        return end + (1 - end) * (1 + math.cos(math.pi * (s - first) / (length - first))) / 2

    for s in range(total):
        since = s % every
        expected = s / first if s < first else cosine(s)
        if s >= every and since < again:
            expected = since / again * cosine(every * (s // every) + again)
        assert float(shape(s)) == pytest.approx(expected, abs=1e-6), s


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_the_same_schedule_again_from_the_rate_reached(kind):
    total, every, first, again = 22, 6, 3, 2
    config = ScheduleConfig(kind, warmup_steps=first, end_fraction=0.1)
    restart = RestartConfig(every=every, warmup_steps=again, schedule="restart")
    shape = jax.jit(make_restart_shape(config, restart, total))
    share = {"constant": lambda f: 1.0, "linear": lambda f: 1 - 0.9 * f}.get(
        kind, lambda f: 0.1 + 0.9 * (1 + math.cos(math.pi * f)) / 2
    )
    base = 1.0
    for begin in range(0, total, every):
        warm = first if begin == 0 else again

        def rate(s, begin=begin, warm=warm, base=base):
            return base * (s / warm if s < warm else share((s - warm) / (total - begin - warm)))

        for s in range(min(every, total - begin)):
            assert float(shape(begin + s)) == pytest.approx(rate(s), abs=1e-6), (begin, s)
        base = rate(every) if begin + every < total else base


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: RestartConfig(reset="random"), "restart.reset is set and nothing restarts"),
        (lambda: RestartConfig(every=9, prune=0.5), "restart.prune is not read by restart.reset=all"),
        (lambda: RestartConfig(every=50), "restart.warmup_steps is 50 and restart.every 50"),
        (lambda: refused(AdapterConfig("dora", 2)), "dora with init 'kaiming_uniform' at layers/query starts from the"),
        (lambda: refused(AdapterConfig("lora", 2, init="pissa")), "lora with init 'pissa' at layers/query starts"),
        (lambda: refused(AdapterConfig("lora", 2), trained=params()), "layers/query/kernel is trained; freeze it"),
        (lambda: refused(AdapterConfig("lora", 2), steps=4), "restart.every is 4 and the run has 4 steps"),
        (lambda: cycling(make_plan(params(), mora("rotation")), "paper"), "adapter.mora.compression is 'rotation'"),
        (lambda: rates(ScheduleConfig("linear")), "restart.schedule=jagged is a cosine, and schedule.kind is 'linear'"),
        (lambda: rates(ScheduleConfig("cosine", warmup_steps=4)), "the warm-up takes 4 steps and the first merge"),
    ],
)
def test_what_cannot_restart_is_refused(change, words):
    with pytest.raises(UserError) as error:
        change()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def refused(config, steps=9, trained=None):
    tree = params()
    check_restart(RestartConfig(every=4, warmup_steps=0), make_plan(tree, config), tree, trained or {}, steps)


def mora(name):
    return AdapterConfig("mora", 1, mora=MoraConfig(name))


def rates(schedule):
    return make_restart_shape(schedule, RestartConfig(every=4, warmup_steps=0), 9)
