"""Fused kernels compute what separate ones do: outputs, adapters' gradients, and separating them again."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax import adapters
from lowrank_jax.adapters.fast import lora
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.layouts.fused import Fused
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.layers import Linear
from lowrank_jax.models.registry import get_model

CONFIG = dataclasses.replace(get_model("toy-llama"), head_dim=10, num_hidden_layers=3)  # grouped heads: k, v are narrow
MODEL = Llama(CONFIG)
GROUPS = MODEL.fused_groups()
TOKENS = np.random.default_rng(1).integers(0, 259, (2, 7))
PARAMS = drawn(MODEL, TOKENS)["params"]


def adapted(**config):
    """Plan and adapters of which no leaf is zero."""
    plan = adapters.make_plan(PARAMS, adapters.AdapterConfig(**config))
    return plan, moved(plan, 0.1)


def loss(apply_fn, params, rngs=None):
    def of(trained, scales):
        logits = apply_fn({"params": params, "adapters": trained, "scales": scales}, TOKENS, rngs=rngs)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], -1).mean()

    return jax.jit(jax.value_and_grad(of))


CASES = {
    "lora": dict(method="lora", targets=("all-linear",)),
    "ranks by pattern, parts without": dict(
        method="lora", targets=("query", "key", "up"), rank_pattern=(("key", 3),), scaling="rslora"
    ),
    "mora sharing": dict(method="mora", targets=("all-linear",), rank=4),
    "mora sharing on up": dict(method="mora", targets=("up",), rank=4),
    "mora rotation everywhere": dict(
        method="mora", targets=("all-linear",), rank=4, mora=adapters.MoraConfig(compression="rotation")
    ),
}


@functools.cache
def plain(case):
    """Loss and gradients of each kernel's own product, with what gives them."""
    plan, variables = adapted(**CASES[case])
    given = (variables["adapters"], variables["scales"])
    return plan, given, loss(adapters.attach(MODEL, plan), PARAMS)(*given)


@pytest.mark.parametrize(("case", "remat"), [*((case, "projections") for case in CASES), ("lora", "none")])
def test_fused_equals_plain(case, remat):
    plan, given, (want, want_grads) = plain(case)
    fast = MODEL.clone(fused=True, remat=remat)
    got, grads = loss(adapters.attach(fast, plan, GROUPS), Fused(GROUPS).apply(PARAMS))(*given)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for path, leaf in flatten(want_grads).items():
        assert np.abs(leaf).max() > 0
        np.testing.assert_allclose(flatten(grads)[path], leaf, atol=2e-5 * np.abs(leaf).max(), err_msg=path)


def test_a_rank_too_wide_to_be_joined_is_served_apart(monkeypatch):
    monkeypatch.setattr(lora, "JOINED_RANK", 8)  # three sites of 8 are 24
    test_fused_equals_plain("lora", "none")


def test_two_thin_products_serve_a_fused_kernel():
    """LoRA on q, k, v, gate, up, down and out: 4 branches of two products instead of 7."""
    plan, variables = adapted(**CASES["lora"])

    def products(model, groups, params):
        apply_fn = adapters.attach(model, plan, groups)
        program = jax.make_jaxpr(lambda v: apply_fn(v, TOKENS))({**variables, "params": params})
        return str(program).count("dot_general")

    plain, fused = products(MODEL, None, PARAMS), products(MODEL.clone(fused=True), GROUPS, Fused(GROUPS).apply(PARAMS))
    assert plain - fused == 3 * 3  # three kernels less: each a product of its own and two of its branch


def test_one_square_product_serves_gate_and_up():
    plan, variables = adapted(**CASES["mora sharing"])
    apply_fn = adapters.attach(MODEL.clone(fused=True), plan, GROUPS)
    program = jax.make_jaxpr(lambda v: apply_fn(v, TOKENS))({**variables, "params": Fused(GROUPS).apply(PARAMS)})
    plain = jax.make_jaxpr(lambda v: adapters.attach(MODEL, plan)(v, TOKENS))({**variables, "params": PARAMS})
    # Three kernels less, and one square; key and value are narrower than query here, so these stay apart.
    assert str(plain).count("dot_general") - str(program).count("dot_general") == 3 + 1


class Wide(nn.Module):
    """One fused kernel of two parts."""

    @nn.compact
    def __call__(self, x):
        return Linear(8, name="both")(x)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_frozen_product_stands_apart_where_the_update_is_narrow(grouped):
    """A barrier at what the frozen product wrote for MoRA by groups, and none for LoRA, whose update cuBLAS adds."""
    names = ("left", "right") if grouped else ("both",)
    x = jnp.ones((3, 12))
    params = {name: {"kernel": jnp.ones((12, 8 // len(names)))} for name in names}
    groups = {"both": (("left", 4), ("right", 4))} if grouped else None

    def barriers(**config):
        plan = adapters.make_plan(params, adapters.AdapterConfig(targets=names, rank=1, **config))
        values = {**adapters.create(plan, jax.random.key(1)), "params": Fused(groups or {}).apply(params)}
        program = jax.jit(adapters.attach(Wide(), plan, groups)).lower(values, x).as_text()
        return sum("optimization_barrier" in line and "tensor<3x8xf32>" in line for line in program.splitlines())

    assert barriers(method="mora") == barriers(method="mora", mora=adapters.MoraConfig(compression="type4")) == 1
    assert barriers(method="lora") == 0


def test_one_mask_drops_the_input_of_a_fused_kernel():
    """The branch's input is dropped at the rate and scaled up: its mean over keys is that without dropout."""
    groups = {"both": (("left", 4), ("right", 4))}
    x = jax.random.normal(jax.random.key(0), (1, 6))
    params = {name: {"kernel": jnp.zeros((6, 4))} for name in ("left", "right")}
    plan = adapters.make_plan(params, adapters.AdapterConfig(targets=("left", "right"), rank=4, dropout=0.5))
    made = adapters.create(plan, jax.random.key(1))
    ones = jax.tree.map(jnp.ones_like, made["adapters"])
    apply_fn = adapters.attach(Wide(), plan, groups)
    values = {**made, "adapters": ones, "params": Fused(groups).apply(params)}
    keys = jax.random.split(jax.random.key(2), 4096)
    each = jax.jit(jax.vmap(lambda key: apply_fn(values, x, rngs={"dropout": key})))(keys)
    plain = apply_fn(values, x)
    assert len(np.unique(each[:, 0, 0])) > 32  # of 2^6 masks
    np.testing.assert_allclose(each[:, :, :4], each[:, :, 4:])
    np.testing.assert_allclose(each.mean(0), plain, atol=0.05 * float(each.std()) * 3)


def test_separate_is_the_inverse():
    back = Fused(GROUPS).undo(Fused(GROUPS).apply(PARAMS))
    assert flatten(back).keys() == flatten(PARAMS).keys()
    jax.tree.map(np.testing.assert_array_equal, back, PARAMS)


def test_shapes_fuse_as_arrays_do():
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    want = {path: leaf.shape for path, leaf in flatten(Fused(GROUPS).apply(PARAMS)).items()}
    assert {path: leaf.shape for path, leaf in flatten(Fused(GROUPS).apply(shapes)).items()} == want


def test_refusals():
    plan = adapters.make_plan(PARAMS, adapters.AdapterConfig("dora", targets=("query",)))
    with pytest.raises(UserError, match="dora at layers/attention/query reads that kernel alone"):
        adapters.attach(MODEL.clone(fused=True), plan, GROUPS)
    two = [adapters.AdapterConfig(targets=(name,), dropout=rate) for name, rate in (("query", 0.1), ("key", 0.0))]
    with pytest.raises(UserError, match="unlike dropout rates"):
        adapters.attach(MODEL.clone(fused=True), adapters.make_plan(PARAMS, two), GROUPS)
    trained = {path: leaf for path, leaf in flatten(PARAMS).items() if not path.endswith("query/kernel")}
    with pytest.raises(UserError, match="no frozen layers/attention/query/kernel"):
        Fused(GROUPS).apply({"layers": {"attention": {}}} | trained)
