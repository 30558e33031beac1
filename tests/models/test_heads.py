"""Heads by name: what each computes, in float32, and the paths of its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from lowrank_jax.core.paths import flatten
from lowrank_jax.models.bert import Bert, with_head
from lowrank_jax.models.parts.heads import MaskedLMHead, SequenceHead
from lowrank_jax.models.registry import get_model

X = jax.random.normal(jax.random.key(3), (2, 8))


def scrambled(variables, seed=5):
    """Biases and scales too are random."""
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize("dense", [False, True])
def test_sequence_head(dense):
    head = SequenceHead(3, dense)
    variables = scrambled(head.init(jax.random.key(0), X))
    p = variables["params"]
    x = jnp.tanh(X @ p["dense"]["kernel"] + p["dense"]["bias"]) if dense else X
    np.testing.assert_allclose(head.apply(variables, X), x @ p["out"]["kernel"] + p["out"]["bias"], atol=1e-5)


def test_masked_lm_head():
    table = jax.random.normal(jax.random.key(1), (11, 8))
    head = MaskedLMHead(11)
    variables = scrambled(head.init(jax.random.key(0), X, lambda x: x @ table.T))
    p = variables["params"]
    x = jax.nn.gelu(X @ p["dense"]["kernel"] + p["dense"]["bias"], approximate=False)
    x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * p["norm"]["scale"] + p["norm"]["bias"]
    np.testing.assert_allclose(head.apply(variables, X, lambda x: x @ table.T), x @ table.T + p["bias"], atol=1e-4)


@pytest.mark.parametrize("head", ["classification", "regression", "masked-lm"])
@pytest.mark.parametrize("name", ["toy-bert", "toy-roberta"])
def test_heads_on_an_encoder(name, head):
    config, tokens = with_head(get_model(name), head, 3), jnp.ones((2, 5), jnp.int32)
    model = Bert(config, dtype=jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    y = jax.eval_shape(model.apply, variables, tokens)
    assert y.shape == {"classification": (2, 3), "regression": (2,), "masked-lm": (2, 5, 259)}[head]
    assert y.dtype == jnp.float32
    paths = flatten(variables["params"])
    assert any(path.startswith("head/") for path in paths)
    assert ("pooler/kernel" in paths) == (name == "toy-bert" and head != "masked-lm")


def test_masked_lm_logits_follow_the_word_table():
    config, tokens = with_head(get_model("toy-bert"), "masked-lm"), jnp.ones((1, 5), jnp.int32)
    variables = drawn(Bert(config), tokens)
    grads = jax.jit(jax.grad(lambda v: Bert(config).apply(v, tokens)[..., 7].sum()))(variables)
    row = grads["params"]["embed"]["word"]["embedding"][7]  # token 7 is not in the input: only the head reads its row
    assert np.abs(row).max() > 0
