"""PEFT folders of models that have biases: `bias` and `modules_to_save` both ways, on a toy GPT-2 and a toy BERT."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch

from lowrank_jax.adapters import attach
from lowrank_jax.bases.base import load_params
from lowrank_jax.interop import bert, gpt2
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft
from lowrank_jax.interop.readers import open_checkpoint
from lowrank_jax.models.bert import Bert
from lowrank_jax.models.gpt2 import GPT2

TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9)).astype(np.int32)
TOY = dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1)
TOY_BERT = dict(
    vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
    max_position_embeddings=32, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


def torch_model(kind):
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**TOY, initializer_range=0.2))
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TOY_BERT, initializer_range=0.2))


@pytest.fixture(scope="module", params=["gpt2", "bert"])
def model(request, tmp_path_factory):
    """(kind, folder of the base, our model, params, rows, layers)."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    torch_model(kind).save_pretrained(folder)
    room = {"gpt2": gpt2, "bert": bert}[kind]
    config = room.config_from_hf(json.loads((folder / "config.json").read_text()))
    params = load_params(open_checkpoint(folder), config)[0]
    ours = GPT2(config) if kind == "gpt2" else Bert(config)
    return kind, folder, ours, params, room.hf_table(config), config.num_hidden_layers


OPTIONS = {  # of peft.LoraConfig, for GPT-2 and for BERT
    "lora_only": ({"target_modules": ["c_attn", "c_fc"]}, {"target_modules": ["query", "intermediate.dense"]}),
    "all": ({"target_modules": ["c_proj"]}, {"target_modules": ["value"]}),
    "none": (
        {"target_modules": ["c_attn"], "modules_to_save": ["ln_1"]},
        {"target_modules": ["value"], "modules_to_save": ["classifier", "pooler"]},
    ),
}


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS).long()).logits.numpy()


def gap(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.mark.parametrize("bias", OPTIONS)
def test_both_ways(model, tmp_path, bias):
    import peft
    import transformers

    kind, base_folder, ours, params, rows, layers = model
    options = OPTIONS[bias][kind == "bert"]
    auto = transformers.GPT2LMHeadModel if kind == "gpt2" else transformers.BertForSequenceClassification
    theirs = peft.get_peft_model(
        auto.from_pretrained(base_folder), peft.LoraConfig(r=2, lora_alpha=5, bias=bias, **options)
    )
    moved = [name for name, p in theirs.named_parameters() if p.requires_grad]
    assert any(name.endswith("bias") for name in moved)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "in")
    expected = logits(theirs)
    adapter = load_peft(tmp_path / "in", params, rows, layers)
    assert adapter.changed
    got = np.asarray(jax.jit(attach(ours, adapter.plan))(jax.tree.map(jnp.asarray, adapter.variables), TOKENS))
    assert gap(got, expected) < 1e-5
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, rows, layers, trained=adapter.changed)
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(base_folder), tmp_path / "out")
    assert gap(logits(again), expected) < 1e-5
    back = load_peft(tmp_path / "out", params, rows, layers)
    assert back.changed == adapter.changed
