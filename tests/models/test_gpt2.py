"""GPT-2 against transformers' GPT2LMHeadModel: logits, gradients, greedy decoding; parameter counts and errors."""

import dataclasses
import functools

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
from lowrank_jax.decoding.greedy import greedy, left_pad
from lowrank_jax.models.gpt2 import GPT2, SHAPES, GPT2Config
from lowrank_jax.models.parts.cache import init_cache
from lowrank_jax.models.parts.layers import Linear

TOY = GPT2Config(61, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=48)
LAYER = {
    "attention_norm": "ln_1",
    "attention/out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
}
PROJECTIONS = {f"layers/attention/{name}" for name in ("query", "key", "value", "out")} | {
    "layers/mlp/up",
    "layers/mlp/down",
}


def from_torch(config, state):
    """A transformers state dict as our parameters, written independently of interop's table."""
    state = {name: tensor.detach().float().numpy() for name, tensor in state.items()}

    def stack(name):
        return np.stack([state[f"transformer.h.{i}.{name}"] for i in range(config.num_hidden_layers)])

    flat = {}
    for ours, theirs in LAYER.items():
        flat[f"layers/{ours}/{'scale' if ours.endswith('norm') else 'kernel'}"] = stack(f"{theirs}.weight")
        flat[f"layers/{ours}/bias"] = stack(f"{theirs}.bias")
    d = config.hidden_size
    for i, name in enumerate(("query", "key", "value")):
        flat[f"layers/attention/{name}/kernel"] = stack("attn.c_attn.weight")[..., i * d : (i + 1) * d]
        flat[f"layers/attention/{name}/bias"] = stack("attn.c_attn.bias")[..., i * d : (i + 1) * d]
    flat["embed/embedding"] = state["transformer.wte.weight"]
    flat["position/embedding"] = state["transformer.wpe.weight"]
    flat["final_norm/scale"] = state["transformer.ln_f.weight"]
    flat["final_norm/bias"] = state["transformer.ln_f.bias"]
    if not config.tie_word_embeddings:
        flat["head/kernel"] = state["lm_head.weight"].T
    return {"params": unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})}


def torch_gpt2(config, seed=0):
    """The original with no weight at its start: zero biases and norms of one would hide a mix-up."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    hf = transformers.GPT2Config(
        vocab_size=config.vocab_size,
        n_embd=config.hidden_size,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_inner=config.intermediate_size,
        n_positions=config.max_position_embeddings,
        layer_norm_epsilon=config.layer_norm_epsilon,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(hf).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln_" in name and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.2)
    return model


@functools.cache
def variables_of(config, seed=0):
    return drawn(GPT2(config), jnp.zeros((1, 4), jnp.int32), seed=seed)


@functools.cache
def shapes_of(name):
    return jax.eval_shape(GPT2(SHAPES[name]).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


LAYOUTS = {
    "four-heads": {},
    "one-head": {"num_attention_heads": 1},
    "untied": {"tie_word_embeddings": False, "intermediate_size": 56, "layer_norm_epsilon": 1e-3},
}


@pytest.mark.parametrize(
    ("layout", "padding"),
    [("four-heads", "none"), ("four-heads", "right"), *((layout, "left") for layout in LAYOUTS)],
)
def test_logits_equal_transformers(layout, padding):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(TOY, **LAYOUTS[layout])
    original = torch_gpt2(config)
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
    ours = np.asarray(jitted(GPT2(config))(from_torch(config, original.state_dict()), tokens, mask=given))
    assert ours.dtype == np.float32
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs)[mask].max() / np.abs(theirs[mask]).max() < 1e-5


def test_gradients_equal_transformers():
    torch = pytest.importorskip("torch")
    original = torch_gpt2(TOY)
    tokens = np.random.default_rng(2).integers(0, TOY.vocab_size, (2, 11))
    original(input_ids=torch.tensor(tokens), labels=torch.tensor(tokens)).loss.backward()
    theirs = from_torch(TOY, {name: p.grad for name, p in original.named_parameters()})["params"]

    def loss(params):
        logits = GPT2(TOY, remat="projections").apply({"params": params}, jnp.asarray(tokens))[:, :-1]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[:, 1:, None], -1).mean()

    ours = flatten(jax.jit(jax.grad(loss))(from_torch(TOY, original.state_dict())["params"]))
    largest = max(np.abs(leaf).max() for leaf in flatten(theirs).values())
    for path, leaf in flatten(theirs).items():  # a key's bias moves no softmax: its gradient is rounding alone
        tolerance = 1e-6 * largest if path.endswith("key/bias") else 2e-5 * np.abs(leaf).max()
        np.testing.assert_allclose(ours[path], leaf, atol=tolerance, err_msg=path)


def test_cached_greedy_decoding_equals_transformers_generate():
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(TOY, tie_word_embeddings=False)  # tied random weights repeat one token
    original = torch_gpt2(config)
    with torch.no_grad():
        original.transformer.ln_f.bias.zero_()  # as does one constant vector for all
        original.transformer.wte.weight.mul_(5)
    rng = np.random.default_rng(3)
    tokens, mask = left_pad([rng.integers(1, TOY.vocab_size, n).tolist() for n in (5, 11, 1, 8)], pad_id=0)
    with torch.no_grad():
        theirs = original.generate(
            torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask),
            max_new_tokens=12,
            do_sample=False,
        )[:, tokens.shape[1] :].numpy()
    assert len(np.unique(theirs)) > 8
    empty = functools.partial(init_cache, config, dtype=jnp.float32)
    model = GPT2(config, remat="projections")
    run = jax.jit(lambda v, t, m: greedy(model.apply, v, empty, t, m, 12, None, 0))
    ours = run(from_torch(config, original.state_dict()), jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_array_equal(ours, theirs)


def test_parameters_of_the_known_shapes():
    counts = {name: count(shapes_of(name)) for name in SHAPES}
    assert counts["gpt2"] == 124_439_808
    assert counts["gpt2-medium"] == 354_823_168
    assert counts["gpt2-large"] == 774_030_080
    assert round(counts["gpt3-175b"] / 1e9, 1) == 174.6
    assert SHAPES["gpt3-175b"].head_dim == 128


def test_adapters_are_read_at_every_kernel():
    variables, tokens = variables_of(TOY), jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    plan = adapters.make_plan(variables["params"], adapters.AdapterConfig("lora", rank=2, targets=("all-linear",)))
    assert {site.path for site in plan.sites} == PROJECTIONS
    variables = {**variables, **adapters.create(plan, jax.random.key(1))}
    model = GPT2(TOY, remat="projections")
    adapters.check(model, plan, variables, tokens)
    apply_fn, plain = jax.jit(adapters.attach(model, plan)), jax.jit(GPT2(TOY).apply)(variables, tokens)
    np.testing.assert_allclose(apply_fn(variables, tokens), plain, atol=1e-5)
    moved = {**variables, "adapters": jax.tree.map(lambda x: x + 0.1, variables["adapters"])}
    assert np.abs(apply_fn(moved, tokens) - plain).max() > 1e-2


def test_every_projection_is_a_linear_with_its_own_path():
    seen = set()

    def record(call, args, kwargs, context):
        if isinstance(context.module, Linear) and context.method_name == "__call__":
            seen.add("/".join(context.module.path))
        return call(*args, **kwargs)

    config = dataclasses.replace(TOY, tie_word_embeddings=False)
    variables = variables_of(config)
    with nn.intercept_methods(record):
        jax.eval_shape(GPT2(config).apply, variables, jnp.zeros((1, 4), jnp.int32))
    assert seen == PROJECTIONS | {"head"}
    assert {f"{path}/bias" for path in PROJECTIONS} <= set(flatten(variables["params"]))


def test_types_never_promote_by_themselves(monkeypatch):
    library = jax.numpy_dtype_promotion("standard")(jax.nn.dot_product_attention)  # it promotes bfloat16 by itself
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    variables, tokens = cast(variables_of(TOY), jnp.bfloat16), jnp.ones((2, 5), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        model = GPT2(TOY, dtype=jnp.bfloat16, remat="projections")
        logits = jax.eval_shape(model.apply, variables, tokens, mask=jnp.ones((2, 5), bool))
        cache = init_cache(TOY, 2, 8, jnp.bfloat16)
        _, after = jax.eval_shape(model.apply, variables, tokens, mask=jnp.ones((2, 8), bool), cache=cache)
    assert logits.dtype == jnp.float32
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), cache)


def test_bfloat16_runs_close_to_float32():
    variables, tokens = variables_of(TOY), np.random.default_rng(1).integers(0, 61, (2, 9))
    half = np.asarray(jitted(GPT2(TOY, dtype=jnp.bfloat16))(cast(variables, jnp.bfloat16), tokens), np.float32)
    full = np.asarray(jitted(GPT2(TOY))(variables, tokens))
    assert np.abs(half - full).max() < 0.05 * np.abs(full).max()


def test_too_long_sequences_are_refused():
    with pytest.raises(UserError, match="49 tokens exceed the model's 48 positions"):
        jax.eval_shape(GPT2(TOY).init, jax.random.key(0), jnp.zeros((1, 49), jnp.int32))
    with pytest.raises(UserError, match="49 slots"):
        init_cache(TOY, 1, 49, jnp.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 32 does not divide into 3 heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"vocab_size": 10.5}, "vocab_size is 10.5"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TOY, **change)
