"""The encoder against transformers' BERT and RoBERTa: outputs, gradients, types, dropout and errors."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, jitted

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import cast, count
from lowrank_jax.models.bert import Bert, BertConfig, with_head
from lowrank_jax.models.parts.layers import Linear
from lowrank_jax.models.registry import ENCODERS

BERT = BertConfig(61, 32, 48, 3, 4, max_position_embeddings=40)
ROBERTA = dataclasses.replace(BERT, model_type="roberta", pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
KINDS = {"bert": BERT, "roberta": ROBERTA}
LAYER = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def from_torch(config, state):
    """A headless transformers state dict as our parameters, written independently of interop's table."""
    state = {name: tensor.detach().float().numpy() for name, tensor in state.items()}
    flat = {
        "embed/word/embedding": state["embeddings.word_embeddings.weight"],
        "embed/position/embedding": state["embeddings.position_embeddings.weight"],
        "embed/type/embedding": state["embeddings.token_type_embeddings.weight"],
        "embed_norm/scale": state["embeddings.LayerNorm.weight"],
        "embed_norm/bias": state["embeddings.LayerNorm.bias"],
        "pooler/kernel": state["pooler.dense.weight"].T,
        "pooler/bias": state["pooler.dense.bias"],
    }
    for ours, theirs in LAYER.items():
        weights, biases = (
            np.stack([state[f"encoder.layer.{i}.{theirs}.{kind}"] for i in range(config.num_hidden_layers)])
            for kind in ("weight", "bias")
        )
        flat[f"layers/{ours}/bias"] = biases
        if ours.endswith("norm"):
            flat[f"layers/{ours}/scale"] = weights
        else:
            flat[f"layers/{ours}/kernel"] = weights.swapaxes(1, 2)
    return {"params": unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})}


def torch_encoder(config, seed=0):
    """The original at random weights, norms and biases uneven, so that a dropped one shows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    own = ("head", "pooler", "num_labels", "model_type")
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    name = {"bert": "Bert", "roberta": "Roberta"}[config.model_type]
    hf = getattr(transformers, f"{name}Config")(**fields, attn_implementation="eager")
    model = getattr(transformers, f"{name}Model")(hf).float().eval()
    with torch.no_grad():
        for path, p in model.named_parameters():
            if "LayerNorm.weight" in path:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.2)
    return model


def batch(config, padded):
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, config.vocab_size, (3, 13)).astype(np.int32)
    mask = np.arange(13) < np.array([[13], [9], [4]]) if padded else np.ones((3, 13), bool)
    types = rng.integers(0, config.type_vocab_size, (3, 13)).astype(np.int32)
    return np.where(mask, tokens, config.pad_token_id).astype(np.int32), mask, types


@pytest.mark.parametrize(
    ("kind", "change", "padded"),
    [
        ("bert", {}, False),
        ("bert", {}, True),
        ("bert", {"num_attention_heads": 1}, True),
        ("roberta", {}, True),
        ("roberta", {"hidden_act": "gelu_new"}, True),
    ],
    ids=str,
)
def test_outputs_equal_transformers(kind, change, padded):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(KINDS[kind], **change)
    original = torch_encoder(config)
    tokens, mask, types = batch(config, padded)
    with torch.no_grad():
        theirs = original(*(torch.tensor(x) for x in (tokens, mask, types)))
    variables = from_torch(config, original.state_dict())
    hidden, pooled = jitted(Bert(config))(variables, tokens, mask if padded else None, types)
    want = theirs.last_hidden_state.numpy()
    assert np.abs(hidden - want)[mask].max() / np.abs(want[mask]).max() < 1e-5
    np.testing.assert_allclose(pooled, theirs.pooler_output.numpy(), atol=1e-5)


@pytest.mark.parametrize(("kind", "remat"), [("bert", "none"), ("roberta", "projections")])
def test_gradients_equal_transformers(kind, remat):
    torch = pytest.importorskip("torch")
    config = KINDS[kind]
    original = torch_encoder(config)
    tokens, mask, types = batch(config, padded=True)
    theirs = original(*(torch.tensor(x) for x in (tokens, mask, types)))
    (theirs.last_hidden_state[torch.tensor(mask)].square().sum() + theirs.pooler_output.sum()).backward()
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in original.named_parameters()}
    # padding_idx keeps these rows still in torch; ours move, and no real token reads them
    still = {"embed/word/embedding": config.pad_token_id}
    if kind == "roberta":
        still["embed/position/embedding"] = config.pad_token_id

    def loss(params):
        hidden, pooled = Bert(config, remat=remat).apply({"params": params}, tokens, mask, types)
        return jnp.sum(jnp.where(mask[..., None], jnp.square(hidden), 0)) + jnp.sum(pooled)

    ours = flatten(jax.jit(jax.grad(loss))(from_torch(config, original.state_dict())["params"]))
    for path, leaf in flatten(from_torch(config, grads)["params"]).items():
        got = np.array(ours[path])
        if path in still:
            got[still[path]] = 0
        np.testing.assert_allclose(got, leaf, atol=5e-5 * np.abs(leaf).max() + 2e-5, err_msg=path)


def variables_of(config, seed=0):
    return drawn(Bert(config), jnp.zeros((1, 4), jnp.int32), seed=seed)


def test_projections_keeps_every_product():
    def saved(remat):
        apply = Bert(BERT, remat=remat).apply
        tokens = jnp.zeros((2, 7), jnp.int32)
        leaves = jax.tree.leaves(
            jax.eval_shape(lambda v: jax.vjp(lambda v: apply(v, tokens), v)[1], variables_of(BERT))
        )
        shapes = [leaf.shape[3:] for leaf in leaves if leaf.shape[:3] == (3, 2, 7)]
        return {shape: shapes.count(shape) for shape in shapes}

    assert saved("full") == {(32,): 1}
    # the input and both sums in front of the norms; query, key, value and attention; up
    assert saved("projections") == {(32,): 3, (4, 8): 4, (48,): 1}


def test_padding_is_not_read():
    variables, (tokens, mask, types) = variables_of(ROBERTA), batch(ROBERTA, True)
    apply = jitted(Bert(ROBERTA))
    alone = apply(variables, tokens[1:2, :9])[0]
    np.testing.assert_allclose(apply(variables, tokens, mask, types)[0][1, :9], alone[0], atol=1e-5)


def test_dropout_acts_only_with_a_key():
    tokens, mask, _ = batch(BERT, True)
    model = Bert(with_head(BERT, "classification", 3))
    variables = variables_of(model.config)
    plain = jitted(model)(variables, tokens, mask)
    np.testing.assert_array_equal(plain, jitted(model)(variables, tokens, mask, rngs={}))
    one, two, again = (
        jitted(model)(variables, tokens, mask, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2, 1)
    )
    assert not np.allclose(one, plain, atol=1e-3)
    assert not np.allclose(one, two, atol=1e-3)
    np.testing.assert_array_equal(one, again)
    none = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    off = Bert(dataclasses.replace(model.config, **none))
    np.testing.assert_array_equal(plain, jitted(off)(variables, tokens, mask, rngs={"dropout": jax.random.key(1)}))


def test_attention_dropout_keeps_the_mean_and_the_mask():
    config = dataclasses.replace(BERT, hidden_dropout_prob=0.0, num_hidden_layers=1)
    variables, (tokens, mask, _) = variables_of(config), batch(config, True)
    other = np.where(mask, tokens, 5)  # other padding

    def hidden(tokens, rate, seed):
        model = Bert(dataclasses.replace(config, attention_probs_dropout_prob=rate))
        return jitted(model)(variables, tokens, mask, rngs={"dropout": jax.random.key(seed)})[0]

    # A vanishing rate goes the way that drops nothing: the explicit softmax agrees with jax's own attention.
    np.testing.assert_allclose(hidden(tokens, 1e-9, 0), hidden(tokens, 0.0, 0), atol=2e-6)
    np.testing.assert_allclose(hidden(tokens, 0.3, 1)[2, :4], hidden(other, 0.3, 1)[2, :4], atol=2e-6)


def test_bfloat16_runs_close_to_float32():
    variables, (tokens, mask, _) = variables_of(BERT), batch(BERT, True)
    half = jitted(Bert(BERT, dtype=jnp.bfloat16))(cast(variables, jnp.bfloat16), tokens, mask)[0]
    assert half.dtype == jnp.bfloat16
    full = jitted(Bert(BERT))(variables, tokens, mask)[0]
    assert np.abs(np.asarray(half, np.float32) - full).max() < 0.05 * np.abs(full).max()


def test_parameters_of_the_registered_models():
    def total(name):
        init = Bert(ENCODERS[name]).init
        return count(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])

    assert total("bert-base") == 109_482_240
    assert total("bert-large") == 335_141_888
    assert total("roberta-base") == 124_645_632
    assert total("roberta-large") == 355_359_744
    assert total("minilm-l6") == 22_713_216


def test_every_projection_is_a_linear_with_its_own_path():
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            seen.append("/".join(context.module.path))
        return call(*args, **kwargs)

    config = with_head(ROBERTA, "classification")
    variables = variables_of(config)
    with nn.intercept_methods(record):
        jax.eval_shape(Bert(config, remat="projections").apply, variables, jnp.zeros((1, 4), jnp.int32))
    products = {f"layers/{name}" for name in LAYER if not name.endswith("norm")}
    assert set(seen) == products | {"head/dense", "head/out"}
    plan = adapters.make_plan(variables["params"], adapters.AdapterConfig("lora", rank=2, targets=("all-linear",)))
    assert {site.path for site in plan.sites} == products  # the head is trained whole, or not at all
    adapters.check(
        Bert(config), plan, {**variables, **adapters.create(plan, jax.random.key(0))}, jnp.zeros((1, 4), int)
    )


def test_too_long_sequences_are_refused():
    for config, room in ((BERT, 40), (ROBERTA, 38)):
        jax.eval_shape(Bert(config).init, jax.random.key(0), jnp.zeros((1, room), jnp.int32))
        with pytest.raises(UserError, match=f"{room + 1} tokens exceed the model's {room} positions"):
            jax.eval_shape(Bert(config).init, jax.random.key(0), jnp.zeros((1, room + 1), jnp.int32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 32 does not divide into 3 heads"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"hidden_act": "gelu_nwe"}, "did you mean gelu_new"),
        ({"model_type": "albert"}, "unknown encoder 'albert'"),
        ({"head": "clasification"}, "did you mean classification"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"head": "regression", "num_labels": 3}, "a regression head gives one score"),
        ({"head": "classification", "pooler": False}, "needs the pooler"),
        ({"head": "masked-lm"}, "reads no pooler"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(BERT, **change)
