"""config.json of each family that is read as a Llama: defaults, both spellings, refusals; and models with images."""

import json

import numpy as np
import pytest
from toys import jitted

from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.carried import carry
from lowrank_jax.interop.causal.families import BY_TYPE
from lowrank_jax.interop.llama import config_from_hf, config_to_hf

SHAPE = {
    "vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 8, "num_attention_heads": 32,
}  # fmt: skip
FIRST = {"full_attention": {"rope_type": "default", "rope_theta": 2e5}}
OLD = {"original_max_position_embeddings": 4096}
SECOND = {"sliding_attention": {"rope_type": "default", "rope_theta": 3e4}}


@pytest.mark.parametrize("kind", BY_TYPE)
def test_defaults_are_transformers_own(kind):
    transformers = pytest.importorskip("transformers")
    values = {"model_type": kind, **SHAPE}
    theirs, ours = transformers.AutoConfig.for_model(**values), config_from_hf(values)
    for name in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2)
    rope = theirs.rope_parameters
    assert ours.rope_theta == rope.get("full_attention", rope)["rope_theta"]
    assert (ours.rope_scaling is None) == (rope.get("rope_type", "default") == "default")
    if "sliding_attention" in rope:
        assert ours.layers.local_theta == rope["sliding_attention"]["rope_theta"]
    if kinds := getattr(theirs, "layer_types", None):
        local = ours.layers.local or (False,) * 8
        assert local == tuple(one == "sliding_attention" for one in kinds)
    if ours.layers.sliding_window or not kinds:
        assert ours.layers.sliding_window == getattr(theirs, "sliding_window", None)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(ours, "float32")))) == ours
    assert config_from_hf(theirs.to_dict() | {"architectures": None}) == ours


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 7}, {"layer_types": ["full_attention"] * 7}),
        ("gemma2", {}, {"layer_types": ["sliding_attention", "full_attention"] * 4}),
        ("gemma3_text", {"sliding_window_pattern": 8}, {"layer_types": ["sliding_attention"] * 7}),
        ("gemma3_text", {"rope_theta": 2e5, "rope_local_base_freq": 3e4}, {"rope_parameters": FIRST | SECOND}),
        ("smollm3", {"no_rope_layer_interval": 8}, {"no_rope_layers": [1] * 7 + [0]}),
        ("smollm3", {"rope_theta": 2e5}, {"rope_parameters": FIRST["full_attention"]}),
        ("olmo3", {"rope_theta": 2e5}, {"rope_parameters": FIRST}),
        (
            "phi3",
            {"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [2.0], **OLD}},
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        ),
    ],
)
def test_both_spellings_are_read_alike_and_as_by_transformers(kind, old, new):
    transformers = pytest.importorskip("transformers")
    if len(new.get("layer_types", "12345678")) == 7:
        other = "full_attention" if "full_attention" not in new["layer_types"] else "sliding_attention"
        new = {"layer_types": [*new["layer_types"], other], **({"use_sliding_window": True} if kind == "qwen2" else {})}
    values = {"model_type": kind, **SHAPE}
    one, other = (config_from_hf({**values, **spelling}) for spelling in (old, new))
    assert one == other
    for spelling in (old, new):
        theirs = transformers.AutoConfig.for_model(**values, **json.loads(json.dumps(spelling)))
        assert config_from_hf(theirs.to_dict() | {"architectures": None}) == one


def test_a_base_of_its_own_for_layers_with_a_window_comes_back():
    """transformers reads OLMo 3's rope_theta for the other layers alone, so the new spelling is written."""
    config = config_from_hf({"model_type": "olmo3", **SHAPE, "rope_parameters": FIRST | SECOND})
    assert (config.rope_theta, config.layers.local_theta) == (2e5, 3e4)
    assert config_from_hf(config_to_hf(config, "float32")) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 8},
            "sliding_window is not set or switched off",
        ),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "one name for each of the 8 layers"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 8}, "layer_types names chunked_attention"),
        ({"model_type": "gemma2", "sliding_window": 0}, "sliding_window is 0; it must be above 0"),
        ({"model_type": "gemma2", "sliding_window": "wide"}, "sliding_window must be a whole number"),
        ({"model_type": "gemma2", "hidden_activation": "relu"}, "hidden_activation relu is not supported by Gemma2"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention is not supported"),
        ({"model_type": "gemma2", "attn_logit_softcapping": -1.0}, "softcap is -1.0; it must be above 0"),
        ({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is not supported"),
        ({"model_type": "gemma3_text", "rope_parameters": FIRST["full_attention"]}, "rope_theta, rope_type beside or"),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}},
            "rope_type 'yarn' of sliding_attention is not supported",
        ),
        ({"model_type": "gemma3_text", "partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({"model_type": "olmo2", "sliding_window": 4}, "sliding_window is not supported by Olmo2"),
        (
            {"model_type": "mistral", "layer_types": ["full_attention", "sliding_attention"] * 4},
            "layer_types that differ are not supported",
        ),
        ({"model_type": "mistral", "partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported by Mistral"),
        ({"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}, "no rope_type 'linear'"),
        ({"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": 1.0}}, "short_factor must be a list"),
        ({"model_type": "phi3", "attention_bias": True}, "attention_bias is not supported by Phi3"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers must be a list of 0 or 1 for each"),
        ({"model_type": "ministral3", "rope_parameters": {"rope_type": "default"}}, "llama_4_scaling_beta must be"),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "Qwen3Model is not a Qwen3; only Qwen3ForCausalLM"),
        ({"model_type": "qwen3", "rope_scaling": {"type": "mrope"}}, "rope_type 'mrope' is not supported"),
        ({"model_type": "gemma3"}, "has no text_config"),
        ({"model_type": "gemma3", "architectures": ["Gemma3Model"]}, "only Gemma3ForConditionalGeneration is"),
        (
            {"model_type": "mistral3", "text_config": SHAPE, "quantization_config": {"bits": 4}},
            "quantization_config is not supported by Mistral",
        ),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_hf({**SHAPE, **change}, "a/config.json")
    assert str(error.value).startswith("a/config.json")
    assert "\n" not in str(error.value)


def test_another_architecture_names_those_that_are_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **SHAPE}))
    with pytest.raises(UserError, match="model_type 'qwen3_moe' is not read here; known: llama, qwen2, qwen3, mistral"):
        abstract_base(BaseConfig(str(tmp_path)))


TEXT = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
SEEN = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
NESTED = {
    "gemma3": (
        "Gemma3",
        {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
        "siglip_vision_model",
    ),
    "mistral3": ("Mistral3", {"model_type": "mistral", "rope_theta": 1e5}, "pixtral"),
}


@pytest.fixture(scope="module", params=NESTED)
def nested(request, tmp_path_factory):
    """A toy with a vision tower: transformers' model, its logits of text, and its folder."""
    import torch

    transformers = pytest.importorskip("transformers")
    title, text, vision = NESTED[request.param]
    torch.manual_seed(0)
    extra = {"mm_tokens_per_image": 4} if title == "Gemma3" else {"spatial_merge_size": 1}
    config = getattr(transformers, f"{title}Config")(
        text_config={**TEXT, **text}, vision_config={**SEEN, "model_type": vision}, tie_word_embeddings=True,
        image_token_index=60, **extra,
    )  # fmt: skip
    model = getattr(transformers, f"{title}ForConditionalGeneration")(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(1, 59, (2, 9)).astype(np.int32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(tokens)).logits.numpy()
    return model, tokens, logits, folder


@pytest.mark.parametrize("spelling", ["saved", "of modules"])
def test_the_text_part_is_read(nested, spelling, tmp_path, capsys):
    """In the keys that transformers saves, which are those of the Hub, and in those of its modules."""
    import torch
    import transformers
    from safetensors.torch import save_file

    model, tokens, logits, folder = nested
    if spelling == "of modules":
        held = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
        save_file(held, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text((folder / "config.json").read_text())
        folder = tmp_path
    base = load_base(BaseConfig(str(folder)))
    ours = np.asarray(jitted(base.model)({"params": base.params}, tokens))
    assert np.abs(ours - logits).max() / np.abs(logits).max() < 1e-5
    assert "not read: " in capsys.readouterr().out
    assert base.config == abstract_base(BaseConfig(str(folder))).config

    export_params(base.params, base.config, tmp_path / "out", carried=carry(folder, None))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(loaded).__name__ == BY_TYPE[base.config.family].architecture
    with torch.no_grad():
        again = loaded(torch.tensor(tokens)).logits.numpy()
    assert np.abs(again - logits).max() / np.abs(logits).max() < 1e-5
