"""DeBERTa-v2 checkpoints against transformers: in by every spelling, out, and everything that is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import jitted, unlike

from lowrank_jax.bases.base import load_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.deberta import config_from_hf, config_to_hf, export_params, hf_table
from lowrank_jax.interop.partial import Exceptions
from lowrank_jax.interop.readers import INDEX, open_checkpoint
from lowrank_jax.models.deberta import SHAPES, Deberta, with_head
from lowrank_jax.models.parts.heads import HEADS

TOKENS = np.random.default_rng(0).integers(1, 61, (2, 24))
MASK = np.arange(24) < np.array([[24], [10]])
SHAPE = dict(  # written as Microsoft writes it
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    relative_attention=True,
    max_relative_positions=-1,
    position_buckets=8,
    pos_att_type="p2c|c2p",
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    position_biased_input=False,
    type_vocab_size=0,
    conv_kernel_size=3,
    conv_act="gelu",
)


def make(head="none", **changes):
    """A random torch DeBERTa-v2; biases and norms are moved from their start, which would hide a mix-up."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    kinds = {
        "none": transformers.DebertaV2Model,
        "classification": transformers.DebertaV2ForSequenceClassification,
        "masked-lm": transformers.DebertaV2ForMaskedLM,
    }
    config = transformers.DebertaV2Config(**{**SHAPE, "num_labels": 3, **changes}, initializer_range=0.2)
    model = kinds[head](config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                weight += 0.3 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("deberta")
    make().save_pretrained(path)
    return path


def load(folder, **options):
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return load_params(open_checkpoint(folder), config, **options)[0], config


def outputs(model):
    import torch

    with torch.no_grad():
        given = model(torch.tensor(TOKENS), attention_mask=torch.tensor(MASK).long())
    return given[0].numpy()


def close(folder, model):
    params, config = load(folder)
    ours = jitted(Deberta(config))({"params": params}, TOKENS.astype(np.int32), MASK)
    ours, theirs = ours[0] if config.head == "none" else ours, outputs(model)
    if theirs.ndim == 3:
        ours, theirs = ours[MASK], theirs[MASK]
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


def respell(folder, out, change, **config):
    """A copy of a checkpoint whose tensors went through `change`, its config without what Microsoft leaves out."""
    from safetensors.numpy import load_file, save_file

    values = {**json.loads((folder / "config.json").read_text()), **config}
    (out / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    save_file(change(load_file(folder / "model.safetensors")), out / "model.safetensors")
    return out


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", unlike(SHAPES))
def test_the_table_covers_exactly_the_model(name, head):
    config = with_head(SHAPES[name], head)
    shapes = jax.eval_shape(Deberta(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rows = hf_table(config)
    assert len({row.source for row in rows}) == len({row.target for row in rows}) == len(rows)
    assert {row.target: row.target_shape(config.num_hidden_layers) for row in rows} == {
        path: leaf.shape for path, leaf in flatten(shapes).items()
    }


@pytest.mark.parametrize(
    ("head", "changes"),
    [
        ("none", {}),
        ("classification", {}),
        ("masked-lm", {"hidden_act": "relu"}),
        ("none", {"share_att_key": False, "norm_rel_ebd": "none", "conv_groups": 4, "conv_kernel_size": 5}),
        ("none", {"share_att_key": False, "pos_att_type": "p2c", "conv_kernel_size": 0, "position_buckets": -1}),
    ],
)
def test_transformers_reads_what_we_export_and_the_reverse(head, changes, tmp_path):
    model = make(head, **changes)
    model.save_pretrained(tmp_path / "in")
    close(tmp_path / "in", model)
    params, config = load(tmp_path / "in")
    out = export_params(params, config, tmp_path / "out", shard_size=20_000)
    assert (out / INDEX).is_file()
    loaded, report = type(model).from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_array_equal(outputs(loaded.eval()), outputs(model))
    again, same = load(out)
    assert same == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_microsofts_files(folder, tmp_path):
    """They have the prefix without a head, no architectures, and weights that only pre-training used."""

    def change(state):
        state = {f"deberta.{key}": tensor for key, tensor in state.items()}
        extra = ("deberta.embeddings.position_embeddings.weight", "lm_predictions.lm_head.dense.weight")
        return state | {key: np.ones((4, 4), np.float32) for key in (*extra, "mask_predictions.classifier.weight")}

    close(respell(folder, tmp_path, change, architectures=None), make())


def test_the_masked_word_head_in_microsofts_spelling(tmp_path):
    """transformers' `legacy=False`; the export is in the spelling that all its versions read, with equal logits."""
    model = make("masked-lm", legacy=False)
    model.save_pretrained(tmp_path / "in")
    close(tmp_path / "in", model)
    params, config = load(tmp_path / "in")
    out = export_params(params, config, tmp_path / "out")
    loaded, report = type(model).from_pretrained(out, output_loading_info=True)
    assert loaded.config.legacy
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    np.testing.assert_allclose(outputs(loaded.eval()), outputs(model), atol=1e-5 * np.abs(outputs(model)).max())
    without = Exceptions(unused=(r"cls\..*",))
    encoder = with_head(config, "none")
    with pytest.raises(UserError, match=r"unknown: cls.predictions.bias"):
        load_params(open_checkpoint(out), encoder)
    one, two = (
        load_params(open_checkpoint(folder), encoder, exceptions=exceptions)[0]
        for folder, exceptions in ((tmp_path / "in", Exceptions()), (out, without))
    )
    assert "head" not in one
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_fresh_classifier_is_named(folder):
    config = with_head(config_from_hf(json.loads((folder / "config.json").read_text())), "classification")
    with pytest.raises(UserError, match=r"missing: pooler.dense.weight, .*classifier.bias.*base.fresh"):
        load_params(open_checkpoint(folder), config)
    fresh = Exceptions(fresh=("pooler/.*", "head/.*"))
    params = load_params(open_checkpoint(folder), config, exceptions=fresh, key=jax.random.key(0))[0]
    assert params["head"]["out"]["kernel"].shape == (32, 2)
    assert np.isfinite(jitted(Deberta(config))({"params": params}, TOKENS.astype(np.int32), MASK)).all()


def test_every_misfit_is_listed_in_one_error(folder, tmp_path):
    def change(state):
        state.pop("encoder.conv.conv.bias")
        state["encoder.rel_embeddings.weight"] = state["encoder.rel_embeddings.weight"][:10].copy()
        return {**state, "encoder.layer.0.attention.self.pos_key_proj.weight": np.ones(3, np.float32)}

    with pytest.raises(UserError) as error:
        load(respell(folder, tmp_path, change))
    message = str(error.value)
    assert "missing: encoder.conv.conv.bias;" in message
    assert "unknown: encoder.layer.0.attention.self.pos_key_proj.weight;" in message
    assert "encoder.rel_embeddings.weight [10, 32] instead of [16, 32]" in message
    assert "\n" not in message


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", SHAPES)
def test_config_round_trip(name, head):
    config = with_head(SHAPES[name], head, 2 if head in ("none", "masked-lm") else 3)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config, "float32")))) == config


def test_config_as_microsoft_writes_it():
    shape = {"num_hidden_layers": 48, "num_attention_heads": 24, "hidden_size": 1536, "intermediate_size": 6144}
    shape |= {"vocab_size": 128100, "max_position_embeddings": 512, "position_buckets": 256}
    assert config_from_hf({**SHAPE, "model_type": "deberta-v2", **shape}) == SHAPES["deberta-v2-xxlarge"]


HF = {**SHAPE, "model_type": "deberta-v2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_biased_input": True}, "position_biased_input is not supported"),
        ({"relative_attention": False}, "relative_attention false is not supported"),
        ({"type_vocab_size": 2}, "type_vocab_size above 0 is not supported"),
        ({"embedding_size": 16}, "embedding_size other than hidden_size is not supported"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd batch_norm is not supported"),
        ({"pos_att_type": "p2p"}, "unknown pos_att_type 'p2p'"),
        ({"pos_att_type": 3}, "pos_att_type must be names"),
        ({"pooler_hidden_act": "tanh"}, "pooler_hidden_act tanh is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"architectures": ["DebertaV2ForTokenClassification"]}, "TokenClassification is not read; known: DebertaV2M"),
        ({"architectures": ["DebertaV2ForMaskedLM"], "tie_word_embeddings": False}, "an untied masked-lm head"),
        ({"model_type": "deberta"}, "model_type deberta is not read"),
        ({"hidden_size": None}, "hidden_size must be a whole number, not None"),
        ({"num_attention_heads": 5}, "attention_head_size"),
        ({"conv_kernel_size": 2}, "it must be odd"),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_hf({**HF, **change}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)
