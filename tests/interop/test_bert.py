"""BERT and RoBERTa checkpoints against transformers: every head in and out, and the named exceptions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import jitted, unlike

from lowrank_jax.bases.base import UNUSED, BaseConfig, abstract_base, export_params, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.bert import config_from_hf, config_to_hf, hf_table
from lowrank_jax.models.bert import Bert, with_head
from lowrank_jax.models.registry import ENCODERS, get_model

SHAPE = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=40,
)
HEADS = {
    "none": "Model",
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "masked-lm": "ForMaskedLM",
}
KINDS = {"bert": "Bert", "roberta": "Roberta"}


def make(kind, head, **changes):
    """A random torch encoder with uneven norms and biases."""
    import torch
    import transformers

    torch.manual_seed(1)
    labels = {"classification": 3, "regression": 1}.get(head, 2)
    extra = {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5} if kind == "roberta" else {}
    config = getattr(transformers, f"{KINDS[kind]}Config")(**{**SHAPE, **extra, "num_labels": labels, **changes})
    model = getattr(transformers, KINDS[kind] + HEADS[head])(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def batch():
    mask = np.arange(13) < np.array([[13], [9], [4]])
    tokens = np.where(mask, np.random.default_rng(1).integers(2, 61, (3, 13)), 1)
    return tokens.astype(np.int32), mask


def torch_output(model, batch):
    import torch

    with torch.no_grad():
        out = model(input_ids=torch.tensor(batch[0]), attention_mask=torch.tensor(batch[1]))
    return (out.logits if "logits" in out else out.last_hidden_state).float().numpy()


def our_output(base, batch):
    y = jitted(base.model)({"params": base.params}, *batch)
    return np.asarray(y[0] if base.config.head == "none" else y)


def close(ours, theirs, mask):
    if theirs.ndim == 3:
        ours, theirs = ours[mask], theirs[mask]
    assert np.abs(ours - theirs.reshape(ours.shape)).max() / np.abs(theirs).max() < 1e-5


@pytest.mark.parametrize("head", ["none", "classification", "regression", "masked-lm"])
@pytest.mark.parametrize("name", unlike(ENCODERS))
def test_the_table_covers_exactly_the_model(name, head):
    config = with_head(get_model(name), head, 3)
    init = Bert(config).init
    shapes = flatten(jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"])
    rows = hf_table(config)
    assert len({row.source for row in rows}) == len({row.target for row in rows}) == len(rows)
    layers = config.num_hidden_layers
    assert {row.target: row.target_shape(layers) for row in rows} == {path: x.shape for path, x in shapes.items()}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_and_out_again(kind, head, batch, tmp_path):
    import torch
    import transformers

    model = make(kind, head)
    model.save_pretrained(tmp_path / "in")
    base = load_base(BaseConfig(str(tmp_path / "in")))
    assert base.config.head == head
    assert base.notes == ()
    theirs = torch_output(model, batch)
    close(our_output(base, batch), theirs, batch[1])

    out = export_params(base.params, base.config, tmp_path / "out", shard_size=20_000)
    load = getattr(transformers, KINDS[kind] + HEADS[head]).from_pretrained
    loaded, report = load(out, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    np.testing.assert_allclose(torch_output(loaded.eval(), batch), theirs, rtol=0, atol=1e-6)
    again = load_base(BaseConfig(str(out)))
    assert again.config == base.config
    assert again.fingerprint == base.fingerprint


@pytest.mark.parametrize("kind", KINDS)
def test_pseudo_perplexity_equals_transformers(kind, batch, tmp_path):
    """exp of the mean -log p(word | all others), each word masked in turn."""
    model = make(kind, "masked-lm")
    model.save_pretrained(tmp_path)
    base = load_base(BaseConfig(str(tmp_path)))
    row, length = batch[0][1], int(batch[1][1].sum())
    tokens = np.tile(row, (length, 1))
    np.fill_diagonal(tokens, 60)  # stands for [MASK]
    masked = tokens, np.tile(batch[1][1], (length, 1))
    each = np.arange(length)

    def pseudo_perplexity(logits):
        likely = logits - logits.max(-1, keepdims=True)
        likely -= np.log(np.exp(likely).sum(-1, keepdims=True))
        return float(np.exp(-likely[each, each, row[:length]].mean()))

    ours, theirs = pseudo_perplexity(our_output(base, masked)), pseudo_perplexity(torch_output(model, masked))
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert theirs > 61  # random weights know less than nothing: far from what any constant output gives


@pytest.mark.parametrize("kind", KINDS)
def test_torch_bin_with_old_norm_names(kind, batch, tmp_path):
    import torch

    model = make(kind, "none")
    model.config.save_pretrained(tmp_path)
    prefix = f"{kind}."  # as in a file of a model with a head
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    state = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
             for k, v in state.items()}  # fmt: skip
    state[f"{prefix}embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, tmp_path / "pytorch_model.bin")
    base = load_base(BaseConfig(str(tmp_path)))
    close(our_output(base, batch), torch_output(model, batch), batch[1])
    assert base.notes == (f"{tmp_path}: not read: {prefix}embeddings.position_ids",)


def test_a_fresh_classifier_and_an_unused_pooler(tmp_path, batch, capsys):
    model = make("roberta", "none")
    model.save_pretrained(tmp_path)
    config = BaseConfig(str(tmp_path), head="classification", num_labels=4)
    with pytest.raises(UserError) as error:
        load_base(config, jax.random.key(0))
    message = str(error.value)
    assert "missing: classifier.dense.weight, classifier.dense.bias, classifier.out_proj.weight" in message
    assert "unknown: pooler.dense.bias, pooler.dense.weight; name what is meant in base.fresh" in message
    assert "\n" not in message

    named = dataclasses.replace(config, fresh=("head/.*",), unused=(*UNUSED, r"pooler\..*"))
    with pytest.raises(ValueError, match="needs a key"):
        load_base(named)
    base = load_base(named, jax.random.key(0))
    head = flatten(base.params["head"])
    assert {path: leaf.shape for path, leaf in head.items()} == {
        "dense/bias": (32,), "dense/kernel": (32, 32), "out/bias": (4,), "out/kernel": (32, 4)
    }  # fmt: skip
    assert not head["out/bias"].any()
    assert float(head["dense/kernel"].std()) == pytest.approx(0.02, rel=0.1)
    drawn = "drawn fresh: head/dense/bias, head/dense/kernel, head/out/bias, head/out/kernel"
    assert base.notes == (f"{tmp_path}: {drawn}", f"{tmp_path}: not read: pooler.dense.bias, pooler.dense.weight")
    assert capsys.readouterr().out.splitlines() == list(base.notes)
    hidden = jitted(base.model, method="hidden")({"params": base.params}, *batch)
    close(np.asarray(hidden), torch_output(model, batch), batch[1])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), base.params)
    assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), abstract_base(named).params)
    other = load_base(named, jax.random.key(1))  # another head on the same base: an adapter of one fits the other
    assert other.fingerprint == base.fingerprint
    assert not np.array_equal(other.params["head"]["out"]["kernel"], head["out/kernel"])
    assert set(base.fresh) == {f"head/{path}" for path in head}


def test_a_classifier_of_other_labels_is_replaced_by_name(tmp_path):
    make("bert", "classification").save_pretrained(tmp_path)  # 3 labels, as MNLI
    config = BaseConfig(str(tmp_path), head="classification", num_labels=2, fresh=("head/.*",))
    with pytest.raises(UserError, match=r"classifier.weight \[3, 32\] instead of \[2, 32\]"):
        load_base(config, jax.random.key(0))
    base = load_base(dataclasses.replace(config, unused=(r"classifier\..*",)), jax.random.key(0))
    assert base.params["head"]["out"]["kernel"].shape == (32, 2)
    kept = load_base(BaseConfig(str(tmp_path), fresh=("head/.*",)))  # three labels, as the checkpoint has
    assert kept.notes == ()


def test_every_mismatch_in_one_error(tmp_path):
    from safetensors.numpy import load_file, save_file

    make("bert", "none").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["extra"] = state.pop("encoder.layer.1.output.dense.weight")
    state["pooler.dense.bias"] = np.zeros(7, np.float32)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        load_base(BaseConfig(str(tmp_path)))
    for part in ("missing: encoder.layer.1.output.dense.weight", "unknown: extra", "pooler.dense.bias [7] instead of"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"base.fresh entry '\['"):
        load_base(BaseConfig(str(tmp_path), fresh=("[",)))


def test_a_head_on_a_language_model_is_refused():
    with pytest.raises(UserError, match="toy-llama is no encoder and takes no head 'classification'"):
        load_base(BaseConfig("toy-llama", random_init=True, head="classification"), jax.random.key(0))


def test_random_encoder():
    base = load_base(BaseConfig("toy-roberta", random_init=True, head="classification"), jax.random.key(0))
    flat = {path: np.asarray(leaf) for path, leaf in flatten(base.params).items()}
    assert all(not leaf.any() for path, leaf in flat.items() if path.endswith("bias"))
    assert all((leaf == 1).all() for path, leaf in flat.items() if path.endswith("scale"))
    logits = jax.eval_shape(base.model.apply, {"params": base.params}, np.zeros((2, 5), np.int32))
    assert logits.shape == (2, 2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ENCODERS)
def test_hf_config_round_trip(name, head):
    config = with_head(get_model(name), head, 3)
    if head in ("none", "masked-lm"):
        config = dataclasses.replace(config, num_labels=2)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32")))) == config


BERT = config_to_hf(get_model("toy-bert"), "float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification is not read; known: Bert"),
        ({"architectures": ["BertLMHeadModel"]}, "BertLMHeadModel is not read"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is not supported"),
        ({"is_decoder": True, "quantization_config": {"bits": 4}}, "is_decoder, quantization_config is not supported"),
        ({"architectures": ["BertForMaskedLM"], "tie_word_embeddings": False}, "an untied masked-lm head"),
        ({"hidden_act": "swiglu"}, "hidden_act swiglu is not supported"),
        ({"problem_type": "multi_label_classification"}, "problem_type multi_label_classification"),
        ({"hidden_size": None}, "hidden_size must be a whole number, not None"),
        ({"num_attention_heads": 5}, "hidden_size 32 does not divide into 5 heads"),
    ],
)
def test_hf_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_hf({**BERT, **change}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
