"""Toy GGUF files of each architecture against transformers: the model they were written from, and its own reader."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.parts.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, rotary_tables

SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=128, initializer_range=0.1, pad_token_id=None,
)  # fmt: skip
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 7, "num_attention_heads": 1}
# llama.cpp's architecture -> transformers' classes, and the shape: where its GGUF reader takes a default, that default.
TOYS = {
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 5e4}),
    "qwen3": ("Qwen3", {"head_dim": 128, "rope_theta": 5e4}),
    "gemma2": ("Gemma2", GEMMA),
    "gemma3": ("Gemma3", {**GEMMA, "num_hidden_layers": 6, "rope_theta": 1e6}),
    "phi3": ("Phi3", {"num_key_value_heads": 2, "eos_token_id": None, "vocab_size": 32064}),
}
TOKENS = np.random.default_rng(0).integers(0, 64, (2, 24)).astype(np.int32)


def torch_model(architecture, **changes):
    """A random model, its norms and biases too."""
    import torch
    import transformers

    torch.manual_seed(0)
    name, more = TOYS[architecture]
    kind = f"{name}Text" if name == "Gemma3" else name
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **more, **changes})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "norm" in key or "bias" in key:
                weight += (16 * torch.randn_like(weight)).round() / 64  # 1 + w is stored, which may round w away
    return model


def write(model, path, architecture, change=None, tensors=None, **split):
    """Writes a model as llama.cpp's converter does, under the gguf package's names for transformers' keys."""
    import gguf

    config, layers = model.config, model.config.num_hidden_layers
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names, state = gguf.get_tensor_name_map(arch, layers), {}
    for key, weight in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        module, _, leaf = key.rpartition(".")
        offset = architecture.startswith("gemma") and module.endswith("norm")  # stored as 1 + w
        state[f"{names.get_name(module)}.{leaf}"] = weight.float().numpy() + np.float32(offset)
    writer = gguf.GGUFWriter(path, architecture, **split)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture.startswith("gemma") or architecture == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if change:
        change(writer)
    if tensors:
        tensors(state)
    for key, weight in state.items():
        writer.add_tensor(key, np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(base, tokens=TOKENS, **changes):
    model = base.model.clone(config=dataclasses.replace(base.config, **changes))
    return np.asarray(jax.jit(model.apply)({"params": base.params}, tokens))


@pytest.mark.parametrize("architecture", TOYS)
def test_logits_equal_transformers(helpers, tmp_path, architecture):
    import torch
    import transformers

    model = torch_model(architecture)
    path = write(model, tmp_path / "toy.gguf", architecture)
    base = load_base(BaseConfig(str(path)))
    assert base.config.family == model.config.model_type
    assert base.config.tie_word_embeddings == model.config.tie_word_embeddings
    ours, theirs = logits(base), helpers.torch_logits(model, TOKENS)
    close = dict(rtol=0, atol=1e-5 * np.abs(theirs).max())
    np.testing.assert_allclose(ours, theirs, **close)
    read = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="toy.gguf", dtype=torch.float32).eval()
    np.testing.assert_allclose(ours, helpers.torch_logits(read, TOKENS), **close)


def test_hf_and_gguf_copies_have_one_fingerprint(tmp_path):
    """What the config says too: windows, heads, the second rotary base, the scalar, soft caps."""
    for architecture in TOYS:
        model = torch_model(architecture)
        model.save_pretrained(tmp_path / architecture)
        base, other = (
            load_base(BaseConfig(str(path)))
            for path in (write(model, tmp_path / f"{architecture}.gguf", architecture), tmp_path / architecture)
        )
        assert base.config == other.config
        assert base.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("architecture", "change", "field", "value"),
    [
        ("gemma3", lambda w: w.add_sliding_window_pattern(2), "local", (True, False) * 3),
        ("gemma3", lambda w: w.add_array("gemma3.attention.sliding_window_pattern", [True, False, True] * 2), "local",
         (True, False, True) * 2),
        ("gemma3", lambda w: w.add_float32("gemma3.rope.freq_base_swa", 123.0), "local_theta", 123.0),
        ("gemma3", lambda w: (w.add_rope_scaling_type(rope_type("LINEAR")), w.add_rope_scaling_factor(8.0)),
         "rope_scaling", LinearScaling(8.0)),
        ("gemma2", lambda w: w.add_attn_logit_softcapping(20.0), "softcap", 20.0),
        ("gemma2", lambda w: w.add_final_logit_softcapping(10.0), "logit_softcap", 10.0),
    ],
)  # fmt: skip
def test_what_metadata_say_of_a_family(tmp_path, architecture, change, field, value):
    path = write(torch_model(architecture), tmp_path / "toy.gguf", architecture, change)
    config = abstract_base(BaseConfig(str(path))).config
    found = [getattr(place, field) for place in (config, config.layers, config.attention) if hasattr(place, field)]
    assert found == [value]


def rope_type(name):
    import gguf

    return gguf.RopeScalingType[name]


def llama3_factors(model):
    """What llama.cpp's converter writes as rope_freqs.weight: plain frequencies over transformers' scaled ones."""
    inv_freq = model.model.rotary_emb.inv_freq.numpy()
    plain = model.config.rope_parameters["rope_theta"] ** -(np.arange(len(inv_freq)) / len(inv_freq))
    return (plain / inv_freq).astype(np.float32)


@pytest.mark.parametrize("old", [8192, 32])
def test_rope_freqs_are_the_scaling_of_llama_3(helpers, tokens, tmp_path, old):
    """LLaMA 3's numbers give the config of its HF copy; any others the same rotation."""
    import transformers

    numbers = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": old}
    model = helpers.make(False, rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **numbers})
    factors = llama3_factors(model)
    assert {1.0, 32.0} <= set(factors.round(4).tolist())  # both ends of the ramp

    def add(state):
        state["rope_freqs.weight"] = factors

    path = helpers.gguf(model, tmp_path / "toy.gguf", tensors=add, theta=5e5)
    config, scaling = abstract_base(BaseConfig(str(path))).config, Llama3Scaling(**numbers)
    positions, length = jnp.arange(128), jnp.int32(128)
    tables = (rotary_tables(positions, 8, 5e5, one, length) for one in (config.rope_scaling, scaling))
    for ours, theirs in zip(*tables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)  # of angles up to 127
    if old == 8192:
        assert config.rope_scaling == scaling
        return
    assert isinstance(config.rope_scaling, LongRopeScaling)
    base, theirs = load_base(BaseConfig(str(path))), helpers.torch_logits(model, tokens)
    close = 1e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(logits(base, tokens), theirs, rtol=0, atol=close)
    assert np.abs(logits(base, tokens, rope_scaling=None) - theirs).max() > 1000 * close
    export_params(base.params, base.config, tmp_path / "out")
    read = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(helpers.torch_logits(read, tokens), theirs, rtol=0, atol=close)


def test_phi3_factors_are_longrope(tmp_path):
    short, long = [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    more = {"rope_scaling": scaling, "original_max_position_embeddings": 32}
    model = torch_model("phi3", **more)
    model.save_pretrained(tmp_path / "hf")

    def add(state):
        state["rope_factors_short.weight"], state["rope_factors_long.weight"] = np.float32(short), np.float32(long)

    def change(writer):
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_rope_scaling_attn_factors(np.sqrt(1 + np.log(128 / 32) / np.log(32)))
        writer.add_rope_dimension_count(16)
        writer.add_sliding_window(0)

    path = write(model, tmp_path / "toy.gguf", "phi3", change, add)
    ours, theirs = (abstract_base(BaseConfig(str(one))).config.rope_scaling for one in (path, tmp_path / "hf"))
    assert ours.amplitude == pytest.approx(theirs.amplitude, rel=1e-6)
    assert dataclasses.replace(ours, attention_factor=None) == theirs


def test_every_part_of_a_split_file_stands_for_all(tmp_path):
    model = torch_model("qwen2")
    write(model, tmp_path / "whole.gguf", "qwen2")
    whole = load_base(BaseConfig(str(tmp_path / "whole.gguf")))
    folder = tmp_path / "parts"
    folder.mkdir()
    write(model, folder / "toy.gguf", "qwen2", split_max_tensors=10)
    parts = sorted(folder.iterdir())
    assert [part.name for part in parts] == [f"toy-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    for named in (folder, *parts):
        assert load_base(BaseConfig(str(named))).fingerprint == whole.fingerprint

    def refused(named: Path, message):
        with pytest.raises(UserError, match=message) as error:
            abstract_base(BaseConfig(str(named)))
        assert "\n" not in str(error.value)

    content = parts[1].read_bytes()
    parts[1].unlink()
    for named in (folder, parts[0], parts[2]):
        refused(named, r"is one of 3 parts, and toy-00002-of-00003.gguf is not beside it; download all parts")
    parts[1].mkdir()
    refused(parts[0], "is a folder, not a file")
    parts[1].rmdir()
    parts[1].write_bytes(content[: len(content) // 2])
    refused(parts[0], r"toy-00002-of-00003.gguf is damaged or cut short")
    parts[1].write_bytes(parts[2].read_bytes())
    refused(parts[0], "part 2 of 3 by its name says that it is part 2 .counted from 0. of 3")
    parts[1].write_bytes(content)
    renamed = parts[0].rename(tmp_path / "first.gguf")
    refused(renamed, "part 1 of 1 by its name says that it is part 0 .counted from 0. of 3")
    refused(renamed.rename(tmp_path / "a-00004-of-00003.gguf"), "is part 00004 of 00003 by its name")
