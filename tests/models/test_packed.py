"""Documents packed into rows: each has the loss that it has alone, and adapters the same gradients."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.planning import topology
from experiments.session import trial_group
from experiments.session.trial_group import with_masks_by_head
from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.data.packing import PackedRows
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.llama_config import AttentionKind, LayerKinds
from lowrank_jax.models.parts.attend import Window, attend, one_document
from lowrank_jax.models.parts.causal import positions_within
from lowrank_jax.models.parts.rotary import YarnScaling
from lowrank_jax.models.registry import get_model
from lowrank_jax.ops.capability import meant_for
from lowrank_jax.tasks.base import make_features

LENGTHS, WIDTH = (5, 9, 12, 3, 7, 2), 16
LLAMA = get_model("toy-llama")
SHAPES = {
    "llama": LLAMA,
    # A window in one layer of two, a softcap, and positions that scale queries: all of them know where a token stands.
    "windows": dataclasses.replace(
        LLAMA,
        attention=AttentionKind(softcap=3.0, query_growth=(0.7, 4)),
        layers=LayerKinds(sliding_window=3, local=(True, False), local_theta=50.0),
        rope_scaling=YarnScaling(factor=4.0, original_max_position_embeddings=4),
    ),
    "gpt2": GPT2Config(vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
}
# The kernel of each: on a CPU "auto" is heads_first, which the softcap needs in any case.
KERNELS = {"llama": "xla", "windows": "auto", "gpt2": "auto"}


def batches(rng):
    """(batch of packed rows, batch of a document a row, [rows, WIDTH] number of each packed token's document)."""
    rows = [(rng.integers(0, 256, length), np.arange(length) > 0) for length in LENGTHS]
    packed = PackedRows(rows, WIDTH)
    made = [(packed[i], make_features(packed[i]["tokens"], packed[i]["targets"], WIDTH, 0)) for i in range(len(packed))]
    segments = np.stack([np.pad(one["segments"], (0, WIDTH - len(one["segments"]))) for one, _ in made])
    together = {name: np.stack([features[name] for _, features in made]) for name in ("tokens", "weights")}
    alone = [make_features(tokens, targets, WIDTH, 0) for tokens, targets in rows]
    order = {rows[k][0].tobytes(): k for k in range(len(rows))}
    owner = np.full(segments.shape, -1)
    for row, (one, _) in enumerate(made):
        for number in range(1, one["segments"].max() + 1):
            place = np.flatnonzero(one["segments"] == number)
            owner[row, place] = order[one["tokens"][place].tobytes()]
    return together | {"segments": segments}, {k: np.stack([f[k] for f in alone]) for k in alone[0]}, owner


@pytest.mark.parametrize("name", SHAPES)
def test_a_packed_document_is_read_as_if_it_stood_alone(name):
    shape = SHAPES[name]
    model = (GPT2 if name == "gpt2" else Llama)(shape, attention=KERNELS[name])
    params = drawn(model, np.zeros((1, 4), np.int32))["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig("lora", targets=("query", "value"), init="gaussian"))
    apply_fn = adapters.attach(model, plan)
    variables = {"params": params, **jax.jit(functools.partial(adapters.create, plan))(jax.random.key(1))}
    moved = jax.tree.map(
        lambda x: x + 0.1 * np.cos(np.arange(x.size, dtype="f").reshape(x.shape)), variables["adapters"]
    )
    variables["adapters"] = moved  # LoRA's B begins at 0
    trainable, frozen = partition(variables)
    packed, alone, owner = batches(np.random.default_rng(0))
    assert len(packed["tokens"]) == 3
    objective = next_token_objective(apply_fn)

    @jax.jit
    def both(trainable, batch, owner):
        """(sum of losses of each document, gradient of their sum)."""
        each = batch["weights"] * (owner == jnp.arange(len(LENGTHS))[:, None, None])

        def losses(trainable):
            variables = combine(trainable, frozen)
            return jax.vmap(lambda weights: objective(variables, {**batch, "weights": weights}, None)[0])(each)

        found, pull = jax.vjp(losses, trainable)
        return found, pull(jnp.ones_like(found))[0]

    losses, gradients = both(trainable, packed, owner)
    wanted, wanted_gradients = both(trainable, alone, np.arange(len(LENGTHS))[:, None])
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(np.asarray(other)).max())
    # And the test could fail: joined, the documents see one another.
    joined = both(trainable, packed | {"segments": np.ones_like(packed["segments"])}, owner)[0]
    assert np.abs(np.asarray(joined - losses)).max() > 1e-3


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("window", [None, Window(3)])
def test_cudnn_with_documents_equals_xla(window):
    query, key, value = (
        jax.random.normal(jax.random.key(i), (2, 16, n, 64), jnp.bfloat16) for i, n in enumerate((4, 2, 2))
    )
    same = one_document(jnp.array([[1] * 5 + [2] * 9 + [0] * 2, [1] * 16])).same

    def gradients(kernel):
        def loss(*x):
            return jnp.square(attend(*x, same, causal=True, kernel=kernel, window=window).astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)

    for one, two in zip(gradients("cudnn"), gradients("xla"), strict=True):
        assert jnp.abs(one - two).max() < 0.03 * jnp.abs(two).max()


def test_what_a_gpu_computes_in_other_forms_trains_alike():
    """The forms of rotation, loss and padding that a GPU gets, run on the CPU: two trials have equal gradients."""
    model = Llama(LLAMA, attention="xla")
    params = drawn(model, np.zeros((1, 4), np.int32))["params"]
    config = adapters.AdapterConfig("lora", rank=3, targets=("all-linear",), init="gaussian")
    plan = adapters.make_plan(params, config)
    apply_fn = adapters.attach(model, plan)
    trainable, frozen = partition(
        {"params": params, **jax.jit(functools.partial(adapters.create, plan))(jax.random.key(1))}
    )
    trainable = jax.tree.map(lambda x: jnp.stack([x + 0.1, x - 0.2]), trainable)  # two trials; LoRA's B begins at 0
    packed, _, _ = batches(np.random.default_rng(0))

    def gradients(chunk_tokens, smoothing):
        objective = next_token_objective(apply_fn, chunk_tokens, smoothing=smoothing)

        def loss(trainable):
            return objective(combine(trainable, frozen), packed, None)

        return jax.jit(jax.vmap(jax.value_and_grad(loss, has_aux=True)))(trainable)

    for given in ((0, 0.1), (20, 0.0)):
        here = gradients(*given)
        with meant_for(SimpleNamespace(platform="gpu", compute_capability="9.0")):
            there = gradients(*given)
        for one, other in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=5e-5 * np.abs(np.asarray(other)).max())
        assert all(np.abs(np.asarray(leaf)).max() > 0 for leaf in jax.tree.leaves(here[1]))


def test_cudnn_where_packed_rows_do_not_suit_it(monkeypatch):
    model, tokens = Llama(LLAMA, attention="cudnn"), jnp.ones((1, 5), jnp.int32)
    with pytest.raises(UserError, match='"cudnn" needs rows of an even length, not 5'):
        jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, segments=tokens))
    monkeypatch.setattr(trial_group, "platform", lambda: "gpu")
    config = unpack_run(to_plain(complete_file("configs/finetune.py:data=a.jsonl,packed")))
    assert with_masks_by_head(config).base.attention == "auto_by_head"
    asked = dataclasses.replace(config, base=dataclasses.replace(config.base, attention="cudnn"))
    assert with_masks_by_head(asked).base.attention == "cudnn_by_head"
    dense = dataclasses.replace(config, base=dataclasses.replace(config.base, attention="xla"))
    assert with_masks_by_head(dense) is dense
    plain = dataclasses.replace(config, task=dataclasses.replace(config.task, packed=False, documents="joined"))
    assert with_masks_by_head(plain) is plain


@pytest.mark.parametrize("remat", ["none", "projections"])
def test_trials_of_packed_rows_run_on_cudnns_attention(remat):
    """jax's rule for vmap of it refuses a mask that heads share, as packed rows of a single run have it."""
    card = SimpleNamespace(platform="gpu", compute_capability="9.0")
    tokens = jnp.ones((3, 2, 8), jnp.int32)  # three trials
    with topology.planning_for(topology.parse("h200:1"), topology.Target([card], True, "", absent=True)):

        def traced(attention):
            model = Llama(LLAMA, jnp.bfloat16, jnp.bfloat16, remat=remat, attention=attention)
            params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens[0]))

            def loss(params, tokens):
                return model.apply(params, tokens, segments=tokens).sum()

            stacked = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), params)
            return str(jax.make_jaxpr(jax.vmap(jax.value_and_grad(loss)))(stacked, tokens))

        assert traced("cudnn_by_head").count("dot_product_attention_bwd") == 1
        with pytest.raises(TypeError, match="cannot reshape"):
            traced("cudnn")


def test_positions_begin_again():
    segments = jnp.array([[1, 1, 2, 3, 3, 3, 0, 0], [1] * 8])
    np.testing.assert_array_equal(positions_within(segments), [[0, 1, 0, 0, 1, 2, 0, 1], list(range(8))])


def test_segments_with_a_mask_are_refused():
    model = Llama(LLAMA)
    tokens = jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match="no mask and no cache"):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), tokens, mask=jnp.ones((1, 4), bool), segments=tokens)
        )  # fmt: skip
