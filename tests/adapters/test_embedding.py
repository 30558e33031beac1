"""LoRA on a table: loralib's function and start, when it is chosen, how it merges, and what a tied head refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch
from toys import drawn

from lowrank_jax.adapters import AdapterConfig, attach, check, create, make_plan, merge, residual, unmerge
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.models.bert import Bert, with_head
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model

ROWS, RANK, ALPHA = 259, 3, 5.0
CONFIG = AdapterConfig(rank=RANK, alpha=ALPHA, targets=("embed",))
TOKENS = np.random.default_rng(0).integers(0, ROWS, (2, 6)).astype(np.int32)
UNTIED = dataclasses.replace(get_model("toy-llama"), tie_word_embeddings=False)


@pytest.fixture(scope="module")
def params():
    return drawn(Llama(UNTIED), TOKENS)["params"]


def moved(plan, params):
    made, rng = create(plan, jax.random.key(1)), np.random.default_rng(0)
    made["adapters"] = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), made["adapters"])
    return {"params": params, **made}


def test_rows_are_loralibs(params):
    """Values and gradients of A and B against loralib.Embedding, for ids that repeat."""
    import loralib

    plan = make_plan(params, CONFIG)
    variables = moved(plan, params)
    leaf = {name: np.asarray(value) for name, value in variables["adapters"]["embed"].items()}
    layer = loralib.Embedding(ROWS, 32, r=RANK, lora_alpha=ALPHA)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(params["embed"]["embedding"])))
        layer.lora_A.copy_(torch.tensor(leaf["a"].T))
        layer.lora_B.copy_(torch.tensor(leaf["b"].T))
    weights = np.random.default_rng(1).normal(size=(2, 6, 32)).astype("float32")
    out = layer(torch.tensor(TOKENS))
    (out * torch.tensor(weights)).sum().backward()
    apply_fn = attach(Llama(UNTIED), plan)
    embed = lambda model, tokens: model.embed(tokens)  # noqa: E731

    def loss(adapters):
        y = apply_fn({**variables, "adapters": adapters}, TOKENS, method=embed)
        return (y * weights).sum(), y

    grads, y = jax.jit(jax.grad(loss, has_aux=True))(variables["adapters"])
    np.testing.assert_allclose(y, out.detach(), atol=1e-5)
    np.testing.assert_allclose(grads["embed"]["a"], layer.lora_A.grad.T, atol=1e-4)
    np.testing.assert_allclose(grads["embed"]["b"], layer.lora_B.grad.T, atol=1e-4)


def test_the_start_is_loralibs_and_the_base(params):
    plan = make_plan(params, dataclasses.replace(CONFIG, rank=8))
    made = create(plan, jax.random.key(0))
    a, b = (np.asarray(made["adapters"]["embed"][name]) for name in "ab")
    assert not a.any()
    assert (a.shape, b.shape) == ((ROWS, 8), (8, 32))
    assert b.std() == pytest.approx(1, rel=0.15)
    assert plan.parameters == 8 * (ROWS + 32)
    variables = {"params": params, **made}
    check(Llama(UNTIED), plan, variables, TOKENS)
    model = Llama(UNTIED)
    fresh = jax.jit(attach(model, plan))(variables, TOKENS)
    np.testing.assert_array_equal(fresh, jax.jit(model.apply)({"params": params}, TOKENS))


def test_it_merges_and_comes_out_again(params):
    plan = make_plan(params, dataclasses.replace(CONFIG, targets=("embed", "query")))
    variables = moved(plan, params)
    merged = merge(variables, plan)
    branch = np.asarray(jax.jit(attach(Llama(UNTIED), plan))(variables, TOKENS))
    np.testing.assert_allclose(
        jax.jit(Llama(UNTIED).apply)({"params": merged}, TOKENS), branch, atol=2e-5 * np.abs(branch).max()
    )
    back = unmerge({**variables, "params": merged}, plan)
    for path, leaf in flatten(params).items():
        np.testing.assert_allclose(flatten(back)[path], leaf, atol=2e-5)


@pytest.mark.parametrize("targets", [("all-linear",), (".*",), ("query|embed",), ("all-linear", "query|embed")])
def test_a_table_comes_only_by_its_own_name(params, targets):
    assert "embed" not in [site.path for site in make_plan(params, dataclasses.replace(CONFIG, targets=targets)).sites]
    named = dataclasses.replace(CONFIG, targets=(*targets, "embed"))
    assert "embed" in [site.path for site in make_plan(params, named).sites]


def test_all_tables_of_an_encoder_by_name():
    encoder = get_model("toy-bert")
    tree = jax.eval_shape(Bert(encoder).init, jax.random.key(0), TOKENS)["params"]
    plan = make_plan(tree, dataclasses.replace(CONFIG, rank=2, targets=("embed/(word|position)", "embed/type")))
    assert [site.path for site in plan.sites] == ["embed/position", "embed/type", "embed/word"]
    plan = make_plan(tree, dataclasses.replace(CONFIG, targets=("word", "value")))
    assert [site.path for site in plan.sites] == ["embed/word", "layers/attention/value"]


def test_dropout_leaves_a_table_alone_and_strange_ids_show(params):
    plan = make_plan(params, dataclasses.replace(CONFIG, dropout=0.5))
    variables, embed = moved(plan, params), lambda model, tokens: model.embed(tokens)
    apply_fn = attach(Llama(UNTIED), plan)
    np.testing.assert_array_equal(
        apply_fn(variables, TOKENS, method=embed, rngs={"dropout": jax.random.key(0)}),
        apply_fn(variables, TOKENS, method=embed),
    )
    assert np.isnan(apply_fn(variables, np.int32([[ROWS]]), method=embed)).all()
    half = attach(Llama(UNTIED, dtype=jnp.bfloat16), plan)(variables, TOKENS, method=embed)
    assert half.dtype == jnp.bfloat16


def test_a_tied_head_refuses_the_merge():
    tied, masked = get_model("toy-llama"), with_head(get_model("toy-bert"), "masked-lm")
    for model, target in ((Llama(tied), "embed"), (Bert(masked), "word")):
        tree = drawn(model, TOKENS)["params"]
        plan = make_plan(tree, dataclasses.replace(CONFIG, targets=(target,)))
        with pytest.raises(UserError, match=r"multiplied with by a tied head too"):
            merge(moved(plan, tree), plan)
    for head in ("none", "classification"):  # which read no table
        model = Bert(with_head(get_model("toy-bert"), head))
        tree = drawn(model, TOKENS)["params"]
        plan = make_plan(tree, dataclasses.replace(CONFIG, targets=("word",)))
        merge(moved(plan, tree), plan)


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq", "orthogonal"])
def test_starts_for_kernels_are_refused(params, init):
    config = dataclasses.replace(CONFIG, init=init, rank=2)
    with pytest.raises(UserError, match=rf"embed: adapter.init '{init}' is a start for kernels"):
        make_plan(params, config)
    both = make_plan(params, [dataclasses.replace(config, targets=("query",)), CONFIG])
    table = flatten(residual(params, both))["embed/embedding"]
    assert table is params["embed"]["embedding"]


def test_a_rank_above_the_width_is_refused(params):
    with pytest.raises(UserError, match=r"embed: LoRA rank 33 exceeds the smaller side"):
        make_plan(params, dataclasses.replace(CONFIG, rank=33))
