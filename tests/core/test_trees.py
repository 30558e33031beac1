"""Splitting into trainable and frozen halves: inverses, masters, rule errors, and what optax then sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lowrank_jax.core import trees
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten


def variables(dtype=jnp.float32):
    rng = np.random.default_rng(0)

    def leaf(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    return {
        "params": {"layer": {"kernel": leaf(3, 4), "bias": leaf(4)}, "head": {"kernel": leaf(4, 2)}},
        "adapters": {"layer": {"a": leaf(3, 2), "b": leaf(2, 4)}},
        "scales": {"layer": {"scale": leaf(dtype=jnp.float32)}},
    }


RULES = {
    "adapters": trees.ADAPTERS_ONLY,
    "everything": trees.EVERYTHING,
    "bitfit": ((".*/bias", True), trees.FROZEN),
    "head and adapters": (("adapters/.*", True), ("params/head/.*", True), trees.FROZEN),
    "all but one": (("params/layer/kernel", False), (".*", True)),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_combine_inverts_partition(rules):
    tree = variables()
    trainable, frozen = trees.partition(tree, rules)
    assert not flatten(trainable).keys() & flatten(frozen).keys()
    for order in ((trainable, frozen), (frozen, trainable)):
        jax.tree.map(np.testing.assert_array_equal, trees.combine(*order), tree)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_partition_inverts_combine(rules):
    trainable, frozen = trees.partition(variables(), rules)
    again = trees.partition(trees.combine(trainable, frozen), rules)
    jax.tree.map(np.testing.assert_array_equal, again, (trainable, frozen))


def test_the_named_rules_choose_what_they_say():
    def names(rules):
        return set(flatten(trees.partition(variables(), rules)[0]))

    assert names(trees.ADAPTERS_ONLY) == {"adapters/layer/a", "adapters/layer/b"}
    assert names(trees.EVERYTHING) == set(flatten(variables())) - {"scales/layer/scale"}
    assert names(RULES["bitfit"]) == {"params/layer/bias"}


def test_masters_are_float32_and_the_frozen_half_is_untouched():
    tree = variables(jnp.bfloat16)
    trainable, frozen = trees.partition(tree)
    assert {leaf.dtype for leaf in jax.tree.leaves(trainable)} == {jnp.dtype(jnp.float32)}
    assert frozen["params"]["layer"]["kernel"] is tree["params"]["layer"]["kernel"]
    np.testing.assert_array_equal(trainable["adapters"]["layer"]["a"], tree["adapters"]["layer"]["a"])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_donating_the_trainable_half_keeps_the_callers_arrays(dtype):
    """A step donates it: an alias of `variables` would be deleted under the caller's hands."""
    mesh = jax.make_mesh((len(jax.devices()),), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    tree = {"adapters": {"a": jax.device_put(jnp.arange(64).astype(dtype), sharding)}}
    trainable, _ = trees.partition(tree)
    assert trainable["adapters"]["a"].sharding == sharding
    jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(trainable)
    assert trainable["adapters"]["a"].is_deleted()
    np.testing.assert_array_equal(tree["adapters"]["a"], np.arange(64))


def test_partition_of_shapes_keeps_shapes_and_shardings():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {"adapters": {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16, sharding=sharding)}, "n": jnp.zeros(1)}
    trainable, _ = trees.partition(tree)
    leaf = trainable["adapters"]["a"]
    assert (leaf.shape, leaf.dtype, leaf.sharding) == ((2, 3), jnp.float32, sharding)


def test_integers_are_not_cast():
    trainable, _ = trees.partition({"adapters": {"ids": jnp.arange(3)}})
    assert trainable["adapters"]["ids"].dtype == jnp.int32
    assert trees.cast({"ids": jnp.arange(3)}, jnp.bfloat16)["ids"].dtype == jnp.int32


def test_a_path_without_a_rule_is_named():
    with pytest.raises(UserError, match="no trainable rule matches 'params/head/kernel'"):
        trees.partition(variables(), (("adapters/.*", True), ("params/layer/.*", False)))


@pytest.mark.parametrize("rules", [(trees.FROZEN,), (("adaptors/.*", True), trees.FROZEN)])
def test_nothing_to_train_is_an_error(rules):
    with pytest.raises(UserError, match="nothing to train"):
        trees.partition(variables(), rules)


def test_combine_refuses_overlap():
    with pytest.raises(ValueError, match="params/layer/bias"):
        trees.combine({"params": {"layer": {"bias": 1}}}, {"params": {"layer": {"bias": 2}}})


@pytest.mark.parametrize("swap", [False, True])
def test_combine_refuses_a_leaf_over_a_branch(swap):
    pair = ({"params": {"layer": 1}}, {"params": {"layer": {"bias": 2}}})
    with pytest.raises((TypeError, ValueError)):
        trees.combine(*(pair[::-1] if swap else pair))


def test_optax_sees_the_trainable_half_only():
    """Frozen leaves neither move nor weigh in the global norm, and have no moments."""
    tree = variables()
    trainable, frozen = trees.partition(tree)
    tx = optax.chain(optax.clip_by_global_norm(1e-3), optax.adamw(1.0, weight_decay=0.1))
    opt_state = jax.jit(tx.init)(trainable)
    moments = [leaf for leaf in jax.tree.leaves(opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * trees.count(trainable)

    def loss(trainable):
        v = trees.combine(trainable, frozen)
        kernel = v["params"]["layer"]["kernel"] + v["adapters"]["layer"]["a"] @ v["adapters"]["layer"]["b"]
        return (kernel**2).sum()

    grads = jax.jit(jax.grad(loss))(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure(trainable)
    updates, _ = jax.jit(tx.update)(grads, opt_state, trainable)
    moved = trees.combine(jax.jit(optax.apply_updates)(trainable, updates), frozen)
    for path, leaf in flatten(moved).items():
        assert bool((leaf == flatten(tree)[path]).all()) == (not path.startswith("adapters/")), path


def test_bfloat16_weights_need_masters():
    """Why masters: an update of 1e-4 of a weight is lost in bfloat16."""
    one = jnp.ones((), jnp.bfloat16)
    assert one + jnp.bfloat16(1e-3) == one
    assert trees.as_master(one) + 1e-3 != trees.as_master(one)


def test_count_and_bytes():
    tree = {"a": jnp.zeros((3, 4), jnp.bfloat16), "b": {"c": jax.ShapeDtypeStruct((5,), jnp.float32)}}
    assert trees.count(tree) == 17
    assert trees.nbytes(tree) == 12 * 2 + 5 * 4
    assert trees.count({}) == trees.nbytes({}) == 0


def test_partition_traces_under_jit():
    """The step partitions and combines inside jit: nothing may depend on values."""
    tree = variables(jnp.bfloat16)
    out = jax.jit(lambda v: trees.combine(*trees.partition(v)))(tree)
    assert out["adapters"]["layer"]["a"].dtype == jnp.float32
    assert out["params"]["head"]["kernel"].dtype == jnp.bfloat16
