"""GPT-2 checkpoints against transformers: in with and without a prefix, out, and everything that is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import jitted, unlike

from lowrank_jax.bases.base import load_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.gpt2 import config_from_hf, config_to_hf, export_params, hf_table
from lowrank_jax.interop.readers import INDEX, open_checkpoint
from lowrank_jax.models.gpt2 import GPT2, SHAPES

TOKENS = np.random.default_rng(0).integers(0, 259, (2, 24)).astype(np.int32)


def make(tied=True):
    """A random torch GPT-2; biases and norms are moved from their start, which would hide a mix-up."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    shape = dict(vocab_size=259, n_embd=32, n_layer=3, n_head=4, n_positions=64, layer_norm_epsilon=1e-4)
    config = transformers.GPT2Config(**shape, initializer_range=0.1, tie_word_embeddings=tied)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                weight += 0.3 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def original(request):
    return make(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2")
    make().save_pretrained(path)
    return path


def load(folder, **options):
    config = config_from_hf(json.loads((folder / "config.json").read_text()))
    return load_params(open_checkpoint(folder), config, **options)[0], config


def close(folder, model):
    import torch

    params, config = load(folder)
    ours = jitted(GPT2(config))({"params": params}, TOKENS)
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.float().numpy()
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() < 1e-5


def respell(folder, out, change):
    """A copy of a checkpoint whose tensors went through `change`."""
    from safetensors.numpy import load_file, save_file

    (out / "config.json").write_text((folder / "config.json").read_text())
    save_file(change(load_file(folder / "model.safetensors")), out / "model.safetensors")
    return out


@pytest.mark.parametrize("name", unlike(SHAPES))
def test_the_table_covers_exactly_the_model(name):
    config = SHAPES[name]
    shapes = jax.eval_shape(GPT2(config).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert {row.target: row.target_shape(config.num_hidden_layers) for row in hf_table(config)} == {
        path: leaf.shape for path, leaf in flatten(shapes).items()
    }


@pytest.mark.parametrize("shard", [None, "20KB"])
def test_logits(original, tmp_path, shard):
    original.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / INDEX).is_file() == bool(shard)
    close(tmp_path, original)


def test_keys_without_a_prefix_with_old_buffers_and_a_tied_copy(folder, tmp_path):
    def change(state):
        state = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
        state["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
        state["h.0.attn.masked_bias"] = np.full((), -1e4, np.float32)
        return {**state, "lm_head.weight": state["wte.weight"].copy()}

    close(respell(folder, tmp_path, change), make())


def test_a_checkpoint_of_the_bare_model(tmp_path):
    model = make()
    model.transformer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["GPT2Model"]
    close(tmp_path, model)


@pytest.mark.parametrize("shard_size", [None, 20_000])
def test_export_gives_transformers_equal_logits(original, tmp_path, shard_size):
    import torch
    import transformers

    original.save_pretrained(tmp_path / "in")
    params, config = load(tmp_path / "in")
    out = export_params(params, config, tmp_path / "out", shard_size=shard_size)
    assert (out / INDEX).is_file() == bool(shard_size)
    loaded, report = transformers.GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs, before = (m.eval()(torch.tensor(TOKENS)).logits.numpy() for m in (loaded, original))
    np.testing.assert_array_equal(theirs, before)
    again, same = load(out)
    assert same == config
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_export_in_bfloat16(folder, tmp_path):
    import torch
    import transformers

    params, config = load(folder)
    export_params(params, config, tmp_path, "bfloat16")
    assert transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
    again, _ = load(tmp_path, dtype=jnp.bfloat16)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), again, params)


def test_every_misfit_is_listed_in_one_error(folder, tmp_path):
    def change(state):
        state.pop("transformer.h.1.attn.c_attn.weight")
        state["transformer.h.2.mlp.c_fc.weight"] = state["transformer.h.2.mlp.c_fc.weight"].T.copy()
        return {**state, "transformer.h.0.attn.q_attn.weight": np.ones(3, np.float32)}

    with pytest.raises(UserError) as error:
        load(respell(folder, tmp_path, change))
    message = str(error.value)
    assert "missing: transformer.h.1.attn.c_attn.weight;" in message
    assert "unknown: transformer.h.0.attn.q_attn.weight;" in message
    assert "transformer.h.2.mlp.c_fc.weight [128, 32] instead of [32, 128]" in message
    assert "\n" not in message


def test_params_of_another_shape_are_not_exported(folder, tmp_path):
    params, config = load(folder)
    wrong = {**params, "position": jax.tree.map(lambda x: x[:7], params["position"])}
    with pytest.raises(ValueError, match="position/embedding"):
        export_params(wrong, config, tmp_path)


HF = config_to_hf(SHAPES["gpt2-medium"], "float32")


@pytest.mark.parametrize("name", SHAPES)
def test_config_round_trip(name):
    assert config_from_hf(json.loads(json.dumps(config_to_hf(SHAPES[name], "float32")))) == SHAPES[name]


def test_config_of_the_published_files():
    """OpenAI's files give n_ctx and no n_inner, which transformers writes as null."""
    assert config_from_hf({**HF, "n_inner": None}) == SHAPES["gpt2-medium"]
    assert config_from_hf({k: v for k, v in HF.items() if k != "n_inner"}) == SHAPES["gpt2-medium"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_attn_weights": False}, "scale_attn_weights false is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention is not supported"),
        ({"activation_function": "relu"}, "activation_function relu is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"architectures": ["GPTNeoForCausalLM"]}, "GPTNeoForCausalLM is not a GPT-2"),
        ({"n_embd": None}, "n_embd must be a whole number, not None"),
        ({"n_head": 7}, "does not divide into 7 heads"),
    ],
)
def test_configs_that_are_refused(change, message):
    with pytest.raises(UserError, match=message) as error:
        config_from_hf({**HF, **change}, "some/config.json")
    assert str(error.value).startswith("some/config.json: ")
    assert "\n" not in str(error.value)
