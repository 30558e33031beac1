"""Adapters that no module would read, and axes that are no layers: refused by the plan or by the first call."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from toys import drawn, moved

from lowrank_jax.adapters import AdapterConfig, attach, make_plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model

X = jnp.ones((2, 5, 16))
ALL = AdapterConfig("lora", rank=2, targets=("all-linear",))


class Net(nn.Module):
    """Attention of Flax's own, and a product."""

    bias: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(4, use_bias=self.bias, name="attention")(x)
        return nn.Dense(16, name="dense")(x)


def test_whole_variables_are_no_params():
    variables = drawn(Net(), X)
    with pytest.raises(UserError, match=r'give it variables\["params"\]'):
        make_plan(variables, ALL)


def test_a_model_that_is_one_layer():
    params = drawn(nn.Dense(16), X)["params"]
    with pytest.raises(UserError, match=r"'all-linear': the params have no kernel below a module's name$"):
        make_plan(params, ALL)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["query", "out"])
def test_split_heads_are_no_layers(name, bias):
    """[d, heads, d_head] and [heads, d_head, d]: known by their bias, or by the kernels next to them."""
    params = drawn(Net(bias), X)["params"]
    with pytest.raises(UserError, match=rf"attention/{name}: .*no layers of a scan.*adapter\.exclude"):
        make_plan(params, AdapterConfig("lora", rank=2, targets=(name,)))
    rest = make_plan(params, AdapterConfig("lora", rank=2, targets=("all-linear",), exclude=("attention/.*",)))
    assert [site.path for site in rest.sites] == ["dense"]


@pytest.mark.parametrize("module", [nn.Conv(8, (3,)), nn.DenseGeneral((4, 8)), nn.Conv(8, (3, 3))])
def test_convolutions_and_split_outputs_are_no_layers(module):
    x = jnp.ones((2, 5, 5, 16)) if getattr(module, "kernel_size", ()) == (3, 3) else X
    params = {"part": drawn(module, x)["params"]}
    with pytest.raises(UserError, match="no layers of a scan"):
        make_plan(params, ALL)


def test_layers_of_a_scan_are_layers():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(16, name="up")(nn.Dense(8, use_bias=False, name="down")(x)), None

    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"params": 0, "adapters": 0}
            scan = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
            return scan(name="layers")(x, None)[0]

    params = drawn(Stack(), X)["params"]
    plan = make_plan(params, ALL)
    assert [(site.path, site.spec.stack) for site in plan.sites] == [("layers/down", (3,)), ("layers/up", (3,))]
    assert jax.jit(attach(Stack(), plan))({"params": params, **moved(plan)}, X).shape == X.shape


class Inner(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.dense(x)


@pytest.mark.filterwarnings("ignore:Found unknown module paths")
def test_a_bridged_nnx_model_is_refused_at_its_first_call():
    """Its modules are none of Linen's: the adapters would stay at their start, with no word."""
    model = nnx.bridge.to_linen(Inner)
    params = nn.unbox(model.init(jax.random.key(0), X))["params"]
    plan = make_plan(params, ALL)
    assert [site.path for site in plan.sites] == ["dense"]
    with pytest.raises(
        UserError, match=r"no module of the model reads the adapters at \['dense'\]; the model is a flax.nnx module"
    ):
        attach(model, plan)({"params": params, **moved(plan)}, X)


def test_a_plan_of_another_tree_is_refused_at_the_first_call():
    model = Net()
    params = drawn(model, X)["params"]
    plan = make_plan({"inner": {"dense": params["dense"]}}, ALL)
    variables = {"params": params, **moved(plan)}
    with pytest.raises(UserError, match=r"'inner/dense/kernel', which the parameters do not have; did the plan mean"):
        attach(model, plan)(variables, X)


def test_one_method_at_a_time_may_leave_sites_to_the_others():
    """The loss calls "hidden" and "logits"; a whole call afterwards has read everything."""
    model = Llama(get_model("toy-llama"))
    tokens = jnp.ones((1, 4), jnp.int32)
    params = drawn(model, tokens)["params"]
    plan = make_plan(params, ALL)
    variables = {"params": params, **moved(plan)}
    apply_fn = jax.jit(attach(model, plan), static_argnames="method")
    hidden = apply_fn(variables, tokens, method="hidden")
    assert apply_fn(variables, hidden, method="logits").shape == apply_fn(variables, tokens).shape
