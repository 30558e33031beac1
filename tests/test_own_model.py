"""docs/own_model.md: its examples run as they stand, learn, and merge into what they compute; and what is refused."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.models.nnx import nnx_function, nnx_update

PAGE = (Path(__file__).parents[1] / "docs" / "own_model.md").read_text()


@pytest.fixture(scope="module")
def examples():
    """The names that the page's blocks leave, one after the other: after the first, and after the second."""
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    linen = {}
    exec(first, linen)
    both = dict(linen)
    exec(second, both)
    return linen, both


def trained_alike(names, start):
    """The loss fell, and only the adapters have moved."""
    assert names["losses"][-1] < names["losses"][0] - 0.5
    now, before = flatten(names["variables"]["params"]), flatten(start)
    assert all(np.array_equal(now[path], before[path]) for path in before)


def test_a_linen_model(examples):
    names, _ = examples
    model, tokens = names["model"], names["tokens"]
    trained_alike(names, model.init(jax.random.key(2), tokens)["params"])
    assert [site.path for site in names["plan"].sites] == ["down", "embed", "up"]
    branch = adapters.attach(model, names["plan"])(names["variables"], tokens)
    np.testing.assert_allclose(model.apply({"params": names["merged"]}, tokens), branch, atol=2e-5)
    folded = adapters.attach_folded(model.apply, names["plan"])(names["variables"], tokens)
    np.testing.assert_allclose(folded, branch, atol=2e-5)
    with pytest.raises(UserError, match=r"attention/key: its bias .*split heads as in nn.MultiHeadDotProductAttention"):
        adapters.make_plan(names["params"], adapters.AdapterConfig(targets=("all-linear",)))


def test_an_nnx_model(examples):
    _, names = examples
    tokens, fresh = names["tokens"], names["Yours"](nnx.Rngs(0))
    start, function = nnx_function(fresh)
    trained_alike(names, start)
    assert {site.path.partition("/")[0] for site in names["plan"].sites} == {"embed", "layers"}
    assert len(names["plan"].sites) == 5
    fresh.eval()
    np.testing.assert_array_equal(function({"params": start}, tokens), fresh(tokens))
    names["yours"].eval()
    folded = adapters.attach_folded(function, names["plan"])(names["variables"], tokens)
    np.testing.assert_allclose(names["yours"](tokens), folded, atol=2e-5)
    assert float(jnp.abs(folded - fresh(tokens)).max()) > 0.1


def test_gradients_are_the_branch_s(examples):
    """On one model: of x (W + delta) as of x W + delta(x)."""
    names, _ = examples
    variables, tokens = names["variables"], names["tokens"]
    fns = adapters.attach(names["model"], names["plan"]), adapters.attach_folded(names["model"].apply, names["plan"])
    grads = [
        jax.grad(lambda leaves, f=f: jnp.square(f({**variables, "adapters": leaves}, tokens)).mean())(
            variables["adapters"]
        )
        for f in fns
    ]
    for one, other in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(one).max()))
        assert float(jnp.abs(one).max()) > 0


def test_dropout_follows_the_call_s_key(examples):
    _, names = examples
    params, function = nnx_function(names["Yours"](nnx.Rngs(0)))
    call = lambda seed: function({"params": params}, names["tokens"], rngs={"dropout": jax.random.PRNGKey(seed)})  # noqa: E731
    np.testing.assert_array_equal(call(1), call(1))
    assert float(jnp.abs(call(1) - call(2)).max()) > 0
    assert float(jnp.abs(call(1) - function({"params": params}, names["tokens"])).max()) > 0


def test_what_a_folded_kernel_cannot_do(examples):
    _, names = examples
    params, function = nnx_function(names["Yours"](nnx.Rngs(0)))
    plan = adapters.make_plan(params, adapters.AdapterConfig(rank=2, targets=("up",), dropout=0.1))
    with pytest.raises(UserError, match=r"adapter.dropout is 0.1, and a folded kernel has no branch"):
        adapters.attach_folded(function, plan)
    with pytest.raises(UserError, match=r"the params are of another model, which differs at embed/embedding, "):
        nnx_update(names["yours"], {"up": params["layers"]["0"]["up"]})
