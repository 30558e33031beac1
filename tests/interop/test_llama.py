"""Llama checkpoints against transformers: HF and GGUF in, HF out, and everything that is refused."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import jitted, unlike

from lowrank_jax.bases.base import BaseConfig, load_base, param_shapes
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.causal.names import gguf_table, hf_table
from lowrank_jax.interop.gguf.config import READ
from lowrank_jax.interop.llama import config_from_hf, config_to_hf, export_params
from lowrank_jax.interop.readers import INDEX
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import LLAMAS, get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

CLOSE = dict(rtol=0, atol=1e-5)


def params_equal(a, b):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(np.asarray(a[path]), np.asarray(b[path]), err_msg=path)


GGUF_FAMILIES = [model_type for model_type, _ in READ.values()]
CASES = [(name, table) for name in unlike(LLAMAS) for table in (hf_table, gguf_table)
         if LLAMAS[name].family in GGUF_FAMILIES or table is hf_table]  # fmt: skip


@pytest.mark.parametrize(("name", "table"), CASES)
def test_the_table_covers_exactly_the_model(table, name):
    config = get_model(name)
    model = Llama(config=config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rows = table(config)
    assert len({row.source for row in rows}) == len({row.target for row in rows}) == len(rows)
    assert {row.target: row.target_shape(config.num_hidden_layers) for row in rows} == {
        path: leaf.shape for path, leaf in flatten(shapes).items()
    }


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_hf_logits(helpers, torch_llama, tokens, tmp_path, shard):
    torch_llama.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / INDEX).is_file() == bool(shard)
    base = load_base(BaseConfig(str(tmp_path)))
    assert base.config.rope_theta == 5e4
    assert base.config.rms_norm_eps == 1e-5
    assert base.tokenizer is None
    np.testing.assert_allclose(helpers.our_logits(base, tokens), helpers.torch_logits(torch_llama, tokens), **CLOSE)


def test_head_dim_that_is_not_width_over_heads(helpers, tokens, tmp_path):
    model = helpers.make(False, head_dim=16)
    model.save_pretrained(tmp_path)
    base = load_base(BaseConfig(str(tmp_path)))
    assert base.config.head_dim == 16
    np.testing.assert_allclose(helpers.our_logits(base, tokens), helpers.torch_logits(model, tokens), **CLOSE)


def test_bfloat16_load_rounds_each_weight_once(untied_folder):
    wide, narrow = (load_base(BaseConfig(str(untied_folder), dtype=d)) for d in ("float32", "bfloat16"))
    params_equal(jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide.params), narrow.params)


@pytest.mark.parametrize("shard_size", [None, 20_000])
def test_export_gives_transformers_equal_logits(helpers, torch_llama, tokens, tmp_path, shard_size):
    import transformers

    torch_llama.save_pretrained(tmp_path / "in")
    base = load_base(BaseConfig(str(tmp_path / "in")))
    out = export_params(base.params, base.config, tmp_path / "out", shard_size=shard_size)
    assert (out / INDEX).is_file() == bool(shard_size)
    loaded, report = transformers.LlamaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(
        helpers.torch_logits(loaded.eval(), tokens), helpers.torch_logits(torch_llama, tokens)
    )
    again = load_base(BaseConfig(str(out)))
    params_equal(base.params, again.params)
    assert again.config == base.config
    assert again.fingerprint == base.fingerprint
    if shard_size:
        assert max(file.stat().st_size for file in out.glob("*.safetensors")) < 2 * shard_size  # the embedding is 33 kB


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_half_precision(helpers, untied, untied_folder, tokens, tmp_path, dtype):
    import torch
    import transformers

    base = load_base(BaseConfig(str(untied_folder)))
    export_params(base.params, base.config, tmp_path, dtype, tokenizer=ByteTokenizer())
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == getattr(torch, dtype)
    assert loaded.config.eos_token_id == ByteTokenizer.eos_id
    again = load_base(BaseConfig(str(tmp_path)))
    assert isinstance(again.tokenizer, ByteTokenizer)
    ours = helpers.our_logits(again, tokens)
    np.testing.assert_allclose(ours, helpers.torch_logits(loaded.float().eval(), tokens), **CLOSE)


def test_export_over_an_earlier_one_leaves_no_old_shards(untied_folder, tmp_path):
    base = load_base(BaseConfig(str(untied_folder)))
    export_params(base.params, base.config, tmp_path, shard_size=20_000)
    export_params(base.params, base.config, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_full_disk_keeps_the_earlier_export(untied_folder, tmp_path, monkeypatch):
    from lowrank_jax.interop import export

    base = load_base(BaseConfig(str(untied_folder)))
    export_params(base.params, base.config, tmp_path)
    real, calls = export.write_safetensors, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args, **kwargs)

    monkeypatch.setattr(export, "write_safetensors", full)
    with pytest.raises(UserError, match="No space left on device; free some space"):
        export_params(base.params, base.config, tmp_path, shard_size=20_000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert load_base(BaseConfig(str(tmp_path))).fingerprint == base.fingerprint


def test_export_refusals(untied_folder, tmp_path):
    base = load_base(BaseConfig(str(untied_folder)))
    with pytest.raises(UserError, match="unknown export dtype 'int8'"):
        export_params(base.params, base.config, tmp_path, "int8")
    large = {**base.params, "head": jax.tree.map(lambda x: x * 1e8, base.params["head"])}  # the last tensor written
    with pytest.raises(UserError, match="not finite in float16"):
        export_params(large, base.config, tmp_path / "large", "float16", shard_size=20_000)
    assert not list((tmp_path / "large").iterdir())  # the shards before it are gone


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_gguf_logits_against_transformers_reading_the_same_file(helpers, torch_llama, tokens, tmp_path, kind):
    import torch
    import transformers

    path = helpers.gguf(torch_llama, tmp_path / "toy.gguf", kind)
    base = load_base(BaseConfig(str(path)))
    assert base.config.tie_word_embeddings == torch_llama.config.tie_word_embeddings
    if kind == "F32":
        reference = torch_llama  # nothing lost on the way
    else:
        load = transformers.LlamaForCausalLM.from_pretrained
        reference = load(tmp_path, gguf_file="toy.gguf", dtype=torch.float32).eval()
    ours = helpers.our_logits(base, tokens)
    np.testing.assert_allclose(ours, helpers.torch_logits(reference, tokens), **CLOSE)
    if kind == "Q8_0":
        assert np.abs(ours - helpers.torch_logits(torch_llama, tokens)).max() > 1e-3  # it was really quantised


def test_gguf_and_hf_copies_are_the_same_params(helpers, untied, untied_folder, tmp_path):
    gguf = load_base(BaseConfig(str(helpers.gguf(untied, tmp_path / "toy.gguf"))))
    hf = load_base(BaseConfig(str(untied_folder)))
    params_equal(gguf.params, hf.params)
    assert gguf.config == hf.config
    assert gguf.fingerprint == hf.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.add_string("llama.rope.scaling.type", "yarn"),
            "rope scaling is not supported where its type is 'yarn'",
        ),
        (lambda w: w.add_expert_count(8), "a mixture of experts is not supported"),
        (lambda w: w.add_rope_dimension_count(4), "only 4 of 8 head dimensions"),
    ],
)
def test_gguf_features_that_are_refused(helpers, untied, tmp_path, change, message):
    path = helpers.gguf(untied, tmp_path / "toy.gguf", change=change)
    with pytest.raises(UserError, match=message):
        load_base(BaseConfig(str(path)))


def test_gguf_of_another_architecture(helpers, untied, tmp_path):
    path = helpers.gguf(untied, tmp_path / "toy.gguf")
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    with pytest.raises(UserError, match="architecture 'gemma' is not read from GGUF; known: llama, "):
        load_base(BaseConfig(str(path)))


def test_safetensors_of_another_architecture(tmp_path):
    import transformers

    config = transformers.GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="model_type 'gpt_neox' is not read here; known: llama, ") as error:
        load_base(BaseConfig(str(tmp_path)))
    assert "\n" not in str(error.value)


HF = config_to_hf(get_model("toy-llama"), "float32")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_hf_config_round_trip():
    for name in LLAMAS:
        config = get_model(name)
        assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32")))) == config


def test_llama3_rope_scaling(helpers, tokens, tmp_path):
    import transformers

    model = helpers.make(False, rope_parameters={**LLAMA3, "rope_theta": 5e4})
    model.save_pretrained(tmp_path / "in")
    base = load_base(BaseConfig(str(tmp_path / "in")))
    theirs = helpers.torch_logits(model, tokens)
    np.testing.assert_allclose(helpers.our_logits(base, tokens), theirs, **CLOSE)
    plain = jitted(Llama(dataclasses.replace(base.config, rope_scaling=None)))({"params": base.params}, tokens)
    assert np.abs(plain - theirs).max() > 1e-2  # toy positions reach past the scaled wavelengths
    export_params(base.params, base.config, tmp_path / "out")
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_array_equal(helpers.torch_logits(loaded, tokens), theirs)


def test_hf_defaults_are_transformers_own():
    import transformers

    short = {
        k: HF[k] for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    reference = transformers.LlamaConfig(**short)
    ours = config_from_hf({"model_type": "llama", **short})
    for name in ("num_key_value_heads", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        assert getattr(ours, name) == getattr(reference, name), name
    assert ours.rope_theta == reference.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "rope_type 'proportional' is not supported; known"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "factor must be a number, not None"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "factor must be a number, not None"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "0 < low_freq_factor < high_freq_factor"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"sliding_window": 4096}, "sliding_window is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act gelu is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM is not a Llama"),
        ({"architectures": None, "model_type": None}, "a config without architectures is not a Llama"),
        ({"hidden_size": None}, "hidden_size must be a whole number, not None"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be a whole number, not 'two'"),
        ({"vocab_size": 1.5}, "vocab_size must be a whole number, not 1.5"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads"),
        ({"rope_theta": float("nan")}, "rope_theta"),
    ],
)
def test_hf_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_hf({**HF, **change}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)


def test_config_and_weights_that_disagree(untied_folder, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((untied_folder / "model.safetensors").read_bytes())
    config = json.loads((untied_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2, "intermediate_size": 60}))
    with pytest.raises(UserError) as error:
        load_base(BaseConfig(str(tmp_path)))
    message = str(error.value)
    assert "model.layers.2.mlp.up_proj.weight" in message
    assert "[64, 32] instead of [60, 32]" in message
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"lacks config.json"):
        load_base(BaseConfig(str(tmp_path)))


def test_old_buffers_and_a_tied_copy_are_ignored(helpers, tokens, tmp_path):
    from safetensors.numpy import load_file, save_file

    model = helpers.make(True)
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].copy()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(state, tmp_path / "model.safetensors")
    ours = helpers.our_logits(load_base(BaseConfig(str(tmp_path))), tokens)
    np.testing.assert_allclose(ours, helpers.torch_logits(model, tokens), **CLOSE)


def test_param_shapes_match_a_loaded_tree(untied_folder):
    base = load_base(BaseConfig(str(untied_folder)))
    assert param_shapes(base.config) == {path: leaf.shape for path, leaf in flatten(base.params).items()}
