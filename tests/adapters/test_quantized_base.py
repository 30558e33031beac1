"""Adapters on a quantised base: as on the weights that the codes stand for, merged into them, or refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.adapters.leaves.merge import site_delta
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.ops.quantized import Quantized, dense_tree, quantize
from lowrank_jax.train.state import trainable_rules

SHAPE = LlamaConfig(
    vocab_size=64, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=32,
)  # fmt: skip
TWO = {"targets": ("query", "down"), "rank": 4}
METHODS = {
    "lora": [adapters.AdapterConfig("lora", **TWO)],
    "dora": [adapters.AdapterConfig("dora", **TWO)],
    "dora dropout": [adapters.AdapterConfig("dora", **TWO, dropout=0.3)],
}


@pytest.fixture(scope="module")
def model():
    return Llama(SHAPE)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, 64, (2, 12))


@pytest.fixture(scope="module", params=["nf4"])
def params(request, model, tokens):
    """The layers' kernels as codes."""
    flat = flatten(drawn(model, tokens)["params"])
    codes = jax.jit(lambda w: quantize(w, request.param))
    return unflatten({p: codes(x) if "/kernel" in p and p.startswith("layers") else x for p, x in flat.items()})


def variables_of(params, configs):
    """The plan and fresh adapters with some noise on them."""
    plan = adapters.make_plan(params, configs)
    made, rng = jax.jit(functools.partial(adapters.create, plan))(jax.random.key(2), params), np.random.default_rng(3)
    made["adapters"] = jax.tree.map(
        lambda x: np.asarray(x + 0.01 * rng.normal(size=x.shape), np.float32), made["adapters"]
    )
    return plan, {"params": params, **made}


# One that leaves the kernel alone and one that reads it, through the same two functions, whichever the kind.
@pytest.mark.parametrize(
    ("name", "params"),
    [("lora", "int8"), ("dora dropout", "nf4")],
    indirect=["params"],
)
def test_outputs_and_gradients_are_those_beside_the_weights(model, tokens, params, name):
    plan, variables = variables_of(params, METHODS[name])
    rngs = {"dropout": jax.random.key(4)} if "dropout" in name else None
    apply_fn = adapters.attach(model, plan)
    adapters.check(model, plan, variables, tokens)

    @jax.jit
    def value_and_grad(learnt, frozen):
        def loss(learnt):
            logits = apply_fn(combine(learnt, frozen), tokens, rngs=rngs)
            return jnp.mean(jnp.sin(logits))

        return jax.value_and_grad(loss)(learnt)

    learnt, frozen = partition(variables)
    whole = {**frozen, "params": jax.jit(dense_tree)(params)}
    (ours, our_grads), (theirs, their_grads) = value_and_grad(learnt, frozen), value_and_grad(learnt, whole)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    for path, grad in flatten(their_grads).items():
        size = float(np.abs(np.asarray(grad)).max())
        np.testing.assert_allclose(flatten(our_grads)[path], grad, atol=1e-3 * size + 1e-8, err_msg=path)
        assert size > 0, path


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_merge_gives_the_weights_with_the_update(params, name):
    plan, variables = variables_of(params, METHODS[name])
    whole = {**variables, "params": jax.jit(dense_tree)(params)}
    ours, theirs = flatten(adapters.merge(variables, plan)), flatten(adapters.merge(whole, plan))
    assert not any(isinstance(leaf, Quantized) for leaf in ours.values())
    for path, leaf in theirs.items():
        assert ours[path].dtype == leaf.dtype
        np.testing.assert_allclose(ours[path], leaf, atol=1e-6, err_msg=path)
    for site in plan.sites:
        np.testing.assert_allclose(site_delta(variables, plan, site), site_delta(whole, plan, site), atol=1e-6)


def test_a_merge_without_sites_leaves_no_codes(params):
    plan = adapters.make_plan(params, adapters.AdapterConfig("none"))
    merged = adapters.merge({"params": params}, plan)
    assert not any(isinstance(leaf, Quantized) for leaf in flatten(merged).values())


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_starts_that_factorise_the_kernel_are_refused(params, init):
    plan = adapters.make_plan(params, adapters.AdapterConfig("lora", rank=4, init=init))
    message = rf"adapter.init '{init}' starts from the published layers/attention/query.* base.quantize=none"
    with pytest.raises(UserError, match=message):
        adapters.create(plan, jax.random.key(0), params)
    with pytest.raises(UserError, match=message):
        adapters.residual(params, plan)


def test_kernels_are_not_trained_and_biases_may_be(params):
    flat = flatten({"params": params})
    for rules in ("full", ((".*/kernel", True), (".*", False))):
        with pytest.raises(UserError, match=r"cannot be trained; set base\.quantize=none"):
            partition({"params": params}, trainable_rules(rules))
    with_bias = unflatten({**flat, "params/layers/attention/query/bias": jnp.zeros((2, 96))})
    learnt, _ = partition(with_bias, trainable_rules("bitfit"))
    assert list(flatten(learnt)) == ["params/layers/attention/query/bias"]
