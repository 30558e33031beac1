"""A model is traced without waste: a layer once where it draws nothing, and no initial value of a given leaf."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.errors import ScopeParamShapeError

from lowrank_jax import adapters
from lowrank_jax.models import bert, llama
from lowrank_jax.models.parts.layers import Linear
from lowrank_jax.models.registry import get_model

TOKENS = jnp.ones((2, 5), int)
BERT = get_model("toy-bert")
STILL = dataclasses.replace(BERT, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def layers_traced(model, block, dropout, rngs):
    """How often a layer's `__call__` runs while one call of the model is traced."""
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig("lora", rank=2, dropout=dropout))
    variables = jax.eval_shape(lambda key: {"params": params_like(params), **adapters.create(plan, key)}, KEY)
    seen = []

    def watch(next_fun, args, kwargs, context):
        if isinstance(context.module, block) and context.method_name == "__call__":
            seen.append(context.module.path)
        return next_fun(*args, **kwargs)

    def call(variables, rngs):
        with nn.intercept_methods(watch):
            return adapters.attach(model, plan)(variables, TOKENS, rngs=rngs)

    jax.eval_shape(call, variables, rngs)
    return len(seen)


KEY = jax.random.key(3)
DROPS = {"dropout": KEY}


def params_like(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@pytest.mark.parametrize(
    ("config", "dropout", "rngs", "times"),
    [
        ("llama", 0.0, None, 1),
        ("llama", 0.0, DROPS, 1),  # as every step of a run calls it
        ("llama", 0.1, DROPS, 2),
        (BERT, 0.0, None, 1),
        (BERT, 0.0, DROPS, 2),
        (STILL, 0.0, DROPS, 1),
    ],
)
def test_a_layer_is_traced_once_unless_it_draws(config, dropout, rngs, times):
    """Where it draws, Flax counts the keys of both times: to trace it once would change the masks of recorded runs."""
    if config == "llama":
        model, block = llama.Llama(get_model("toy-llama")), llama.Block
    else:
        model, block = bert.Bert(config), bert.Block
    assert layers_traced(model, block, dropout, rngs) == times


def test_a_given_leaf_needs_no_initial_value(monkeypatch):
    x = jnp.ones((2, 3))
    good, bad = ({"params": {"kernel": jnp.ones(shape)}} for shape in ((3, 4), (4, 3)))
    with pytest.raises(ScopeParamShapeError, match=r"\(4, 3\)"):
        Linear(4).apply(bad, x)
    monkeypatch.setattr("lowrank_jax.models.parts.layers.KERNEL_INIT", None)  # which nobody may call
    assert Linear(4).apply(good, x).shape == (2, 4)
    with pytest.raises(TypeError):
        Linear(4).init(KEY, x)
