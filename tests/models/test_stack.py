"""Every remat policy and unroll gives the same gradients, and saves what its name says."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.models.llama import Block, Llama
from lowrank_jax.models.parts.stack import POLICIES, REMAT, scan_layers
from lowrank_jax.models.registry import get_model

# Widths are all different, so that a saved value can be told by its shape.
CONFIG = dataclasses.replace(get_model("toy-llama"), head_dim=10, num_hidden_layers=3)
TOKENS = jax.random.randint(jax.random.key(1), (2, 7), 0, 259)
VARIABLES = drawn(Llama(CONFIG), TOKENS)


def loss(variables, **fields):
    logits = Llama(CONFIG, **fields).apply(variables, TOKENS)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], -1).mean()


@pytest.fixture(scope="module")
def plain():
    return jax.jit(jax.value_and_grad(loss))(VARIABLES)


# An unroll below, at and above the number of layers: leftover layer, no loop left, clipped.
@pytest.mark.parametrize(
    ("remat", "unroll"), [*zip(REMAT[1:], (1, 3, 3, 1, 3), strict=True), ("none", 2), ("projections", 8)]
)
def test_gradients_do_not_depend_on_remat_or_unroll(remat, unroll, plain):
    want_loss, want = plain
    step = jax.value_and_grad(lambda v: loss(v, remat=remat, scan_unroll=unroll))
    got_loss, got = jax.jit(step)(VARIABLES)
    np.testing.assert_allclose(got_loss, want_loss, rtol=1e-6)
    for path, leaf in flatten(want).items():
        np.testing.assert_allclose(flatten(got)[path], leaf, atol=1e-6 + 1e-5 * np.abs(leaf).max(), err_msg=path)


@functools.cache
def saved(remat, adapter=None):
    """{shape of one layer's saved value: how many of them}, parameters left out; from the scan's stacked residuals."""
    plan = adapters.make_plan(VARIABLES["params"], adapter or adapters.AdapterConfig("none"))
    apply_fn = adapters.attach(Llama(CONFIG, remat=remat), plan)

    def residuals(variables):
        return jax.vjp(lambda v: apply_fn(v, TOKENS), variables)[1]

    counts = {}
    made = jax.eval_shape(lambda key: adapters.create(plan, key), jax.random.key(2))
    for leaf in jax.tree.leaves(jax.eval_shape(residuals, {**VARIABLES, **made})):
        if leaf.shape[:1] == (3,) and leaf.shape[1:3] == TOKENS.shape:
            counts[leaf.shape[3:]] = counts.get(leaf.shape[3:], 0) + 1
    return counts


def test_full_saves_the_blocks_input_alone():
    assert saved("full") == {(32,): 1}


def test_attention_saves_its_output_too():
    assert saved("attention") == {(32,): 1, (4, 10): 1}


def test_projections_saves_what_the_table_says():
    got = saved("projections")
    assert got == {(32,): 2, (4, 10): 2, (2, 10): 2, (48,): 2}
    c, values = CONFIG, sum(math.prod(shape) * n for shape, n in got.items())
    heads, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    assert values == 2 * c.hidden_size + 2 * heads + 2 * kv + 2 * c.intermediate_size


def test_attention_projections_saves_all_but_the_mlp():
    assert saved("attention_projections") == {(32,): 2, (4, 10): 2, (2, 10): 2}


SEVEN = {"rank": 3, "targets": ("all-linear",)}


@pytest.mark.parametrize(
    ("adapter", "inside"),
    [
        (adapters.AdapterConfig("lora", **SEVEN), {(3,): 7}),
        (adapters.AdapterConfig("mora", **SEVEN), {(16,): 7}),  # sqrt(3 (in + out)) is 15 or 12; in eights
        (adapters.AdapterConfig("mora", **SEVEN, mora=adapters.MoraConfig("rotation")), {}),
    ],
    ids=["lora", "mora", "rotation"],
)
def test_projections_saves_an_adapters_narrow_inside(adapter, inside):
    for remat in ("attention_projections", "projections"):
        assert saved(remat, adapter) == saved(remat) | inside
    for remat in ("full", "attention"):
        assert saved(remat, adapter) == saved(remat)


def test_none_saves_more_than_projections():
    def total(remat):
        return sum(math.prod(shape) * n for shape, n in saved(remat).items())

    totals = [total(remat) for remat in (*REMAT[1:], "none")]
    assert totals == sorted({*totals})


def test_activations_saves_what_down_reads_too():
    assert saved("activations") == saved("projections") | {(48,): 3}


def test_activations_saves_what_a_rotation_has_turned():
    """Blocks of p neighbours as the square reads them, their p in eights; what query, key and value share is one value
    of the program (the compiler's work) and three of the policy's."""
    rotation = adapters.AdapterConfig("mora", **SEVEN, mora=adapters.MoraConfig("rotation"))
    more = {shape: n for shape, n in saved("activations", rotation).items() if shape not in saved("activations")}
    assert {shape[-1] for shape in more} == {16}
    assert sum(more.values()) == 7


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("remat", ["attention", "projections"])
def test_cudnn_attention_is_saved_once_with_its_log_sum_exp(remat):
    model = Llama(dataclasses.replace(CONFIG, head_dim=16), dtype=jnp.bfloat16, remat=remat, attention="cudnn")
    tokens = TOKENS[:, :6]  # cuDNN's gradient needs an even length
    variables = model.init(jax.random.key(0), tokens)
    residuals = jax.vjp(lambda v: model.apply(v, tokens), variables)[1]
    shapes = [leaf.shape for leaf in jax.tree.leaves(residuals)]
    assert shapes.count((3, 2, 4, 6)) == 1
    assert shapes.count((3, 2, 6, 4, 16)) == (1 if remat == "attention" else 2)  # and the query


def test_a_policy_is_added_by_name(monkeypatch):
    monkeypatch.setitem(POLICIES, "gate", jax.checkpoint_policies.save_only_these_names("gate"))
    scan_layers(Block, 2, "full")
    with pytest.raises(UserError, match="did you mean"):
        scan_layers(Block, 2, "projection")
    with pytest.raises(UserError, match="scan_unroll is 0"):
        scan_layers(Block, 2, "none", 0)
