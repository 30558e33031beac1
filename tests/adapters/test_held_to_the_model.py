"""Calls of a part of a model, foreign and boxed params, modules that are no product: what a plan is held to."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import drawn, moved

from lowrank_jax.adapters import AdapterConfig, attach, check, create, make_plan, merge, residual
from lowrank_jax.core.errors import UserError

ALL = AdapterConfig("lora", 2, targets=("all-linear",))
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)), jnp.float32)
BRIDGE = "ignore:Found unknown module paths"  # ToLinen, of variables that are none of its module's


def planned(model, config=ALL, x=X):
    """(plan, variables with every adapter moved)."""
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    plan = make_plan(params, config)
    return plan, {"params": params, **moved(plan)}


def refuse(match, call, *args, **options):
    with pytest.raises(UserError, match=match) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


# --- params that are none, or another model's ---


@pytest.mark.parametrize("beside", [{}, {"batch_stats": {"norm": {"mean": np.zeros(3)}}}])
def test_whole_variables_stand_for_no_params(toy, adapted, beside):
    plan, variables = adapted(toy(), ALL)
    whole = {"params": variables["params"], **beside}
    words = r'takes the "params" tree alone: give it variables\["params"\]'
    refuse(f"make_plan {words}", make_plan, whole, ALL)
    refuse(f"create {words}", create, plan, jax.random.key(0), whole)
    refuse(f"residual {words}", residual, whole, plan)
    refuse(f"merge {words}", merge, {**variables, "params": whole}, plan)


def test_boxed_params_are_refused():
    model = nn.Sequential([nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))])
    whole = model.init(jax.random.key(0), X)
    refuse(r"layers_0/kernel is a Partitioned, no array: give make_plan .*meta.unbox", make_plan, whole["params"], ALL)
    assert len(make_plan(nn.meta.unbox(whole)["params"], ALL).sites) == 1


def test_params_of_another_model_are_refused(toy, adapted):
    plan, variables = adapted(toy(), ALL)
    other = {"blocks": variables["params"]["layers"]}
    words = r"layers/attention/query/kernel is not there where the plan has \(2, 12, 12\)"
    refuse(words, merge, {**variables, "params": other}, plan)
    pissa = make_plan(variables["params"], AdapterConfig(rank=2, targets=("query",), init="pissa"))
    refuse(words, create, pissa, jax.random.key(0), other)
    refuse(words, residual, other, pissa)
    short = {"layers": jax.tree.map(lambda leaf: leaf[:1], variables["params"]["layers"])}
    refuse(r"query/kernel has shape \(1, 12, 12\) where", merge, {**variables, "params": short}, plan)


# --- a call of a part of the model ---


class Decoder(nn.Module):
    """A cached step leaves the cross product out."""

    def setup(self):
        self.cross, self.own = nn.Dense(6), nn.Dense(6)

    def __call__(self, x, cached):
        return self.own(x) if cached else self.own(x) + self.cross(x)


class Parts(nn.Module):
    def setup(self):
        self.encoder, self.decoder = nn.Dense(6), Decoder()

    def encode(self, x):
        return self.encoder(x)

    def decode(self, x, cached=False):
        return self.decoder(x, cached)

    def __call__(self, x, cached=False):
        return self.decode(self.encode(x), cached)


def test_a_part_may_leave_out_what_another_call_reads():
    model = Parts()
    plan, variables = planned(model)
    apply_fn = attach(model, plan)
    apply_fn(variables, X, method="encode")
    apply_fn(variables, X, cached=True, method="decode")
    refuse(r"reads the adapters at \['decoder/cross'\].*strict=False", apply_fn, variables, X, cached=True)
    refuse(r"'decoder/cross'", apply_fn, variables, X, cached=True, method="__call__")
    apply_fn(variables, X)
    apply_fn(variables, X, cached=True)  # all were read before
    attach(model, plan, strict=False)(variables, X, cached=True)
    refuse("decoder/cross", check, model, plan, variables, X, cached=True)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))


class Bridged(nn.Module):
    """An nnx network that the loss calls by methods, as `next_token_objective` does."""

    def setup(self):
        self.net, self.head = nnx.bridge.to_linen(Net), nn.Dense(3)

    def hidden(self, x):
        return self.net(x)

    def logits(self, x):
        return self.head(x)

    def __call__(self, x):
        return self.logits(self.hidden(x))


@pytest.mark.filterwarnings(BRIDGE)
@pytest.mark.parametrize("method", [None, "hidden"])
def test_a_bridged_part_is_refused_by_whatever_method_runs_it(method):
    """Its gradients were all zero."""
    plan, variables = planned(Bridged(), AdapterConfig(rank=2, targets=("up", "head")))
    words = (
        r"\['net/up'\]; 'net' is a flax.nnx module .*"
        "take adapters.attach_folded .*, write it in Linen, or name it in adapter.exclude"
    )
    refuse(words, jax.jit(attach(Bridged(), plan), static_argnames="method"), variables, X, method=method)


@pytest.mark.filterwarnings(BRIDGE)
def test_a_single_bridged_layer_works():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="head")(nnx.bridge.to_linen(nnx.Linear, 6, 8, name="up")(x))

    plan, variables = planned(Model(), AdapterConfig(rank=2, targets=("up", "head")))
    expected = Model().apply({"params": merge(variables, plan)}, X)
    np.testing.assert_allclose(attach(Model(), plan)(variables, X), expected, rtol=1e-5)


def test_what_nn_jit_has_traced_is_read_all_the_same():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.jit(nn.Dense)(6, name="up")(x)

    for alpha in (4.0, 4.0, 8.0):
        plan, variables = planned(Model(), AdapterConfig("lora", 2, alpha=alpha, targets=("up",)))
        expected = Model().apply({"params": merge(variables, plan)}, X)
        for _ in range(2):
            np.testing.assert_allclose(attach(Model(), plan)(variables, X), expected, rtol=1e-5)


def test_a_module_that_only_holds_a_kernel_is_refused():
    """As Flax's LSTM cells have them: the update of what it gives back would be added to the kernel."""

    class Holder(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.param("kernel", nn.initializers.ones, (x.shape[-1], 3))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x @ Holder(name="hold")(x)

    plan, variables = planned(Model(), x=X[:1])
    words = r"'hold' makes \(6, 3\) of \(1, 6\), which is no product with a kernel \[6, 3\].*adapter.exclude"
    refuse(words, attach(Model(), plan), variables, X[:1])


# --- axes that are no layers, and some that are ---


@pytest.mark.parametrize("bias", [True, False])
def test_split_heads_everywhere(bias):
    """As the model itself, within a scan, and beside a bottleneck; their names are what to exclude."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            x = nn.MultiHeadDotProductAttention(4, use_bias=bias, name="attention")(nn.LayerNorm()(x))
            return nn.Dense(16, use_bias=bias, name="up")(x), None

    axes = {"variable_axes": {"params": 0, "adapters": 0}, "split_rngs": {"params": True}}
    x = jnp.ones((2, 5, 16))
    heads = drawn(nn.MultiHeadDotProductAttention(4, use_bias=bias), x)["params"]
    refuse("no layers of a scan .*adapter.exclude: key, out, query, value$", make_plan, heads, ALL)
    refuse("no layers of a scan", make_plan, {"attention": heads}, AdapterConfig("houlsby", 1))
    scan = nn.scan(Block, length=3, **axes)
    params = {"layers": drawn(scan(), x, None)["params"]}
    names = ", ".join(f"layers/attention/{name}" for name in ("key", "out", "query", "value"))
    refuse(f"no layers of a scan .*adapter.exclude: {names}$", make_plan, params, ALL)
    rest = make_plan(params, AdapterConfig(rank=2, targets=("all-linear",), exclude=("attention/.*",)))
    assert [(site.path, site.spec.stack) for site in rest.sites] == [("layers/up", (3,))]


@pytest.mark.parametrize("bias", [True, False])
def test_a_stack_beside_a_plain_layer_is_adapted(bias):
    class Each(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0, "adapters": 0}, "split_rngs": {"params": True}}
            many = nn.vmap(nn.Dense, in_axes=None, axis_size=3, **axes)(9, use_bias=bias, name="many")
            return nn.Dense(4, name="last")(many(x))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Each(name="block")(x)

    plan, variables = planned(Outer())
    assert [(site.path, site.spec.stack) for site in plan.sites] == [("block/last", ()), ("block/many", (3,))]
    expected = Outer().apply({"params": merge(variables, plan)}, X)
    np.testing.assert_allclose(attach(Outer(), plan)(variables, X), expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_another_name_is_no_tied_one():
    tree = {"embed": {"embedding": X}, "final_norm": {"scale": jnp.ones(6)}, "lm_head": {"kernel": X.T}}
    plan = make_plan(tree, AdapterConfig(rank=1, targets=("embed",)))
    merge({"params": tree, **create(plan, jax.random.key(0))}, plan)
    del tree["lm_head"]
    refuse("tied head too", merge, {"params": tree, **create(plan, jax.random.key(0))}, plan)
