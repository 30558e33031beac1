"""Refused values of a base's config.json and of PEFT's: sizes that no model has, wrong names, types and patterns."""

import json

import pytest

from lowrank_jax.bases.base import BaseConfig, abstract_base, param_shapes
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.peft.config import parse_config
from lowrank_jax.models.llama import LlamaConfig
from lowrank_jax.models.parts.counts import MOST, MOST_LAYERS

WIDTHS = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
CONFIGS = {
    "llama": {
        **WIDTHS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6,
    },
    "gpt2": {
        "vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48,
        "layer_norm_epsilon": 1e-5,
    },
    "bert": {
        **WIDTHS, "num_attention_heads": 4, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0,
        "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "num_labels": 2,
    },
    "deberta-v2": {
        **WIDTHS, "num_attention_heads": 4, "max_position_embeddings": 64, "relative_attention": True,
        "position_biased_input": False, "type_vocab_size": 0, "conv_kernel_size": 3, "position_buckets": 16,
        "layer_norm_eps": 1e-7, "pad_token_id": 0,
    },
}  # fmt: skip
# Valid for what they are; everything else below is not.
FREE = {"type_vocab_size": (0, -3), "conv_kernel_size": (0,), "position_buckets": (0, -3), "pad_token_id": (0,)}


def planned(folder, kind, **changes):
    (folder / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind], **changes}))
    return abstract_base(BaseConfig(str(folder)))


def refusal(folder, kind, **changes):
    """The message that refuses a config.json; "" where it is accepted."""
    try:
        planned(folder, kind, **changes)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes_beyond_reason_are_refused_before_anything_is_listed_or_traced(tmp_path, kind):
    """Each field with 0, a negative, 10**9, 10**30, 10**400, a fraction, text, NaN, infinity, a flag, a list."""
    assert planned(tmp_path, kind).config.num_hidden_layers == 2
    for field, value in CONFIGS[kind].items():
        if isinstance(value, bool):
            continue
        whole = isinstance(value, int)
        wrong = [10**400, "8", float("nan"), float("inf"), True, [8], {}] + [0, -3, 1.5, 10**9, 10**30] * whole
        for one in wrong:
            if one in FREE.get(field, ()) or (one == -3 and field == "head_dim"):
                continue
            said = refusal(tmp_path, kind, **{field: one})
            assert str(tmp_path / "config.json") in said or "beyond reason" in said, (field, one)
            assert "\n" not in said


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("field", ["architectures", "hidden_act", "model_type", "rope_scaling", "problem_type"])
def test_names_that_are_not_strings(tmp_path, kind, field):
    for value in (5, [5], {"a": []}, [[]], True, 1.5):
        if field == "rope_scaling" and value == {"a": []}:  # a field that nobody reads
            continue
        with pytest.raises(UserError, match=field):
            planned(tmp_path, kind, **{field: value})


def test_a_shape_of_more_parameters_than_any_device_has():
    assert param_shapes(LlamaConfig(MOST, 8192, 2**15, 128, 64))  # a vocabulary of 16 million is odd, and possible
    with pytest.raises(UserError, match="parameters is beyond reason"):
        param_shapes(LlamaConfig(MOST, MOST, MOST, MOST_LAYERS, 1, head_dim=2))


# ---- PEFT ----

PEFT = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
BAD = {
    "target_modules": ["((", "*", [5], {"a": 1}, 5, [["a"]], True],
    "exclude_modules": ["((", [5], 5, {"a": 1}],
    "modules_to_save": [5, [5], {"a": 1}, [None]],
    "layers_pattern": ["((", ["(("], 5, [5]],
    "layers_to_transform": ["a", ["a"], [1.5], {"a": 1}, 1.5, [[1]], [True]],
    "rank_pattern": [{"((": 1}, {"(?i)a": 1}, ["a"], "a", {"a": "b"}, {"a": 10**30}, {"a": 0}, {"a": []}],
    "alpha_pattern": [{"((": 1}, ["a"], 5, {"a": "b"}, {"a": -1}, {"a": 10**400}, {"a": float("inf")}],
    "r": ["8", 0, -1, 1.5, 10**30, 10**400, None, True, [], float("nan")],
    "lora_alpha": ["8", 0, -1, 10**400, None, True, [], float("nan"), float("inf")],
    "lora_dropout": ["a", -1, 1, float("nan"), [0.1], True],
    "init_lora_weights": [[], {"a": 1}, 5, "other"],
    "bias": [5, [], "other"],
    "peft_type": [5, None, [], "IA3"],
}


@pytest.mark.parametrize("field", BAD)
def test_fields_of_peft_of_wrong_types(field):
    assert parse_config(PEFT, "x").r == 8
    for value in BAD[field]:
        with pytest.raises(UserError, match=rf"^x: .*{field}"):
            parse_config({**PEFT, field: value}, "x")
    with pytest.raises(UserError, match="mora_type"):
        parse_config({**PEFT, "use_mora": True, "mora_type": [1]}, "x")


def test_patterns_of_peft_that_are_valid():
    config = parse_config({**PEFT, "target_modules": r".*\.(q|v)_proj", "rank_pattern": {r"layers\.1\..*": 4}}, "x")
    assert config.adapts("model.layers.0.self_attn.q_proj")
    assert config.rank("model.layers.1.self_attn.q_proj") == 4
    config = parse_config({**PEFT, "layers_to_transform": [1], "layers_pattern": ["(layers|h)"]}, "x")
    assert [config.adapts(f"model.layers.{i}.self_attn.q_proj") for i in (0, 1)] == [False, True]
