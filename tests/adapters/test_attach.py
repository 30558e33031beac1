"""The contract of every family on a tiny Linen model: identity at the start, branch = merged, dropout, sites, traps."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.adapters import AdapterConfig, MoraConfig, attach, check, create, make_plan, merge
from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.leaves.prepare import prepare
from lowrank_jax.adapters.registry import FAMILIES
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine, count, partition

LORA = AdapterConfig("lora", 2, targets=("all-linear",))
MORA = AdapterConfig("mora", 1, targets=("all-linear",))


def close(one, other, tolerance=2e-5):
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


# --- the contract of a family: `config` runs over every family and option ---


def test_identity_at_the_start(toy, adapted, compiled, plain, model_config, x):
    model = toy()
    _, variables = adapted(model, model_config, False)
    out = compiled(model, model_config)(variables, x)
    np.testing.assert_array_equal(out, plain(model)({"params": variables["params"]}, x))


def test_branch_equals_merged(toy, adapted, compiled, plain, model_config, x):
    model = toy()
    plan, variables = adapted(model, model_config)
    branch = np.asarray(compiled(model, model_config)(variables, x))
    close(branch, plain(model)({"params": merge(variables, plan)}, x))
    assert np.abs(branch - plain(model)({"params": variables["params"]}, x)).max() > 1e-2


def test_parameter_count(toy, adapted, config):
    """The plan's count is the tree's, and about (d_in + d_out) r a kernel for every family."""
    plan, variables = adapted(toy(), config)
    assert plan.parameters == count(variables["adapters"])
    budget = sum(2 * (site.spec.d_in + site.spec.d_out) * site.spec.rank for site in plan.sites)
    assert plan.parameters == budget if config.method == "lora" else plan.parameters == pytest.approx(budget, rel=0.4)


def test_delta_is_linear(config):
    spec = make_plan({"up": {"kernel": jnp.zeros((12, 20))}}, config).sites[0].spec
    family = FAMILIES[config.method]
    rng = np.random.default_rng(0)
    leaf = {name: rng.normal(size=shape).astype("float32") for name, shape in family.shapes(spec).items()}
    x, y = rng.normal(size=(2, 3, 12)).astype("float32")
    delta = jax.jit(lambda leaf, v, scale: family.delta(family.scale_leaf(leaf, scale), v, spec))
    out = np.asarray(delta(leaf, 2 * x - y, 3.0))
    close(out, 3 * (2 * np.asarray(delta(leaf, x, 1.0)) - np.asarray(delta(leaf, y, 1.0))), 1e-4)
    assert jax.eval_shape(lambda: family.init(jax.random.key(0), spec)).keys() == leaf.keys()


def test_prepared_leaves_carry_the_scale(config):
    """What a step computes once for the whole stack gives each layer the same branch, to the last bit in bfloat16."""
    params = {"up": {"kernel": jnp.zeros((2, 12, 20))}}
    (site,) = (plan := make_plan(params, config)).sites
    family, rng = site.family, np.random.default_rng(0)
    delta = get_fast(family).delta
    leaf = {k: rng.normal(size=(2, *shape)).astype("float32") for k, shape in family.shapes(site.spec).items()}
    scales = np.float32([0.3, 7.0])
    for dtype, same in ((jnp.float32, close), (jnp.bfloat16, np.testing.assert_array_equal)):
        x = rng.normal(size=(3, 12)).astype(dtype)

        @jax.jit
        def both(leaf, scale, x, dtype=dtype):
            prepared = prepare({"adapters": {"up": leaf}, "scales": {"up": {"scale": scale}}}, plan, dtype, {})["up"]
            once = jax.vmap(lambda one: delta(one, x, site.spec))(prepared)
            return once, jax.vmap(lambda one, s: delta(family.scale_leaf(one, s), x, site.spec))(leaf, scale)

        same(*map(np.asarray, both(leaf, scales, x)))


def test_stack_equals_loop(toy, adapted, compiled, main_config, x):
    """Scanned layers with stacked adapters compute what a loop over the same layers does."""
    stacked, loop = toy(scanned=True), toy(scanned=False)
    plan, variables = adapted(stacked, main_config)
    sliced = {
        path.replace("/layers/", f"/layers_{i}/"): leaf[i] if "/layers/" in path else leaf
        for path, leaf in flatten(variables).items()
        for i in range(2)
    }
    loop_plan = make_plan(unflatten(sliced)["params"], main_config)
    assert loop_plan.parameters == plan.parameters
    assert len(loop_plan.sites) == 2 * len(plan.sites)
    close(jax.jit(attach(loop, loop_plan))(unflatten(sliced), x), compiled(stacked, main_config)(variables, x))


class One(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(20, name="up")(x)


def test_dropout_acts_on_the_branch_only_when_its_key_is_given(adapted, base, main_config):
    """The expectation over masks is the branch without dropout, and the base's part is never dropped."""
    model, config = One(), dataclasses.replace(main_config, dropout=0.3)
    plan, variables = adapted(model, config)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12)), jnp.float32)
    apply_fn, keys = attach(model, plan), jax.random.split(jax.random.key(3), 4000)

    @jax.jit
    def run(variables):
        samples = jax.vmap(lambda key: apply_fn(variables, x, rngs={"dropout": key}))(keys)
        other_key = apply_fn(variables, x, rngs={"params": keys[0]})
        return samples, apply_fn(variables, x), other_key, model.apply({"params": variables["params"]}, x)

    samples, exact, other_key, plain = run(
        {**variables, "adapters": jax.tree.map(jnp.zeros_like, variables["adapters"])}
    )
    np.testing.assert_array_equal(samples, np.broadcast_to(plain, samples.shape))
    samples, exact, other_key, plain = map(np.asarray, run(variables))
    close(other_key, exact, 1e-6)
    assert np.abs(exact - plain).max() > 0.1
    assert len(np.unique(samples[:, 0, 0])) > 50
    error = np.abs(samples.mean(0, float) - exact) / (samples.std(0, float) / np.sqrt(len(keys)) + 1e-6)
    assert error.max() < 5


def test_compute_dtype_is_the_models(toy, adapted, main_config, x):
    model = toy(dtype=jnp.bfloat16)
    plan, variables = adapted(model, main_config)
    out = jax.eval_shape(attach(model, plan), variables, x)
    assert out.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["adapters"])} == {jnp.dtype("float32")}


class Mixed(nn.Module):
    """Layers in bfloat16 and a head in float32; the layers are scanned, as the adapters' cast expects."""

    inner: jnp.dtype = jnp.bfloat16
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            dtype: jnp.dtype

            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(12, dtype=self.dtype, name="up")(x), None

        axes = {"params": 0, "adapters": 0, "scales": 0}
        scan = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=2)
        x, _ = scan(self.inner, name="layers")(x.astype(self.inner), None)
        return nn.Dense(12, dtype=jnp.float32, name="top")(x)


def test_a_float32_head_of_a_bfloat16_model_keeps_its_precision(adapted, plain, main_config, x):
    plan, variables = adapted(Mixed(), dataclasses.replace(main_config, targets=("top",)))
    out = jax.jit(attach(Mixed(), plan))(variables, x)
    assert out.dtype == jnp.float32
    close(out, plain(Mixed())({"params": merge(variables, plan)}, x), 1e-5)


def test_a_scanned_module_wider_than_its_model_is_refused(adapted, x):
    """Its adapter was cast for the scan; a silent rounding would be worse than a line."""
    plan, variables = adapted(Mixed(inner=jnp.float32), LORA)
    with pytest.raises(UserError, match=r"'layers/up' computes in float32 .* dtype is bfloat16.*adapter.exclude"):
        attach(Mixed(inner=jnp.float32), plan)(variables, x)


def test_a_model_without_dtype_keeps_float64(toy, adapted, main_config, x):
    """Nothing on the branch's way is rounded to float32."""
    model = toy(dtype=None)
    plan, variables = adapted(model, dataclasses.replace(main_config, targets=("up",)))
    (site,) = plan.sites
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) / 3, variables)
        rows, eye = np.asarray(x, np.float64), np.eye(12)
        out = jax.jit(attach(model, plan))(wide, rows)
        flat = flatten(wide)
        for i in range(2):
            leaf = {name: flat[f"adapters/layers/up/{name}"][i] for name in plan.family.shapes(site.spec)}
            leaf = plan.family.scale_leaf(leaf, flat["scales/layers/up/scale"][i])
            flat["params/layers/up/kernel"][i] += jax.jit(plan.family.delta, static_argnums=2)(leaf, eye, site.spec)
        want = jax.jit(model.apply)({"params": unflatten(flat)["params"]}, rows)
        assert out.dtype == jnp.float64
        close(out, want, 1e-12)


def test_gradients_are_those_of_the_adapters_alone(toy, adapted, main_config, x):
    model = toy()
    plan, variables = adapted(model, main_config)
    trainable, frozen = partition(variables)
    apply_fn = attach(model, plan)
    grads = jax.jit(jax.grad(lambda t: (apply_fn(combine(t, frozen), x) ** 2).sum()))(trainable)
    assert jax.tree.structure(grads) == jax.tree.structure({"adapters": variables["adapters"]})
    for path, leaf in flatten(grads).items():
        layers = np.abs(leaf).reshape(2, -1).max(1)
        assert (layers > 0).all(), path


# --- created adapters ---


def test_created_leaves_are_per_layer_float32_and_reproducible(toy, base):
    plan = make_plan(base(toy()), LORA)
    one, again = (jax.jit(functools.partial(create, plan))(jax.random.key(0)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, one, again)
    a = one["adapters"]["layers"]["attention"]["query"]["a"]
    assert (a.shape, a.dtype) == ((2, 12, 2), jnp.float32)
    assert len(np.unique(a)) == a.size
    scale = one["scales"]["layers"]["up"]["scale"]
    np.testing.assert_array_equal(scale, np.full(2, 8.0, np.float32))
    assert len({leaf.ravel()[0].item() for path, leaf in flatten(one["adapters"]).items() if path.endswith("/a")}) == 4


def test_another_target_leaves_a_sites_values_as_they_were(toy, base):
    narrow = make_plan(base(toy()), dataclasses.replace(LORA, targets=("query",)))
    plans = narrow, make_plan(base(toy()), LORA)
    few, many = (jax.jit(functools.partial(create, plan))(jax.random.key(0)) for plan in plans)
    query = "adapters/layers/attention/query/a"
    np.testing.assert_array_equal(flatten(few)[query], flatten(many)[query])


def test_create_works_on_shapes(toy, base):
    plan = make_plan(jax.eval_shape(lambda: base(toy())), LORA)
    shapes = jax.eval_shape(lambda key: create(plan, key), jax.random.key(0))
    assert count(shapes["adapters"]) == plan.parameters


# --- sites ---


def test_the_branch_is_at_its_own_site(toy, adapted, x):
    """Each site's adapter alone moves the output; the head has none."""
    model = toy()
    plan, variables = adapted(model, LORA)
    assert [site.path for site in plan.sites] == [
        "layers/attention/query", "layers/attention/value", "layers/down", "layers/up"
    ]  # fmt: skip
    apply_fn = jax.jit(attach(model, plan))
    zero = {**variables, "adapters": jax.tree.map(jnp.zeros_like, variables["adapters"])}
    plain, seen = apply_fn(zero, x), []
    for site in plan.sites:
        flat = flatten(zero)
        flat.update({p: v for p, v in flatten(variables).items() if p.startswith(f"adapters/{site.path}/")})
        seen.append(np.asarray(apply_fn(unflatten(flat), x)))
        assert np.abs(seen[-1] - plain).max() > 1e-3
    assert len({out.tobytes() for out in seen}) == len(plan.sites)


def test_methods_and_options_reach_the_model(toy, adapted, x):
    model = toy()
    plan, variables = adapted(model, LORA)
    apply_fn = attach(model, plan)
    hidden = jax.jit(functools.partial(apply_fn, method="hidden"))(variables, x)
    head = jax.jit(functools.partial(model.apply, method=lambda m, h: m.head(h)))
    close(head({"params": variables["params"]}, hidden), jax.jit(apply_fn)(variables, x))
    out, state = apply_fn(variables, x, capture_intermediates=True, mutable=["intermediates"])
    assert out.shape == (4, 5)
    assert state


def test_without_adapters_it_is_the_model(toy, base, x):
    model = toy()
    plan = make_plan(base(model), AdapterConfig("none"))
    assert create(plan, jax.random.key(0)) == {}
    variables = {"params": base(model)}
    np.testing.assert_array_equal(attach(model, plan)(variables, x), model.apply(variables, x))
    check(model, plan, variables, x)


# --- traps ---


@pytest.mark.parametrize("remat", [False, True])
def test_a_compiled_model_does_not_hide_the_adapters(toy, adapted, x, remat):
    """An interceptor around an already compiled function is ignored: ours is entered inside."""
    model = toy(remat=remat)
    plan, variables = adapted(model, LORA)
    compiled = jax.jit(model.apply)
    plain = compiled(variables, x)
    assert np.abs(jax.jit(attach(model, plan))(variables, x) - plain).max() > 1e-2
    np.testing.assert_array_equal(compiled(variables, x), plain)


def test_plans_that_differ_in_options_alone_do_not_share_a_compilation(toy, adapted, plain, x):
    model, outs = toy(remat=True), []
    for compression in ("sharing", "type2", "truncation"):
        config = dataclasses.replace(MORA, mora=MoraConfig(compression))
        plan, variables = adapted(model, config)
        outs.append(attach(model, plan)(variables, x))
        close(outs[-1], plain(model)({"params": merge(variables, plan)}, x))
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_trials_side_by_side_equal_one_after_another(toy, adapted, compiled, main_config, x):
    """vmap over adapters and scales on one shared base."""
    model = toy()
    _, variables = adapted(model, main_config)
    params, one = variables.pop("params"), compiled(model, main_config)
    trials = jax.tree.map(lambda leaf: jnp.asarray(np.stack([leaf, 1.5 * leaf])), variables)
    together = jax.jit(jax.vmap(lambda t: one({"params": params, **t}, x)))(trials)
    for i in range(2):
        close(together[i], one({"params": params, **jax.tree.map(lambda leaf, i=i: leaf[i], trials)}, x))


def test_a_rank_padded_with_zeros_stays_what_it_was(toy, adapted, compiled, x):
    """A smaller rank inside a larger one: same output, and no gradient where both A and B are zero."""
    model, larger = toy(), dataclasses.replace(LORA, rank=4)
    _, variables = adapted(model, LORA)
    padded = {
        path: np.pad(leaf, [(0, 0), (0, 0), (0, 2)] if path.endswith("/a") else [(0, 0), (0, 2), (0, 0)])
        for path, leaf in flatten(variables["adapters"]).items()
    }
    wide = {**variables, "adapters": unflatten(padded)}
    close(compiled(model, larger)(wide, x), compiled(model, LORA)(variables, x))
    trainable, frozen = partition(wide)
    grads = jax.jit(jax.grad(lambda t: (compiled(model, larger)(combine(t, frozen), x) ** 2).sum()))(trainable)
    for path, grad in flatten(grads).items():
        assert not np.any(grad[..., 2:] if path.endswith("/a") else grad[:, 2:])
