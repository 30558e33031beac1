"""Fields with an old and a new place: read as by transformers 5; contradictions are named, the rest refused."""

import json
import re

import numpy as np
import pytest
from toys import jitted

from lowrank_jax.bases.base import BaseConfig, abstract_base, load_base, load_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop import bert, deberta, gpt2, llama
from lowrank_jax.models.bert import Bert
from lowrank_jax.models.gpt2 import GPT2
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.rotary import LinearScaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
WITHOUT_LENGTH = {name: value for name, value in LLAMA3.items() if not name.startswith("original")}
DEFAULT = {"rope_type": "default", "rope_theta": 5e5}


class Arrays:
    """A reader of tensors in memory."""

    reads_parts, path, metadata = True, "memory", {}

    def __init__(self, model):
        self.tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def keys(self):
        return list(self.tensors)

    def shape(self, key):
        return self.tensors[key].shape

    def is_one(self, first, second):
        return first == second

    def read(self, key, part=None):
        return self.tensors[key] if part is None else self.tensors[key][part]


def config_file(folder, values, **changes):
    """A config.json without the places that the changes are about."""
    values = {name: value for name, value in values.items() if not name.startswith("rope_")} | changes
    (folder / "config.json").write_text(json.dumps(values))
    return values


def same(ours, theirs):
    assert np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max() < 1e-5


@pytest.fixture(scope="module")
def toy_llama(helpers):
    model = helpers.make(False)
    params = load_params(Arrays(model), llama.config_from_hf(model.config.to_dict()))[0]
    return model.state_dict(), model.config.to_dict(), params


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"rope_theta": 1e4, "rope_parameters": DEFAULT},
            ["rope_parameters.rope_theta 500000.0", "rope_theta 10000.0"],
        ),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, []),
        ({"rope_parameters": DEFAULT, "rope_scaling": None, "rope_theta": 500000}, []),
        ({"rope_scaling": {}, "rope_parameters": DEFAULT}, []),
        ({"rope_theta": 7e4, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 7e4}}, []),
        (
            {"rope_theta": 7e4, "rope_scaling": LLAMA3, "rope_parameters": DEFAULT},
            ["rope_scaling.rope_type 'llama3'", "rope_parameters.rope_theta 500000.0 is not"],
        ),
        (
            {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
            ["rope_scaling.rope_type 'default'", "rope_parameters.rope_type 'llama3' is not"],
        ),
        ({"rope_scaling": {**WITHOUT_LENGTH, "rope_type": "default", "type": "linear", "factor": None}}, ["type 'lin"]),
        ({"rope_parameters": WITHOUT_LENGTH, "max_position_embeddings": 40}, []),
        (
            {"rope_parameters": LLAMA3, "original_max_position_embeddings": 16},
            [
                "original_max_position_embeddings 16 is read",
                "rope_parameters.original_max_position_embeddings 32 is not",
            ],
        ),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {**DEFAULT, "partial_rotary_factor": 1.0}},
            ["rope_parameters.partial_rotary_factor 1.0", "partial_rotary_factor 0.5 is not"],
        ),
        (
            {"layer_types": ["full_attention"] * 3, "sliding_window": 4},
            ["layer_types 'full_attention' is read", "sliding_window 4 is not"],
        ),
        ({"layer_types": ["attention"] * 3, "head_dim": None, "num_key_value_heads": 2}, []),
    ],
)
def test_llama(toy_llama, helpers, tokens, tmp_path, change, named):
    import transformers

    state, values, params = toy_llama
    config_file(tmp_path, values, **change)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    model.load_state_dict(state)
    notes = []
    config = llama.config_from_hf(json.loads((tmp_path / "config.json").read_text()), "a/config.json", notes)
    same(jitted(Llama(config))({"params": params}, tokens), helpers.torch_logits(model, tokens))
    assert bool(notes) == bool(named)
    assert all(note.startswith("a/config.json: ") and "as transformers 5 does" in note for note in notes)
    assert all(part in "; ".join(notes) for part in named), notes


def test_a_loaded_base_says_what_was_read(helpers, tokens, tmp_path, capsys):
    """And dtype, which has an old and a new place too, is read from neither: the run's config names it."""
    import transformers

    model = helpers.make(True)
    model.save_pretrained(tmp_path)
    values = config_file(tmp_path, model.config.to_dict() | {"dtype": None}, rope_theta=1e4, rope_parameters=DEFAULT)
    base = load_base(BaseConfig(str(tmp_path)))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    same(helpers.our_logits(base, tokens), helpers.torch_logits(loaded, tokens))
    assert base.notes == (
        f"{tmp_path / 'config.json'}: rope_parameters.rope_theta 500000.0 is read, as transformers 5 does, "
        "and rope_theta 10000.0 is not",
    )
    assert capsys.readouterr().out.splitlines() == list(base.notes)
    assert abstract_base(BaseConfig(str(tmp_path))).config == base.config
    for types in ({"torch_dtype": "float16"}, {"torch_dtype": "bfloat16", "dtype": "float16"}):
        assert llama.config_from_hf(values | types) == base.config


GPT2_SHAPE = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_attention_heads": 2}, ["num_attention_heads 2 is read", "n_head 4 is not"]),
        ({"max_position_embeddings": 48, "hidden_size": 32, "num_hidden_layers": 2}, []),
        ({"n_embd": None, "hidden_size": 32, "n_head": None, "num_attention_heads": 8}, []),
        ({"n_ctx": 24}, ["n_positions 48 is read", "n_ctx 24 is not"]),
        ({"n_ctx": 48}, []),
    ],
)
def test_gpt2(tmp_path, change, named):
    import torch
    import transformers

    torch.manual_seed(0)
    values = {"model_type": "gpt2", **GPT2_SHAPE, "initializer_range": 0.2, **change}
    config_file(tmp_path, {name: value for name, value in values.items() if value is not None})
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    notes, tokens = [], np.random.default_rng(0).integers(0, 61, (2, 20)).astype(np.int32)
    config = gpt2.config_from_hf(values, "a/config.json", notes)
    params = load_params(Arrays(model), config)[0]
    with torch.no_grad():
        same(jitted(GPT2(config))({"params": params}, tokens), model(torch.tensor(tokens)).logits.numpy())
    assert bool(notes) == bool(named)
    assert all(part in "; ".join(notes) for part in named), notes


ENCODER = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
ENCODER |= {"num_attention_heads": 4, "max_position_embeddings": 40}
LABELS = [
    ({"id2label": {"0": "a", "1": "b"}, "num_labels": 3}, True),
    ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 1}, True),
    ({"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 3}, False),
    ({"id2label": {"0": "a", "1": "b", "2": "c"}}, False),
    ({"id2label": None, "num_labels": 4}, False),
    ({}, False),
]
KINDS = {
    "bert": (bert, "BertForSequenceClassification", {}),
    "roberta": (bert, "RobertaForSequenceClassification", {}),
    "deberta-v2": (
        deberta,
        "DebertaV2ForSequenceClassification",
        {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0, "pos_att_type": ["c2p"]},
    ),
}


@pytest.mark.parametrize(("change", "disagrees"), LABELS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_labels(kind, change, disagrees, tmp_path):
    import transformers

    interop, name, extra = KINDS[kind]
    values, notes = {"model_type": kind, "architectures": [name], **ENCODER, **extra, **change}, []
    config_file(tmp_path, values)
    config = interop.config_from_hf(values, "a/config.json", notes)
    assert config.num_labels == transformers.AutoConfig.from_pretrained(tmp_path).num_labels
    assert config.head == ("regression" if config.num_labels == 1 else "classification")
    assert len(notes) == disagrees
    assert all(f"num_labels {config.num_labels} is read" in note and "length of id2label" in note for note in notes)


def test_logits_of_the_labels_that_transformers_counts(tmp_path):
    import torch
    import transformers

    torch.manual_seed(0)
    values = {"model_type": "bert", "architectures": [KINDS["bert"][1]], **ENCODER, **LABELS[0][0]}
    config_file(tmp_path, values)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    tokens, ours = np.arange(24, dtype=np.int32).reshape(2, 12), bert.config_from_hf(values)
    params = load_params(Arrays(model), ours)[0]
    with torch.no_grad():
        same(jitted(Bert(ours))({"params": params}, tokens), model(torch.tensor(tokens)).logits.numpy())


SHAPES = {
    "llama": (llama, {"model_type": "llama", **ENCODER}),
    "gpt2": (gpt2, {"model_type": "gpt2", **GPT2_SHAPE}),
    **{kind: (interop, {"model_type": kind, **ENCODER, **extra}) for kind, (interop, _, extra) in KINDS.items()},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types other than full_attention is not supp"),
        ({"layer_types": ["full_attention"]}, "layer_types must be a list of one name for each of the 2 layers"),
        ({"layer_types": "full_attention"}, "layer_types must be a list"),
        ({"sliding_window": 8}, "sliding_window is not supported"),
        ({"attention_chunk_size": 8}, "attention_chunk_size is not supported"),
        ({"text_config": {"hidden_size": 64}}, "a nested text_config is not supported"),
        ({"compression_config": {"bits": 4}}, "compression_config is not supported"),
        ({"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config is not supported"),
    ],
)
@pytest.mark.parametrize("kind", SHAPES)
def test_what_no_architecture_reads(kind, change, message):
    interop, values = SHAPES[kind]
    interop.config_from_hf(values)
    interop.config_from_hf({**values, "sliding_window": 8, "use_sliding_window": False, "text_config": None})
    with pytest.raises(UserError, match=re.escape(message)) as error:
        interop.config_from_hf({**values, **change}, "a/config.json")
    assert str(error.value).startswith("a/config.json: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"full_attention": DEFAULT}}, "rope_parameters differs by layer type (full_attention)"),
        ({"rope_scaling": {"sliding_attention": DEFAULT, "full_attention": DEFAULT}}, "rope_scaling differs by layer"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object with named values, not 'linear'"),
        (
            {"rope_scaling": {"type": "linear", "factor": 0.5}, "rope_parameters": DEFAULT},
            "linear rope scaling has fac",
        ),
        ({"rope_parameters": {**DEFAULT, "rope_type": None, "type": "axial"}}, "rope_type 'axial' is not supported"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "rope_type default is not supported with it"),
        ({"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is not supported"),
        ({"rope_parameters": {"rope_theta": "5e5"}}, "rope_theta must be a number, not '5e5'"),
        ({"hidden_size": 34}, "hidden_size 34 does not divide into 4 heads"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, not 'false'"),
    ],
)
def test_llama_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        llama.config_from_hf({**SHAPES["llama"][1], **change}, "a/config.json")
    assert str(error.value).startswith("a/config.json: ")
    assert "\n" not in str(error.value)


def test_flags_of_the_others():
    for kind, values in (("gpt2", {}), ("bert", {"architectures": ["BertForMaskedLM"]})):
        interop, shape = SHAPES[kind]
        assert interop.config_from_hf({**shape, **values, "tie_word_embeddings": None})
        with pytest.raises(UserError, match="tie_word_embeddings must be true or false, not 0"):
            interop.config_from_hf({**shape, **values, "tie_word_embeddings": 0})


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        (lambda w: w.add_float32("llama.rope.scale_linear", 4.0), LinearScaling(4.0)),  # before rope.scaling.factor
        (lambda w: w.add_rope_scaling_factor(4.0), LinearScaling(4.0)),  # in llama.cpp linear without a type
        (lambda w: w.add_rope_scaling_factor(1.0), None),
    ],
)
def test_gguf_scaling_by_its_old_name(helpers, untied, tmp_path, change, scaling):
    path = helpers.gguf(untied, tmp_path / "toy.gguf", change=change)
    assert load_base(BaseConfig(str(path))).config.rope_scaling == scaling
