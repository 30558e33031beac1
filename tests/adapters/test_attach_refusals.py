"""What attach and check refuse, in one line: sites that nothing reads, other plans or shapes, hiding scans."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.adapters import AdapterConfig, attach, check, create, make_plan
from lowrank_jax.core.errors import UserError

LORA = AdapterConfig("lora", 2, targets=("all-linear",))
MORA = AdapterConfig("mora", 1, targets=("all-linear",))


def test_check_passes_a_good_plan_and_traces_shapes_alone(toy, adapted, main_config, x):
    model = toy()
    plan, variables = adapted(model, main_config)
    check(model, plan, jax.eval_shape(lambda: variables), jax.ShapeDtypeStruct(x.shape, x.dtype), method="hidden")
    check(model, plan, variables, x, rngs={"dropout": jax.random.key(0)}, mutable=False)


def test_check_finds_a_site_that_no_module_reads(toy, base, x):
    model = toy()
    params = {**base(model), "ghost": {"kernel": jnp.zeros((12, 12))}}
    plan = make_plan(params, dataclasses.replace(LORA, targets=("query", "ghost")))
    with pytest.raises(UserError, match=r"no module of the model reads the adapters at \['ghost'\]"):
        check(model, plan, {"params": params, **create(plan, jax.random.key(0))}, x)


def test_check_finds_a_module_that_this_call_skips(toy, adapted, x):
    plan, variables = adapted(toy(), dataclasses.replace(LORA, targets=("head",)))
    check(toy(), plan, variables, x)
    with pytest.raises(UserError, match="'head'"):
        check(toy(), plan, variables, x, method="hidden")


def test_check_finds_adapters_of_another_plan(toy, adapted, base, x):
    plan = make_plan(base(toy()), dataclasses.replace(LORA, targets=("query",)))
    _, variables = adapted(toy(), LORA)
    with pytest.raises(UserError, match=r"layers/attention/value/a.*another plan"):
        check(toy(), plan, variables, x)


def test_missing_adapters_are_named(toy, adapted, x):
    plan, variables = adapted(toy(), LORA)
    for name in ("adapters", "scales"):
        rest = {k: v for k, v in variables.items() if k != name}
        with pytest.raises(UserError, match=f"variables hold no '{name}/layers/attention/query/"):
            attach(toy(), plan)(rest, x)


def test_adapters_of_another_rank_are_refused(toy, adapted, x):
    plan, _ = adapted(toy(), LORA)
    _, variables = adapted(toy(), dataclasses.replace(LORA, rank=3))
    with pytest.raises(UserError, match=r"query/a' has shape \(2, 12, 3\) where the plan has \(2, 12, 2\)"):
        attach(toy(), plan)(variables, x)


@pytest.mark.parametrize("config", [LORA, MORA])
def test_adapters_of_one_layer_are_not_spread_over_a_stack(toy, adapted, x, config):
    plan, variables = adapted(toy(), config)
    one = {**variables, "adapters": jax.tree.map(lambda leaf: leaf[0], variables["adapters"])}
    with pytest.raises(UserError, match=r"attention/query/\w' has shape .* where the plan has \(2, "):
        attach(toy(), plan)(one, x)


def test_a_kernel_that_is_no_stack_of_matrices_is_refused():
    """Flax's split heads: kernel [width, heads, head] looks like `width` layers of [heads, head]."""

    class Split(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.DenseGeneral((3, 4), name="query")(x)

    x = jnp.ones((2, 3))
    params = Split().init(jax.random.key(0), x)["params"]
    plan = make_plan(params, AdapterConfig(rank=1, targets=("query",)))
    with pytest.raises(UserError, match=r"no layers of an nn.scan.*adapter.exclude"):
        check(Split(), plan, {"params": params, **create(plan, jax.random.key(0))}, x)


class Forgetful(nn.Module):
    """A scan that does not pass on what adapters need."""

    collections: tuple[str, ...]
    streams: tuple[str, ...] = ("params",)

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(12, name="up")(x), None

        scan = nn.scan(
            Layer,
            variable_axes=dict.fromkeys(self.collections, 0),
            split_rngs=dict.fromkeys(self.streams, True),
            length=3,
        )
        return scan(name="layers")(x, None)[0]


def test_a_scan_that_hides_the_adapters_is_named(adapted, x):
    model = Forgetful(("params",))
    plan, variables = adapted(model, LORA)
    with pytest.raises(UserError, match=r"adapters/layers/up.*variable_axes of the nn.scan"):
        check(model, plan, variables, x)


def test_a_scan_that_hides_the_dropout_key_is_named(adapted, x):
    """Dropout that silently does not act would be worse."""
    collections = ("params", "adapters", "scales")
    config = dataclasses.replace(LORA, dropout=0.5)
    plan, variables = adapted(Forgetful(collections), config)
    attach(Forgetful(collections), plan)(variables, x)
    with pytest.raises(UserError, match=r"no dropout key reaches 'layers/up'.*split_rngs"):
        attach(Forgetful(collections), plan)(variables, x, rngs={"dropout": jax.random.key(0)})
    attach(Forgetful(collections, ("params", "dropout")), plan)(variables, x, rngs={"dropout": jax.random.key(0)})
