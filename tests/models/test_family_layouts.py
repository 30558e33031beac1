"""The families' models in a run's layouts: fused, unrolled, in segments, quantised, sharded, rematerialised."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from toys import drawn, jitted

from lowrank_jax import adapters
from lowrank_jax.bases.base import param_shapes
from lowrank_jax.bases.codes import quantize_leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.layouts.fused import Fused
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.layouts.unstacked import Unstacked, reading
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.llama_config import AttentionKind, LayerKinds, LlamaConfig
from lowrank_jax.sharding.rules import shard_tree

SHAPE = dict(
    vocab_size=61, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32,
)  # fmt: skip
KINDS = {  # the flags of all families, in three models
    "biases": LlamaConfig(
        **SHAPE, attention=AttentionKind(qkv_bias=True, out_bias=True, qk_norm="head"), mlp_bias=True,
        layers=LayerKinds(5, (False, True, True)), tie_word_embeddings=True,
    ),
    "both norms": LlamaConfig(
        **SHAPE, attention=AttentionKind(softcap=3.0, query_scalar=20.0, qk_norm="head"), norms="both",
        norm_offset=True, scale_embedding=True, logit_softcap=5.0, hidden_act="gelu_pytorch_tanh",
        layers=LayerKinds(5, (True, False, True), local_theta=1e3, rotated=(True, True, False)),
    ),
    "norms behind": LlamaConfig(
        **SHAPE, attention=AttentionKind(qk_norm="width", query_growth=(0.5, 4)), norms="after",
        partial_rotary_factor=0.5, layers=LayerKinds(5),
    ),
}  # fmt: skip
TOKENS = np.random.default_rng(1).integers(0, 61, (2, 11))


@pytest.fixture(scope="module", params=KINDS)
def toy(request):
    """(config, params with uneven norms, plan, adapters with scales, loss and gradients without a layout)."""
    config = KINDS[request.param]
    params, rng = dict(flatten(drawn(Llama(config), TOKENS)["params"])), np.random.default_rng(0)
    for path, leaf in params.items():
        spread = 0.3 if path.endswith(("bias", "scale", "offset")) else 0.1
        params[path] = np.asarray(leaf + spread * rng.normal(size=leaf.shape), np.float32)
    params = unflatten(params)
    plan = adapters.make_plan(params, adapters.AdapterConfig(targets=("all-linear",), rank=2))
    made = jax.jit(functools.partial(adapters.create, plan))(jax.random.key(2))
    made["adapters"] = jax.tree.map(
        lambda leaf: np.asarray(0.1 * rng.normal(size=leaf.shape), np.float32), made["adapters"]
    )
    want = loss(adapters.attach(Llama(config), plan), params, made)
    return config, params, plan, made, want


def loss(apply_fn, params, made):
    def of(trained):
        logits = apply_fn({"params": params, **made, "adapters": trained}, TOKENS)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], -1).mean()

    return jax.jit(jax.value_and_grad(of))(made["adapters"])


def same(got, want, bound=5e-5):
    np.testing.assert_allclose(got[0], want[0], rtol=bound)
    for path, leaf in flatten(want[1]).items():
        assert np.abs(leaf).max() > 0
        np.testing.assert_allclose(flatten(got[1])[path], leaf, atol=bound * np.abs(leaf).max(), err_msg=path)


def test_the_module_has_the_parameters_of_the_table(toy):
    config = toy[0]
    shapes = jax.eval_shape(Llama(config).init, jax.random.key(0), TOKENS)["params"]
    assert param_shapes(config) == {path: leaf.shape for path, leaf in flatten(shapes).items()}
    assert {path for path in param_shapes(config) if path.endswith(("norm/scale", "norm/offset"))} >= {
        f"layers/attention/{name}_norm/{'offset' if config.norm_offset else 'scale'}" for name in ("query", "key")
    }


def test_all_layers_are_one_scan(toy):
    """Whatever differs between layers is an input of the scan: no layer is traced by itself."""
    config, params, *_ = toy
    program = jax.make_jaxpr(Llama(config).apply)({"params": params}, TOKENS)
    assert [e.params["length"] for e in program.eqns if e.primitive.name == "scan"] == [3]
    assert str(program).count(" dot_general[") == 7 + 2 + 1  # a layer's, attention's and the head's


def test_fused(toy):
    config, params, plan, made, want = toy
    model = Llama(config, fused=True)
    layout = Fused(model.fused_groups())
    fused = layout.apply(params)
    same(loss(adapters.attach(model, plan, model.fused_groups()), fused, made), want)
    for path, leaf in flatten(layout.undo(fused)).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path])
    assert ("layers/attention/qkv/bias" in flatten(fused)) == config.attention.qkv_bias


def test_unrolled_and_rematerialised(toy):
    config, params, plan, made, want = toy
    apply_fn = reading(adapters.attach(Llama(config, scan_unroll=3, remat="projections"), plan))
    same(loss(apply_fn, Unstacked().apply(params), made), want)


def test_segments(toy):
    config, params, *_ = toy
    logits = jitted(Llama(config, cuts=(1,)))({"params": Segments((1,)).apply(params)}, TOKENS)
    np.testing.assert_allclose(logits, jitted(Llama(config))({"params": params}, TOKENS), rtol=1e-5, atol=1e-5)


def test_quantized(toy):
    config, params, *_ = toy
    kind = "int8" if config.mlp_bias else "nf4"
    codes = {path: quantize_leaf(path, leaf, kind, None) for path, leaf in flatten(params).items()}
    kept = {path for path, leaf in codes.items() if leaf is flatten(params)[path]}
    assert {path for path in codes if "layers/" in path and path.endswith("kernel")} == codes.keys() - kept
    plain, coded = (np.asarray(jitted(Llama(config))({"params": p}, TOKENS)) for p in (params, unflatten(codes)))
    assert 0 < np.abs(coded - plain).max() < (0.1 if kind == "int8" else 0.7) * np.abs(plain).max()


def test_sharded(toy):
    config, params, *_ = toy
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    placed = shard_tree({"params": params}, mesh)
    split = {path for path, leaf in flatten(placed).items() if not leaf.is_fully_replicated}
    assert {path for path in flatten(placed) if path.endswith("kernel")} <= split
    got, want = (jitted(Llama(config))(given, TOKENS) for given in (placed, {"params": params}))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_product_before_a_norm_is_saved_and_not_run_again():
    """Norms add no products to the backward pass: a policy that saves products also saves those that a norm reads."""

    def products(config, remat):
        model = Llama(config, remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
        gradient = jax.grad(lambda table, rest: model.apply({"params": {**rest, "embed": table}}, TOKENS).sum())
        return str(jax.make_jaxpr(gradient)(params["embed"], params)).count("dot_general")

    plain = LlamaConfig(**SHAPE)
    for config in (plain, KINDS["norms behind"], dataclasses.replace(KINDS["both norms"], norm_offset=False)):
        assert products(config, "projections") == products(plain, "projections")
    assert products(plain, "full") > products(plain, "projections")


def test_trained_biases_are_not_fused():
    config = KINDS["biases"]
    params = {path: np.zeros(shape, np.float32) for path, shape in param_shapes(config).items()}
    model = Llama(config, fused=True)
    frozen = unflatten({path: leaf for path, leaf in params.items() if not path.endswith("bias")})
    with pytest.raises(UserError, match="the biases of qkv are trained, and base"):
        model.apply({"params": Fused(model.fused_groups()).apply(frozen)}, TOKENS)
    some = unflatten({path: leaf for path, leaf in params.items() if not path.endswith("key/bias")})
    with pytest.raises(UserError, match="some parts of layers/attention/qkv alone have a frozen bias"):
        Fused(model.fused_groups()).apply(some)


@pytest.mark.parametrize("name", KINDS)
def test_types_never_promote_by_themselves(name):
    config = KINDS[name]
    params = {path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in param_shapes(config).items()}
    model, given = Llama(config, dtype=jnp.bfloat16, remat="projections"), {"params": unflatten(params)}
    with jax.numpy_dtype_promotion("strict"):
        logits, hidden = (
            jax.eval_shape(functools.partial(model.apply, method=m), given, TOKENS) for m in (None, "hidden")
        )
    assert (logits.dtype, hidden.dtype) == (jnp.float32, jnp.bfloat16)
