"""Folding adapters into kernels and back, in float32, cast once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.adapters import AdapterConfig, fold, make_plan, merge, unmerge
from lowrank_jax.adapters.leaves.merge import site_delta
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import cast

LORA = AdapterConfig("lora", 2, targets=("all-linear",))
DOWN = "layers/down/kernel"


def test_merged_kernel_is_w_plus_scale_a_b(toy, adapted):
    plan, variables = adapted(toy(), LORA)
    flat, merged = flatten(variables), flatten(merge(variables, plan))
    for site in plan.sites:
        a, b = (np.asarray(flat[f"adapters/{site.path}/{name}"], float) for name in "ab")
        expected = np.asarray(flat[f"params/{site.path}/kernel"], float) + 16.0 / 2 * a @ b
        np.testing.assert_allclose(merged[f"{site.path}/kernel"], expected, rtol=1e-6, atol=1e-6)


def test_unmerge_inverts_merge(toy, adapted, main_config):
    plan, variables = adapted(toy(), main_config)
    merged = merge(variables, plan)
    restored = flatten(unmerge({**variables, "params": merged}, plan))
    before, after = flatten(variables["params"]), flatten(merged)
    for path, leaf in before.items():
        np.testing.assert_allclose(restored[path], leaf, atol=1e-6)
    assert all(np.abs(after[f"{site.path}/kernel"] - before[f"{site.path}/kernel"]).max() > 0.01 for site in plan.sites)


def test_layers_of_a_stack_are_merged_one_by_one(toy, adapted, main_config):
    """A stack's update is that of its layers, each with its own scale."""
    plan, variables = adapted(toy(), main_config)
    flat = flatten(variables)
    site = next(site for site in plan.sites if site.path == "layers/down")
    flat["scales/layers/down/scale"] = jnp.asarray([1.0, 3.0])
    deltas = site_delta(unflatten(flat), plan, site)
    assert (deltas.shape, deltas.dtype) == ((2, 20, 12), jnp.float32)
    for i, scale in enumerate((1.0, 3.0)):
        leaf = {k.rsplit("/", 1)[1]: v[i] for k, v in flat.items() if k.startswith("adapters/layers/down/")}
        alone = plan.family.delta_kernel(plan.family.scale_leaf(leaf, scale), site.spec)
        np.testing.assert_allclose(deltas[i], alone, rtol=1e-5, atol=1e-6)


def test_a_kernel_outside_a_stack(adapted, toy, base, x):
    model = toy()
    plan, variables = adapted(model, dataclasses.replace(LORA, targets=("head",)))
    head = variables["adapters"]["head"]
    kernel = merge(variables, plan)["head"]["kernel"]
    np.testing.assert_allclose(kernel - base(model)["head"]["kernel"], 8 * head["a"] @ head["b"], atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_narrow_base_is_summed_in_float32_and_cast_once(toy, adapted, main_config, dtype):
    plan, variables = adapted(toy(), main_config)
    variables["params"] = cast(variables["params"], dtype)
    merged, flat = flatten(merge(variables, plan)), flatten(variables["params"])
    for site in plan.sites:
        path = f"{site.path}/kernel"
        expected = (flat[path].astype(jnp.float32) + site_delta(variables, plan, site)).astype(dtype)
        assert merged[path].dtype == dtype
        np.testing.assert_array_equal(merged[path], expected)


def test_other_leaves_pass_through_and_nothing_is_changed_in_place(toy, adapted):
    plan, variables = adapted(toy(), dataclasses.replace(LORA, targets=("query",)))
    before = {path: np.array(leaf) for path, leaf in flatten(variables).items()}
    merged = flatten(merge(variables, plan))
    assert merged.keys() == flatten(variables["params"]).keys()
    for path, leaf in flatten(variables).items():
        np.testing.assert_array_equal(leaf, before[path])
        if path.startswith("params/") and "query" not in path:
            assert merged[path.removeprefix("params/")] is leaf


def test_without_adapters_merge_is_the_identity(toy, base):
    plan = make_plan(base(toy()), AdapterConfig("none"))
    assert flatten(merge({"params": base(toy())}, plan)) == flatten(base(toy()))


@pytest.mark.parametrize(("method", "bad"), [("lora", np.nan), ("mora", np.inf)])
def test_an_adapter_that_is_not_finite_is_refused(toy, adapted, method, bad):
    config = AdapterConfig(method, 1, targets=("all-linear",))
    plan, variables = adapted(toy(), config)
    flat = flatten(variables)
    path = next(path for path in flat if path.startswith("adapters/layers/down/"))
    flat[path] = flat[path].at[-1, 0, 0].set(bad)
    for checked in (merge, unmerge):
        with pytest.raises(UserError, match="layers/down with its update holds NaN or infinity in float32"):
            checked(unflatten(flat), plan)


def test_a_sum_beyond_float16_is_refused(toy, adapted):
    """Base and update are finite in float32; the folded kernel is not in the base's dtype."""
    plan, variables = adapted(toy(), dataclasses.replace(LORA, targets=("down",)))
    flat = flatten(variables)
    flat[f"params/{DOWN}"] = jnp.full(flat[f"params/{DOWN}"].shape, 65_000.0, jnp.float16)
    flat["adapters/layers/down/b"] = jnp.zeros_like(flat["adapters/layers/down/b"])
    merge(unflatten(flat), plan)
    flat["adapters/layers/down/a"] = jnp.ones_like(flat["adapters/layers/down/a"])
    flat["adapters/layers/down/b"] = flat["adapters/layers/down/b"].at[0, 0, 0].set(100.0)
    with pytest.raises(UserError, match=r"holds NaN or infinity in float16; .* held as bfloat16 or float32"):
        merge(unflatten(flat), plan)
    assert not np.isfinite(flatten(fold(unflatten(flat), plan))[DOWN]).all()


def test_fold_is_merge_for_a_jitted_caller(toy, adapted, main_config):
    """A restart in the middle of training donates the base and returns it with the update folded in."""
    plan, variables = adapted(toy(), main_config)
    want = flatten(merge(variables, plan))
    copy = jax.tree.map(jnp.copy, variables["params"])
    restart = jax.jit(lambda params, rest: fold({"params": params, **rest}, plan), donate_argnums=0)
    got = restart(copy, {name: variables[name] for name in ("adapters", "scales")})
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(copy))
    for path, leaf in flatten(got).items():
        np.testing.assert_allclose(leaf, want[path], rtol=1e-6, atol=1e-7)


def test_merge_keeps_the_kernels_sharding(toy, adapted):
    """The base lives spread over devices; merging must not gather it."""
    devices = np.asarray(jax.devices()[: 2 if len(jax.devices()) > 1 else 1])
    mesh = jax.sharding.Mesh(devices, ("tensor",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "tensor"))
    plan, variables = adapted(toy(), dataclasses.replace(LORA, targets=("down",)))
    alone = flatten(merge(variables, plan))[DOWN]
    flat = flatten(variables)
    flat[f"params/{DOWN}"] = jax.device_put(flat[f"params/{DOWN}"], sharding)
    spread = flatten(merge(unflatten(flat), plan))[DOWN]
    np.testing.assert_allclose(spread, alone, rtol=1e-5, atol=1e-7)
    assert spread.sharding.is_equivalent_to(sharding, 3)


def test_updates_are_multiplied_in_full_float32(toy, adapted, main_config):
    """Accelerators would use TF32 or bfloat16 passes: a merged model would differ from its branch by 1e-3."""
    plan, variables = adapted(toy(), main_config)
    flat, spec = flatten(variables), plan.sites[0].spec
    leaf = {name: flat[f"adapters/{plan.sites[0].path}/{name}"][0] for name in plan.family.shapes(spec)}
    jaxpr = str(jax.make_jaxpr(lambda leaf: plan.family.delta_kernel(leaf, spec))(leaf))
    assert "HIGHEST" in jaxpr
    assert "precision=None" not in jaxpr
