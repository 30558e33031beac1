"""Each family at toy size against transformers: logits with padding, windows and a cache, gradients, PEFT, exports."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import jitted

from lowrank_jax import adapters
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.peft import export_peft
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.interop.llama import config_from_hf, config_to_hf, export_params, hf_table
from lowrank_jax.interop.peft.folder import load_peft
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.cache import init_cache

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LENGTH, WINDOW = 13, 5
ALTERNATING = ["sliding_attention", "full_attention"] * 2
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e3}
LONG = [1.0 + j / 2 for j in range(2)], [1.5 + 3 * j for j in range(2)]


def plain(name):
    """A change of one field of the config, back to Llama's."""
    return lambda c: {name: type(c).__dataclass_fields__[name].default}


def attention(**changes):
    """A change of the attention's kind."""
    return lambda c: {"attention": dataclasses.replace(c.attention, **changes)}


def layers(**changes):
    """A change of the layers' kinds."""
    return lambda c: {"layers": dataclasses.replace(c.layers, **changes)}


NO_BIAS, NO_QK_NORM = attention(qkv_bias=False), attention(qk_norm="none")
NO_WINDOW, EVERY_WINDOW = layers(sliding_window=None), layers(local=())
NO_SCALING = plain("rope_scaling")
# HF's model_type: (transformers' class, its fields beyond SHAPE, {flag: change of our config that takes it away}); a
# flag of several families, whose rows and widths are alike, is taken away in one of them.
FAMILIES = {
    "llama": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"biases": attention(qkv_bias=False, out_bias=False), "mlp_bias": plain("mlp_bias")},
    ),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2, "tie_word_embeddings": True},
        {"bias": NO_BIAS, "layers": EVERY_WINDOW},
    ),
    "mistral": (
        "Mistral",
        {"sliding_window": WINDOW, "rope_parameters": YARN},
        {"window": NO_WINDOW, "yarn": NO_SCALING},
    ),
    "ministral3": (
        "Ministral3",
        {
            "sliding_window": None,
            "head_dim": 8,
            "rope_parameters": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 0.5,
                "original_max_position_embeddings": 4,
                "llama_4_scaling_beta": 0.7,
            },
        },
        {"query_growth": attention(query_growth=None), "yarn": NO_SCALING},
    ),
    "smollm3": (
        "SmolLM3",
        {"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": True, "sliding_window": WINDOW},
        {"rotated": layers(rotated=())},
    ),
    "olmo2": ("Olmo2", {}, {"qk_norm": NO_QK_NORM, "norms": lambda c: {"norms": "both"}}),
    "olmo3": (
        "Olmo3",
        {"sliding_window": WINDOW, "rope_theta": 1e3, "rope_scaling": {**YARN, "attention_factor": 1.3}},
        {
            "layers": layers(local=(True,) * 4),
            "yarn": NO_SCALING,
            "local": layers(local_theta=None),
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        {
            "softcap": attention(softcap=None),
            "query_scalar": attention(query_scalar=None),
            "logit_softcap": plain("logit_softcap"),
            "embedding": plain("scale_embedding"),
            "norms": plain("norms"),
            "activation": plain("hidden_act"),
            "offset": plain("norm_offset"),
        },
    ),
    "gemma3_text": (
        "Gemma3Text",
        {
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": WINDOW,
            "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        },
        {
            "local": layers(local_theta=None),
            "linear": NO_SCALING,
        },
    ),
    "phi3": (
        "Phi3",
        {
            "partial_rotary_factor": 0.5,
            "original_max_position_embeddings": 8,
            "sliding_window": WINDOW,
            "rope_scaling": {"type": "longrope", "short_factor": LONG[0], "long_factor": LONG[1]},
        },
        {
            "scaling": NO_SCALING,
            "part": lambda c: {"rope_scaling": None, "partial_rotary_factor": 1.0},
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 12, "rope_theta": 1e3}, {"qk_norm": NO_QK_NORM, "theta": plain("rope_theta")}),
}


def torch_model(name, **changes):
    """A family's toy at random weights; norms uneven, so that a dropped one shows."""
    import torch
    import transformers

    title, fields, _ = FAMILIES[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{title}Config")(**{**SHAPE, **fields, **changes}, attn_implementation="eager")
    kind = title.removesuffix("Text")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    middle = 0.0 if "gemma" in name else 1.0
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "norm" in path:
                weight.uniform_(middle - 0.5, middle + 0.5)
            else:
                weight.normal_(0, 0.2)
    return model


def torch_logits(model, tokens, mask=None):
    """transformers' logits; positions count the valid tokens."""
    import torch

    given = {}
    if mask is not None:
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        given = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions)}
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), use_cache=False, **given).logits.numpy()


TOKENS = np.random.default_rng(1).integers(1, 61, (3, LENGTH)).astype(np.int32)
PADDED = np.arange(LENGTH)[::-1] < np.array([[13], [9], [4]])  # on the left


@pytest.fixture(scope="module", params=FAMILIES)
def toy(request, tmp_path_factory):
    """A family's toy: transformers' model, its folder, and the base that is read from it."""
    pytest.importorskip("transformers")
    folder, model = tmp_path_factory.mktemp(request.param), torch_model(request.param)
    model.save_pretrained(folder)
    base = load_base(BaseConfig(str(folder)))
    return SimpleNamespace(
        name=request.param, torch=model, folder=folder, base=base, wanted=torch_logits(model, TOKENS)
    )


def ours(config, params, tokens=TOKENS, **inputs):
    return np.asarray(jitted(Llama(config))({"params": params}, tokens, **inputs))


def close(got, want, bound=1e-5):
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() / np.abs(want).max() < bound


def test_logits(toy):
    assert toy.base.config.family == toy.name
    close(ours(toy.base.config, toy.base.params), toy.wanted)


def test_logits_of_padded_rows(toy):
    got = ours(toy.base.config, toy.base.params, mask=PADDED)
    close(got[PADDED], torch_logits(toy.torch, TOKENS, PADDED)[PADDED])


CUT = {"qwen2": (2,), "olmo3": (1, 2, 3), "gemma3_text": (1, 2, 3)}  # so that layers with a window keep it alone
RINGS = {"mistral": {WINDOW}, "phi3": {WINDOW}} | {name: {WINDOW, LENGTH} for name in CUT}  # slots of the caches


def test_cached_pieces_give_the_logits_of_the_whole(toy):
    """With the padding in front; the layers of mistral and phi3, and those of CUT that have a window, keep a ring."""
    config, cuts = toy.base.config, CUT.get(toy.name, ())
    cache, pieces = init_cache(config, 3, LENGTH, jnp.float32, cuts), []
    slots = {part["key"].shape[2] for part in cache.layers.values()}
    assert slots == RINGS.get(toy.name, {LENGTH})
    variables = {"params": Segments(cuts).apply(toy.base.params)}
    step = jitted(Llama(config, cuts=cuts))
    several = [(0, 7), (7, 10)] if toy.name in RINGS else [(0, 10)]
    for start, stop in (*several, (10, 11), (11, 12), (12, 13)):
        logits, cache = step(variables, TOKENS[:, start:stop], cache=cache, mask=PADDED)
        pieces.append(logits)
    wanted = ours(config, toy.base.params, mask=PADDED)
    close(np.concatenate(pieces, 1)[PADDED], wanted[PADDED])


@pytest.mark.parametrize("slots", [7, WINDOW])
def test_rows_beside_a_shared_beginning_give_the_logits_of_whole_rows(toy, slots):
    """Three rows each behind two beginnings: a full one, longer than the window or of its length, and a padded one."""
    cuts = CUT.get(toy.name, ())
    model, variables = Llama(toy.base.config, cuts=cuts), {"params": Segments(cuts).apply(toy.base.params)}
    reads = make_decoder(model.apply, toy.base.config, jnp.float32, cuts).shared
    scaling = toy.base.config.rope_scaling
    assert (reads is None) == (scaling is not None and scaling.by_length)
    if reads is None:
        return

    @jax.jit
    def beside(variables, tokens, lengths, rests):
        hidden = reads.hidden(variables, reads.read(variables, tokens, lengths), rests)
        return model.apply(variables, hidden, method="logits")

    lengths, rests = np.array([slots, slots - 2]), TOKENS[:, :6]
    got = np.asarray(beside(variables, TOKENS[1:, -slots:], lengths, np.concatenate([rests, rests])))
    for group, length in enumerate(lengths):
        before = np.broadcast_to(TOKENS[1 + group, -slots:][:length], (3, length))
        wanted = ours(toy.base.config, toy.base.params, np.concatenate([before, rests, rests[:, : 7 - length]], 1))
        close(got[3 * group : 3 * group + 3], wanted[:, length : length + 6])


def with_others_names(params):
    """Params with norms in front too, where a model has them behind alone, and offsets as scales too."""
    flat = dict(flatten(params))
    for path, leaf in flatten(params).items():
        flat.setdefault(path.replace("_post_norm", "_norm"), leaf)
        flat.setdefault(path.replace("/offset", "/scale"), leaf)
    return unflatten(flat)


def test_every_flag_matters(toy):
    for name, change in FAMILIES[toy.name][2].items():
        config = dataclasses.replace(toy.base.config, **change(toy.base.config))
        got = ours(config, with_others_names(toy.base.params))
        assert np.abs(got - toy.wanted).max() / np.abs(toy.wanted).max() > 1e-3, name


def test_the_config_comes_back(toy):
    assert config_from_hf(config_to_hf(toy.base.config, "float32")) == toy.base.config


@pytest.fixture(scope="module")
def peft_toy(toy, tmp_path_factory):
    """PEFT's LoRA on all linear modules, B drawn; its folder, logits and gradients."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = peft.get_peft_model(toy.torch, peft.LoraConfig(r=2, lora_alpha=3, target_modules="all-linear"))
    torch.manual_seed(3)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                weight.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("peft")
    model.save_pretrained(folder)
    logits = model(input_ids=torch.tensor(TOKENS)).logits
    logits.square().mean().backward()
    gradients = {path: weight.grad.numpy() for path, weight in model.named_parameters() if weight.grad is not None}
    found = SimpleNamespace(folder=folder, logits=logits.detach().numpy(), gradients=gradients)
    model.unload()
    return found


# The gradients of biases, of norms behind and around, of softcaps, of products that a file has as one.
DIFFERENTIATED = ("llama", "olmo3", "gemma2", "phi3")


def test_a_peft_folder_and_its_gradients(toy, peft_toy, tmp_path):
    base = toy.base
    read = load_peft(peft_toy.folder, base.params, hf_table(base.config), 4)
    apply_fn = adapters.attach(base.model, read.plan)
    variables = jax.tree.map(jnp.asarray, read.variables)

    def loss(trained):
        logits = apply_fn({**variables, "adapters": trained}, TOKENS)
        return jnp.square(logits).mean(), logits

    differentiate = jax.value_and_grad(loss, has_aux=True) if toy.name in DIFFERENTIATED else lambda v: (loss(v), v)
    (_, logits), gradients = jax.jit(differentiate)(variables["adapters"])
    close(logits, peft_toy.logits)
    assert np.abs(peft_toy.logits - toy.wanted).max() > 1e-2
    found = {}  # of a product that the file holds as one, all parts
    flat = {path: np.asarray(leaf) for path, leaf in flatten(gradients).items()}
    for row in hf_table(base.config):
        for layer, source in enumerate(row.sources(4)):
            path, name = row.target.removesuffix("/kernel"), f"base_model.model.{source.removesuffix('.weight')}"
            if f"{path}/a" in flat:
                found.setdefault(name, []).append([flat[f"{path}/{leaf}"][layer] for leaf in "ab"])
    assert 2 * len(found) == len(peft_toy.gradients)
    for name, parts in found.items() if toy.name in DIFFERENTIATED else ():
        a, b = sum(a for a, _ in parts), np.concatenate([b for _, b in parts], 1)
        for leaf, got in (("A", a), ("B", b)):
            close(got, peft_toy.gradients[f"{name}.lora_{leaf}.default.weight"].T, 1e-4)
    merged = adapters.merge(variables, read.plan)
    export_params(merged, base.config, tmp_path / "merged")
    close(reloaded(tmp_path / "merged"), peft_toy.logits)


def test_peft_reads_what_is_written(toy, tmp_path):
    """Sites of their own each, which PEFT has as one module where the file holds their kernels as one."""
    peft = pytest.importorskip("peft")
    plan = adapters.make_plan(toy.base.params, adapters.AdapterConfig(targets=("all-linear",), rank=2, alpha=3.0))
    made, rng = jax.jit(functools.partial(adapters.create, plan))(jax.random.key(0)), np.random.default_rng(2)
    made["adapters"] = jax.tree.map(lambda x: np.asarray(0.2 * rng.normal(size=x.shape), x.dtype), made["adapters"])
    variables = {"params": toy.base.params, **made}
    ours = jax.jit(adapters.attach(toy.base.model, plan))(variables, TOKENS)
    export_peft(tmp_path, plan, variables, toy.base)
    model = peft.PeftModel.from_pretrained(toy.torch, tmp_path).eval()
    theirs = torch_logits(model, TOKENS)
    model.unload()
    close(np.asarray(ours), theirs)
    assert np.abs(theirs - toy.wanted).max() > 1e-2


@functools.cache
def _auto():
    import transformers

    return transformers.AutoModelForCausalLM


def reloaded(folder):
    return torch_logits(_auto().from_pretrained(folder, attn_implementation="eager").eval(), TOKENS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("phi3", {"target_modules": "all-linear", "use_dora": True}),
        ("phi3", {"target_modules": ["down_proj"], "modules_to_save": ["qkv_proj"]}),
        ("gemma3_text", {"target_modules": ["embed_tokens"]}),
        ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["post_feedforward_layernorm"]}),
        ("qwen2", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    ],
)
def test_more_than_lora_goes_both_ways(name, options, tmp_path):
    """Magnitudes, trained norms, biases and whole modules of what PEFT has under other names; scaled embeddings."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    model = torch_model(name, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "base")
    base = load_base(BaseConfig(str(tmp_path / "base")))
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, **options)).eval()
    with torch.no_grad():
        for weight in (weight for weight in adapted.parameters() if weight.requires_grad):
            weight += 0.2 * torch.randn_like(weight)
    adapted.save_pretrained(tmp_path / "theirs")
    want = torch_logits(adapted, TOKENS)
    read = load_peft(tmp_path / "theirs", base.params, hf_table(base.config), 4)
    apply_fn = jax.jit(adapters.attach(base.model, read.plan))
    close(np.asarray(apply_fn(jax.tree.map(jnp.asarray, read.variables), TOKENS)), want)
    assert np.abs(want - ours(base.config, base.params)).max() > 1e-2
    export_peft(tmp_path / "ours", read.plan, read.variables, base, read.changed)
    fresh = torch_model(name, tie_word_embeddings=False)
    close(torch_logits(peft.PeftModel.from_pretrained(fresh, tmp_path / "ours").eval(), TOKENS), want)
