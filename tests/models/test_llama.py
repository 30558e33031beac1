"""Llama against transformers' LlamaForCausalLM, its parameter counts, its types and its errors."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, jitted

from lowrank_jax.bases.base import param_shapes
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import cast, count
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.models.parts.cache import init_cache
from lowrank_jax.models.parts.layers import Linear
from lowrank_jax.models.registry import LLAMAS, get_model

TOY = LlamaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
)
NAMES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}


def from_torch(config, state):
    """A transformers state dict as our parameters, written independently of interop's table."""
    state = {name: tensor.detach().float().numpy() for name, tensor in state.items()}

    def stack(name):
        return np.stack([state[f"model.layers.{i}.{name}.weight"] for i in range(config.num_hidden_layers)])

    flat = {f"layers/{ours}/kernel": stack(theirs).swapaxes(1, 2) for ours, theirs in NAMES.items()}
    flat["layers/attention_norm/scale"] = stack("input_layernorm")
    flat["layers/mlp_norm/scale"] = stack("post_attention_layernorm")
    flat["embed/embedding"] = state["model.embed_tokens.weight"]
    flat["final_norm/scale"] = state["model.norm.weight"]
    if not config.tie_word_embeddings:
        flat["head/kernel"] = state["lm_head.weight"].T
    return {"params": unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})}


def torch_llama(config, seed=0):
    """The original at random weights with uneven norms, so that a dropped norm scale shows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k != "rope_theta"}
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    hf = transformers.LlamaConfig(**fields, **special, rope_parameters=rope, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(hf).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.2)
    return model


@functools.cache
def variables_of(config, seed=0):
    return drawn(Llama(config), jnp.zeros((1, 4), jnp.int32), seed=seed)


LAYOUTS = {
    "grouped": {},
    "one": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "all": {"num_key_value_heads": 4},
    "shared": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "wide-heads": {"head_dim": 12, "rope_theta": 1e5, "tie_word_embeddings": True},
}


@pytest.mark.parametrize(
    ("layout", "padding"),
    [("grouped", "none"), ("grouped", "right"), *((layout, "left") for layout in LAYOUTS)],
)
def test_logits_equal_transformers(layout, padding):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(TOY, head_dim=None) if layout == "one" else TOY
    config = dataclasses.replace(config, **{"head_dim": None, **LAYOUTS[layout]})
    original = torch_llama(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (3, 13))
    lengths = np.array([13, 9, 4]) if padding != "none" else np.array([13, 13, 13])
    mask = np.arange(13) < lengths[:, None]
    mask = mask[:, ::-1].copy() if padding == "left" else mask
    with torch.no_grad():
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        theirs = original(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions)
        ).logits.numpy()
    given = None if padding == "none" else mask
    ours = np.asarray(jitted(Llama(config))(from_torch(config, original.state_dict()), tokens, mask=given))
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs)[mask].max() / np.abs(theirs[mask]).max() < 1e-5


def test_right_padding_needs_no_mask():
    variables, tokens = variables_of(TOY), np.random.default_rng(1).integers(0, 61, (2, 9))
    mask = np.arange(9) < np.array([[9], [5]])
    plain, masked = (np.asarray(jitted(Llama(TOY))(variables, tokens, mask=m)) for m in (None, mask))
    np.testing.assert_allclose(plain[1, :5], masked[1, :5], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_equal_transformers(tied):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(TOY, tie_word_embeddings=tied)
    original = torch_llama(config)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (2, 11))
    original(input_ids=torch.tensor(tokens), labels=torch.tensor(tokens)).loss.backward()
    theirs = from_torch(config, {name: p.grad for name, p in original.named_parameters()})["params"]

    def loss(params):
        logits = Llama(config).apply({"params": params}, jnp.asarray(tokens))[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[:, 1:, None], -1).mean()

    ours = jax.jit(jax.grad(loss))(from_torch(config, original.state_dict())["params"])
    for path, leaf in flatten(theirs).items():
        np.testing.assert_allclose(flatten(ours)[path], leaf, atol=2e-5 * np.abs(leaf).max(), err_msg=path)


def test_parameters_of_the_registered_models():
    """By the table of parameters, which tests/models/test_family_layouts.py holds to the module's own."""
    shapes = {
        name: unflatten({path: jax.ShapeDtypeStruct(dims, "float32") for path, dims in param_shapes(config).items()})
        for name, config in LLAMAS.items()
    }
    assert count(shapes["llama2-7b"]) == 6_738_415_616
    assert count(shapes["llama2-13b"]) == 13_015_864_320
    assert count(shapes["llama3-8b"]) == 8_030_261_248
    assert count(shapes["smollm2-135m"]) == 134_515_008
    assert count(shapes["smollm2-360m"]) == 361_821_120
    assert count(shapes["llama-3.2-1b"]) == 1_235_814_400
    assert count(shapes["qwen2.5-0.5b"]) == 494_032_768
    assert count(shapes["qwen3-0.6b"]) == 596_049_920
    assert count(shapes["gemma-3-270m"]) == 268_098_176
    assert count(shapes["gemma-3-1b"]) == 999_885_952
    assert count(shapes["smollm3-3b"]) == 3_075_098_624
    assert count(shapes["mistral-7b-v0.3"]) == 7_248_023_552
    assert count(shapes["olmo-2-1b"]) == 1_484_916_736
    # MoRA's table: linear kernels, then embeddings, head and norms.
    assert count(shapes["mora-250m"]) == pytest.approx(198.2e6 + 49.3e6, rel=1e-3)
    assert count(shapes["mora-1.3b"]) == pytest.approx(1207.9e6 + 131.6e6, rel=1e-3)
    assert 3e6 < count(shapes["pico-llama"]) < 4e6
    assert "head" in shapes["llama2-7b"]
    assert "head" not in shapes["smollm2-135m"]
    paths = flatten(shapes["toy-llama"])
    assert paths["layers/attention/key/kernel"].shape == (2, 32, 16)
    assert paths["layers/mlp/down/kernel"].shape == (2, 48, 32)
    assert paths["embed/embedding"].shape == (259, 32)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_runs_close_to_float32_and_gives_float32_logits(tied):
    config = dataclasses.replace(TOY, tie_word_embeddings=tied)
    tokens = np.random.default_rng(1).integers(0, 61, (2, 9))

    def run(dtype):
        def loss(variables):
            logits = Llama(config, dtype=dtype).apply(variables, tokens)
            return jnp.square(logits).mean(), logits

        (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(cast(variables_of(config), dtype))
        return logits, gradient

    (logits, g16), (full, g32) = run(jnp.bfloat16), run(jnp.float32)
    assert logits.dtype == jnp.float32
    assert np.abs(logits - full).max() < 0.05 * np.abs(full).max()
    for path, leaf in flatten(g16).items():
        assert leaf.dtype == jnp.bfloat16
        other = np.asarray(flatten(g32)[path])
        assert np.abs(np.asarray(leaf, np.float32) - other).max() < 0.1 * np.abs(other).max(), path


def test_types_never_promote_by_themselves(monkeypatch):
    library = jax.numpy_dtype_promotion("standard")(jax.nn.dot_product_attention)  # it promotes bfloat16 by itself
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    variables, tokens = cast(variables_of(TOY), jnp.bfloat16), jnp.ones((2, 5), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        model = Llama(TOY, dtype=jnp.bfloat16, remat="projections")
        logits = jax.eval_shape(model.apply, variables, tokens, mask=jnp.ones((2, 5), bool))
        cache = init_cache(TOY, 2, 8, jnp.bfloat16)
        _, after = jax.eval_shape(model.apply, variables, tokens, mask=jnp.ones((2, 8), bool), cache=cache)
    assert logits.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)


def test_hidden_then_logits_is_the_call():
    variables, tokens = variables_of(TOY), jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    hidden = np.asarray(jitted(Llama(TOY), method="hidden")(variables, tokens))
    assert hidden.shape == (2, 5, 32)
    last = jitted(Llama(TOY), method="logits")(variables, hidden[:, -1])
    np.testing.assert_allclose(last, np.asarray(jitted(Llama(TOY))(variables, tokens))[:, -1], atol=1e-6)


def test_an_id_past_the_vocabulary_is_not_read_as_another_token():
    assert np.isnan(np.asarray(jitted(Llama(TOY))(variables_of(TOY), np.array([[3, 61]])))[0, 1]).all()


def test_too_long_sequences_are_refused():
    with pytest.raises(UserError, match="65 tokens exceed the model's 64 positions"):
        jax.eval_shape(Llama(TOY).init, jax.random.key(0), jnp.zeros((1, 65), jnp.int32))
    with pytest.raises(UserError, match="65 slots"):
        init_cache(TOY, 1, 65, jnp.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": None, "hidden_size": 30}, "hidden_size 30 does not divide into 4 heads"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": 10.5}, "vocab_size is 10.5"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TOY, **change)


def test_unknown_names_name_the_nearest():
    with pytest.raises(UserError, match="did you mean llama2-7b"):
        get_model("llama-7b")
    for field, message in (("remat", "projections"), ("attention", "cudnn")):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(Llama(TOY, **{field: message[:-1]}).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


@pytest.mark.parametrize("remat", ["none", "projections"])
def test_every_projection_is_a_linear_with_its_own_path(remat):
    seen = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            seen.append("/".join(context.module.path))
        return call(*args, **kwargs)

    variables = variables_of(TOY)
    with nn.intercept_methods(record):
        jax.eval_shape(Llama(TOY, remat=remat).apply, variables, jnp.zeros((1, 4), jnp.int32))
    assert set(seen) == {f"layers/{name}" for name in NAMES} | {"head"}
    assert {f"{path}/kernel" for path in seen} <= set(flatten(variables["params"]))
