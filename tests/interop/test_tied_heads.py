"""Heads that a config calls tied: compared with the embedding, then untied, ignored or refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toys import jitted

from lowrank_jax.bases.base import BaseConfig, abstract_base, config_of, load_base, load_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop import tied
from lowrank_jax.interop.readers import open_checkpoint

SHAPE = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "max_position_embeddings": 40, "initializer_range": 0.2}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "initializer_range": 0.2}
DEBERTA = {**SHAPE, "relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
MODELS = {  # class of transformers: (its shape, the head's key, the word table's)
    "LlamaForCausalLM": (SHAPE, "lm_head.weight", "model.embed_tokens.weight"),
    "GPT2LMHeadModel": (GPT2, "lm_head.weight", "transformer.wte.weight"),
    "BertForMaskedLM": (SHAPE, "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "RobertaForMaskedLM": (SHAPE, "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
    "DebertaV2ForMaskedLM": (DEBERTA, "cls.predictions.decoder.weight", "deberta.embeddings.word_embeddings.weight"),
}
LANGUAGE, MASKED = list(MODELS)[:2], list(MODELS)[2:]
TOKENS = np.random.default_rng(0).integers(3, 61, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Class of transformers -> (the tensors that it saves, its config.json), of a tied model."""
    import torch
    import transformers

    found = {}
    for name, (shape, *_) in MODELS.items():
        torch.manual_seed(1)
        cls, folder = getattr(transformers, name), tmp_path_factory.mktemp(name)
        cls(cls.config_class(**shape, tie_word_embeddings=True)).save_pretrained(folder)
        found[name] = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    return found


def write(folder, saved, name, change=lambda state: None, **config):
    state, values = saved[name]
    state = dict(state)
    change(state)
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(values | config))
    return folder


def own_head(name, spread=0.3):
    """A change that gives the file a head different from its embedding, or a copy with spread 0."""
    _, head, table = MODELS[name]

    def change(state):
        noise = np.random.default_rng(5).normal(size=state[table].shape)
        state[head] = (state[table] + spread * noise).astype(np.float32)

    return change


def theirs(folder, name):
    import torch
    import transformers

    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def agree(ours, expected):
    assert np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max() < 1e-5


def logits(base):
    return jitted(base.model)({"params": base.params}, TOKENS)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_head_of_its_own_is_untied(saved, tmp_path, name, capsys):
    _, head, table = MODELS[name]
    write(tmp_path, saved, name, own_head(name))
    config = BaseConfig(str(tmp_path))
    base = load_base(config)
    assert base.config.tie_word_embeddings is False
    note = (
        f"{tmp_path}: {head} differs from {table}: read as untied, as transformers 5 does, though its config ties them"
    )
    assert base.notes == (note,)
    assert capsys.readouterr().out.splitlines() == [note]
    agree(logits(base), theirs(tmp_path, name))
    abstract = abstract_base(config)
    assert abstract.config == base.config
    assert {k: x.shape for k, x in flatten(abstract.params).items()} == {
        k: x.shape for k, x in flatten(base.params).items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_ignored_and_an_unused_head_left_out(saved, tmp_path, name):
    _, head, _ = MODELS[name]
    plain = load_base(BaseConfig(str(write(tmp_path / "plain", saved, name))))
    copy = load_base(BaseConfig(str(write(tmp_path / "copy", saved, name, own_head(name, 0)))))
    agree(logits(copy), theirs(tmp_path / "copy", name))
    assert copy.notes == (f"{tmp_path / 'copy'}: not read: {head}",)
    other = write(tmp_path / "other", saved, name, own_head(name))
    left = load_base(BaseConfig(str(other), unused=(re.escape(head),)))
    assert left.notes == (f"{other}: not read: {head}",)
    assert plain.config == copy.config == left.config
    assert plain.fingerprint == copy.fingerprint == left.fingerprint


@pytest.mark.parametrize("leaf", ["weight", "bias"])
@pytest.mark.parametrize("name", MASKED)
def test_an_encoder_has_no_untied_head(saved, tmp_path, name, leaf):
    head = MODELS[name][1].removesuffix("weight") + leaf
    original = MODELS[name][2] if leaf == "weight" else head.replace("decoder.", "")

    def change(state):
        state[head] = state[original] + np.float32(0.5)

    write(tmp_path, saved, name, change)
    for load in (load_base, abstract_base):
        with pytest.raises(UserError, match=f"{head} differs from {original}: this encoder has no untied") as error:
            load(BaseConfig(str(tmp_path)))
        assert f"{re.escape(head)!r} in base.unused" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_head_that_is_missing(saved, tmp_path, name):
    """transformers draws it at random; here the flag is named, or base.fresh asks for that."""
    _, head, table = MODELS[name]
    write(tmp_path, saved, name, tie_word_embeddings=False)
    with pytest.raises(UserError, match=f"lacks {head}, and its config does not tie the head to {table}; set") as error:
        load_base(BaseConfig(str(tmp_path)))
    assert "\n" not in str(error.value)
    drawn = load_base(BaseConfig(str(tmp_path), fresh=("head/kernel",)), jax.random.key(0))
    assert drawn.fresh == ("head/kernel",)


def test_keys_without_a_prefix(saved, tmp_path):
    def change(state):
        own_head("GPT2LMHeadModel")(state)
        for key in [key for key in state if key.startswith("transformer.")]:
            state[key.removeprefix("transformer.")] = state.pop(key)

    base = load_base(BaseConfig(str(write(tmp_path, saved, "GPT2LMHeadModel", change))))
    assert "lm_head.weight differs from wte.weight: read as untied" in base.notes[0]
    agree(logits(base), theirs(tmp_path, "GPT2LMHeadModel"))


@pytest.mark.parametrize("kind", ["one storage", "equal", "different"])
def test_torch_files(saved, tmp_path, kind, monkeypatch):
    import torch

    state, config = saved["LlamaForCausalLM"]
    state = {key: torch.tensor(tensor) for key, tensor in state.items()}
    table = state["model.embed_tokens.weight"]
    state["lm_head.weight"] = {"one storage": table, "equal": table.clone(), "different": table + 0.1}[kind]
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if kind == "one storage":  # known without reading either
        monkeypatch.setattr(tied, "_are_equal", None)
    base = load_base(BaseConfig(str(tmp_path)))
    assert base.config.tie_word_embeddings == (kind != "different")
    agree(logits(base), theirs(tmp_path, "LlamaForCausalLM"))


@pytest.mark.parametrize("spoilt", [None, 0, 60])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float16")])
def test_tensors_are_compared_in_blocks(tmp_path, monkeypatch, spoilt, dtypes):
    monkeypatch.setattr(tied, "BLOCK", 8 * 5)
    a = np.random.default_rng(0).integers(-9, 9, (61, 5)).astype(np.float32)
    b = a.copy()
    if spoilt is not None:
        b[spoilt, 4] += 1
    first, second = (x.astype(jnp.dtype(dtype)) for x, dtype in zip((a, b), dtypes, strict=True))
    save_file({"a": first, "b": second, "short": first[:7]}, tmp_path / "model.safetensors")
    reader, sizes = open_checkpoint(tmp_path), []
    read = reader.read

    def counted(key, part=None):
        sizes.append(read(key, part).size)
        return read(key, part)

    monkeypatch.setattr(reader, "read", counted)
    assert tied._is_equal(reader, "a", "b") == (spoilt is None)
    assert max(sizes) == 40
    assert len(sizes) == (2 if spoilt == 0 else 16)
    assert not tied._is_equal(reader, "a", "short")


def test_a_config_that_was_not_fitted_is_no_model_of_the_file(saved, tmp_path):
    reader = open_checkpoint(write(tmp_path, saved, "LlamaForCausalLM", own_head("LlamaForCausalLM")))
    with pytest.raises(ValueError, match=r"the config ties a head that differs; give the one of tied.fit"):
        load_params(reader, config_of(tmp_path, reader))


def test_weights_that_came_after_the_plan(saved, tmp_path, monkeypatch):
    """A Hub name is planned by its config where its weights are not here, or not all."""
    from lowrank_jax.bases import base

    name = "LlamaForCausalLM"
    write(tmp_path, saved, name, own_head(name))
    monkeypatch.setattr(base, "resolve", lambda *_, **__: (tmp_path, "hub:org/name@main"))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:50])
    planned = abstract_base(BaseConfig("org/name")).config
    assert planned.tie_word_embeddings
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"head is not tied, unlike what was planned by config.json; start again"):
        load_base(BaseConfig("org/name"), planned=planned)
    planned = abstract_base(BaseConfig("org/name")).config
    assert load_base(BaseConfig("org/name"), planned=planned).config == planned


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_peft_adapter_is_merged_into_the_untied_model(saved, tmp_path, name, load_script):
    import peft
    import torch
    import transformers

    script = load_script("merge_adapter")
    write(tmp_path / "base", saved, name, own_head(name))
    targets = ["q_proj", "lm_head"] if name.startswith("Llama") else ["c_attn"]
    model = getattr(transformers, name).from_pretrained(tmp_path / "base", dtype=torch.float32)
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets, fan_in_fan_out=name.startswith("GPT2"))
    model = peft.get_peft_model(model, config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter += 0.2 * torch.randn_like(parameter)
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert script.run(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "out", "float32") < 1e-5
    agree(theirs(tmp_path / "out", name), expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
