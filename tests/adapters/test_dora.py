"""DoRA against peft: forward with and without dropout, merged kernel, gradients, AdamW; and in a scanned model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from late import torch

from lowrank_jax.adapters import (
    AdapterConfig,
    attach,
    column_norms,
    create,
    dora,
    make_plan,
    merge,
    needs_params,
    unmerge,
)
from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.adapters.fast import dora as fast
from lowrank_jax.adapters.leaves.merge import site_delta
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import cast, combine, count, partition

CONFIG = AdapterConfig("dora", 2, alpha=6.0, targets=("all-linear",))
D_IN, D_OUT, RANK, ALPHA = 24, 40, 4, 12.0


def draw(seed=0):
    """x, W [in, out], A, B, m in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((5, D_IN), (D_IN, D_OUT), (D_IN, RANK), (RANK, D_OUT), (D_OUT,))
    return [rng.normal(size=shape) for shape in shapes]


def peft_layer(w, a, b, m, **options):
    import peft

    model = torch.nn.Sequential(torch.nn.Linear(*w.shape)).double()
    config = peft.LoraConfig(r=a.shape[1], lora_alpha=ALPHA, target_modules=["0"], use_dora=True, **options)
    layer = peft.get_peft_model(model, config).base_model.model.double()[0]
    with torch.no_grad():
        for parameter, value in (
            (layer.base_layer.weight, w.T),
            (layer.lora_A.default.weight, a.T),
            (layer.lora_B.default.weight, b.T),
            (layer.lora_magnitude_vector.default.weight, m),
        ):
            parameter.copy_(torch.as_tensor(np.ascontiguousarray(value)))
    return layer


def ours(leaf, w, bias, x, spec, scale, apply=dora.apply):
    product = x @ w
    leaf = dora.FAMILY.scale_leaf(leaf, scale)
    return apply(leaf, {"kernel": w, "product": product}, x, product + bias, spec)


@pytest.fixture(scope="module")
def variables(base):
    """model -> (plan, variables) with every leaf moved from its start."""

    @functools.cache
    def build(model, config=CONFIG):
        plan, rng = make_plan(base(model), config), np.random.default_rng(0)
        made = jax.jit(functools.partial(create, plan))(jax.random.key(1), base(model))
        made["adapters"] = jax.tree.map(
            lambda leaf: np.asarray(leaf + 0.2 * rng.normal(size=leaf.shape), np.float32), made["adapters"]
        )
        return plan, {"params": base(model), **made}

    return lambda *args: (lambda plan, made: (plan, dict(made)))(*build(*args))


# --- beside peft ---


@pytest.mark.parametrize("rslora", [False, True])
def test_forward_merge_and_gradients_equal_peft(rslora):
    x, w, a, b, m = draw()
    layer = peft_layer(w, a, b, m, use_rslora=rslora)
    theirs = layer(torch.tensor(x))
    (theirs**2).sum().backward()
    bias = layer.base_layer.bias.detach().numpy()
    config = AdapterConfig("dora", scaling="rslora" if rslora else "standard")
    spec = AdapterSpec(D_IN, D_OUT, RANK, ALPHA, config=config)
    scale = dora.FAMILY.scale(spec)
    with jax.enable_x64(True):
        leaf = {"a": jnp.asarray(a), "b": jnp.asarray(b), "m": jnp.asarray(m)}
        run = lambda leaf: ours(leaf, jnp.asarray(w), bias, jnp.asarray(x), spec, scale)  # noqa: E731
        np.testing.assert_allclose(run(leaf), theirs.detach().numpy(), rtol=1e-10, atol=1e-10)
        grads = jax.jit(jax.grad(lambda leaf: (run(leaf) ** 2).sum()))(leaf)
    for name, parameter in (
        ("a", layer.lora_A.default.weight),
        ("b", layer.lora_B.default.weight),
        ("m", layer.lora_magnitude_vector.default.weight),
    ):
        np.testing.assert_allclose(grads[name], parameter.grad.numpy().T, rtol=1e-9, atol=1e-9)
    layer.merge()
    merged = dora.fold(jnp.asarray(w), dora.FAMILY.scale_leaf(jax.tree.map(jnp.float32, leaf), scale), spec)
    np.testing.assert_allclose(merged, layer.base_layer.weight.detach().numpy().T, rtol=1e-5, atol=1e-5)


def test_dropout_falls_on_the_frozen_product_too():
    """As peft: y + (m / norm - 1) W x' + ..., x' the dropped input."""
    x, w, a, b, m = draw(1)
    layer = peft_layer(w, a, b, m, lora_dropout=0.5)
    kept = {}
    layer.lora_dropout.default.register_forward_hook(lambda module, args, out: kept.update(x=out.detach().numpy()))
    theirs = layer.train()(torch.tensor(x)).detach().numpy()
    spec, bias = AdapterSpec(D_IN, D_OUT, RANK, ALPHA), layer.base_layer.bias.detach().numpy()
    assert (kept["x"] == 0).any()
    with jax.enable_x64(True):
        leaf = {"a": jnp.asarray(a), "b": jnp.asarray(b), "m": jnp.asarray(m)}
        frozen = {"kernel": jnp.asarray(w), "product": kept["x"] @ w}
        scaled = dora.FAMILY.scale_leaf(leaf, ALPHA / RANK)
        for apply in (dora.apply, fast.apply):
            out = apply(scaled, frozen, jnp.asarray(kept["x"]), jnp.asarray(x @ w + bias), spec)
            np.testing.assert_allclose(out, theirs, rtol=1e-10, atol=1e-10)


def test_adamw_trajectory_equals_torch_and_peft():
    """A hundred steps, float64 on both sides."""
    x, w, a, _, _ = draw(2)
    target, b, m = np.random.default_rng(3).normal(size=(5, D_OUT)), np.zeros((RANK, D_OUT)), np.linalg.norm(w, axis=0)
    layer = peft_layer(w, a, b, m)
    bias = layer.base_layer.bias.detach().numpy()
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert len(trained) == 3
    adamw = torch.optim.AdamW(trained, 3e-3, (0.9, 0.999), 1e-8, 0.01)
    losses = []
    for _ in range(100):
        adamw.zero_grad()
        loss = ((layer(torch.tensor(x)) - torch.tensor(target)) ** 2).mean()
        loss.backward()
        adamw.step()
        losses.append(loss.item())
    spec = AdapterSpec(D_IN, D_OUT, RANK, ALPHA)
    with jax.enable_x64(True):
        tx = optax.adamw(3e-3, 0.9, 0.999, 1e-8, weight_decay=0.01)
        kernel, rows = jnp.asarray(w), jnp.asarray(x)

        def step(carry, _):
            leaf, state = carry
            objective = lambda leaf: ((ours(leaf, kernel, bias, rows, spec, ALPHA / RANK) - target) ** 2).mean()  # noqa: E731
            loss, grads = jax.value_and_grad(objective)(leaf)
            updates, state = tx.update(grads, state, leaf)
            return (optax.apply_updates(leaf, updates), state), loss

        leaf = jax.tree.map(jnp.asarray, {"a": a, "b": b, "m": m})
        (leaf, _), ours_losses = jax.jit(lambda c: jax.lax.scan(step, c, length=100))((leaf, tx.init(leaf)))
        np.testing.assert_allclose(ours_losses, losses, rtol=1e-9, atol=1e-9)
        magnitude = layer.lora_magnitude_vector.default.weight.detach().numpy()
        np.testing.assert_allclose(leaf["m"], magnitude, rtol=1e-9, atol=1e-9)
    assert losses[-1] < 0.8 * losses[0]


# --- the norm ---


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_norm_from_cross_terms_is_the_norm_of_the_sum(size):
    _, w, a, b, _ = draw()
    a = size * a
    norms = fast.column_norms(jnp.float32(w), {"a": jnp.float32(a), "b": jnp.float32(1.5 * b)})
    np.testing.assert_allclose(norms, np.linalg.norm(w + 1.5 * a @ b, axis=0), rtol=2e-6)


def test_norm_of_a_bfloat16_kernel_is_float32():
    _, w, a, b, _ = draw()
    norms = fast.column_norms(jnp.bfloat16(w), {"a": jnp.bfloat16(a), "b": jnp.bfloat16(b)})
    assert norms.dtype == jnp.float32
    rounded = [np.asarray(jnp.bfloat16(v), float) for v in (w, a, b)]
    np.testing.assert_allclose(norms, np.linalg.norm(rounded[0] + rounded[1] @ rounded[2], axis=0), rtol=1e-5)


def test_a_step_forms_no_second_kernel():
    """A B and W + A B would be a kernel's size; the largest other value here is r + batch rows of it."""
    spec, rows = AdapterSpec(256, 512, 2), 3
    shapes = [(256, 512), (256, 2), (2, 512), (512,), (rows, 256)]
    w, a, b, m, x = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)

    def run(a, b, m, w, x):
        return ours({"a": a, "b": b, "m": m}, w, 0, x, spec, 1.0, fast.apply).astype(jnp.float32).sum()

    jaxpr = jax.make_jaxpr(jax.grad(run, argnums=(0, 1, 2)))(a, b, m, w, x)
    from_products = [
        v.aval.shape for e in jaxpr.jaxpr.eqns if e.primitive.name in ("dot_general", "add", "sub") for v in e.outvars
    ]
    assert from_products
    assert all(np.prod(shape) < 256 * 512 / 8 for shape in from_products), from_products


def test_a_dead_output_stays_finite():
    w = np.ones((4, 3), np.float32)
    w[:, 0] = 0
    spec = AdapterSpec(4, 3, 1)
    leaf = jax.jit(dora.init, static_argnums=1)(jax.random.key(0), spec, w)
    assert float(leaf["m"][0]) == 0
    x = np.ones((2, 4), np.float32)
    for apply in (dora.apply, fast.apply):
        run = jax.jit(functools.partial(ours, spec=spec, scale=1.0, apply=apply))
        np.testing.assert_allclose(run(leaf, w, 0, x), x @ w, atol=1e-6)


# --- in a model ---


@pytest.mark.parametrize(("scanned", "dtype"), [(True, jnp.float32), (False, jnp.bfloat16)])
def test_identity_at_the_start(toy, base, plain, x, scanned, dtype):
    model = toy(scanned=scanned, dtype=dtype)
    plan = make_plan(base(model), CONFIG)
    made = jax.jit(functools.partial(create, plan))(jax.random.key(1), base(model))
    variables = {"params": base(model), **made}
    assert plan.parameters == count(variables["adapters"])
    out, expected = jax.jit(attach(model, plan))(variables, x), plain(model)({"params": base(model)}, x)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.astype(float), expected.astype(float), rtol=1e-5, atol=1e-5)


def test_branch_equals_merged(toy, variables, plain, x):
    model = toy(remat=True)
    plan, v = variables(model)
    branch = np.asarray(jax.jit(attach(model, plan))(v, x))
    np.testing.assert_allclose(branch, plain(model)({"params": merge(v, plan)}, x), rtol=2e-5, atol=2e-5)
    assert np.abs(branch - plain(model)({"params": v["params"]}, x)).max() > 1e-2


def test_a_bfloat16_model_is_near_its_float32_self(toy, variables, x):
    outs = []
    for dtype in (jnp.float32, jnp.bfloat16):
        model = toy(dtype=dtype)
        plan, v = variables(model)
        v["params"] = cast(v["params"], dtype)
        outs.append(np.asarray(jax.jit(attach(model, plan))(v, x), float))
    assert np.abs(outs[0] - outs[1]).max() < 0.05 * np.abs(outs[0]).max()


def test_unmerge_inverts_merge_given_the_norms(toy, variables):
    plan, v = variables(toy())
    merged = merge(v, plan)
    with pytest.raises(UserError, match="dora cannot be taken out of merged kernels alone; give unmerge the column_n"):
        unmerge({**v, "params": merged}, plan)
    restored = flatten(unmerge({**v, "params": merged}, plan, column_norms(v, plan)))
    for path, leaf in flatten(v["params"]).items():
        np.testing.assert_allclose(restored[path], leaf, atol=2e-6)
    deltas = site_delta(v, plan, plan.sites[0])
    path = f"{plan.sites[0].path}/kernel"
    np.testing.assert_allclose(deltas, flatten(merged)[path] - flatten(v["params"])[path], atol=1e-6)


def test_merged_columns_have_the_magnitude_as_norm(toy, variables):
    plan, v = variables(toy())
    flat, merged = flatten(v["adapters"]), flatten(merge(v, plan))
    for site in plan.sites:
        norms = np.linalg.norm(merged[f"{site.path}/kernel"], axis=-2)
        np.testing.assert_allclose(norms, np.abs(flat[f"{site.path}/m"]), rtol=1e-5)


def test_gradients_reach_every_layer_of_the_stack_and_the_adapters_alone(toy, variables, x):
    model = toy(remat=True)
    plan, v = variables(model)
    trainable, frozen = partition(v)
    apply_fn = attach(model, plan)
    grads = jax.jit(jax.grad(lambda t: (apply_fn(combine(t, frozen), x) ** 2).sum()))(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure({"adapters": v["adapters"]})
    for path, leaf in flatten(grads).items():
        assert (np.abs(leaf).reshape(2, -1).max(1) > 0).all(), path


def test_dropout_has_the_branch_as_its_mean(toy, variables, x):
    model = toy()
    plan, v = variables(model, dataclasses.replace(CONFIG, dropout=0.3, targets=("up",)))
    flat = flatten(v)
    apply_fn = jax.jit(attach(model, plan))
    one, other = (apply_fn(v, x, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert np.abs(one - other).max() > 1e-3
    assert flat["adapters/layers/up/m"].shape == (2, 20)


def test_it_cannot_be_created_without_the_kernels(toy, base):
    plan = make_plan(base(toy()), CONFIG)
    assert needs_params(plan)
    with pytest.raises(UserError, match=r"dora with init 'kaiming_uniform' starts from the kernels.*params\)"):
        create(plan, jax.random.key(0))


def test_the_plan_counts_a_magnitude_per_output():
    config = AdapterConfig("dora", 3, targets=("up",))
    plan = make_plan({"up": {"kernel": jnp.zeros((5, 12, 20))}}, config)
    assert plan.parameters == 5 * (3 * (12 + 20) + 20)
    assert "m 20" in str(plan)


def test_a_missing_magnitude_is_named(toy, variables, x):
    plan, v = variables(toy())
    flat = flatten(v)
    del flat["adapters/layers/up/m"]
    with pytest.raises(UserError, match="variables hold no 'adapters/layers/up/m'"):
        attach(toy(), plan)(unflatten(flat), x)
