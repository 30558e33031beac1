"""PEFT folders of sequence classifiers whose biases are all trained beside the head: both ways, and what is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch

from lowrank_jax.adapters import attach
from lowrank_jax.bases.base import BaseConfig, architecture_of, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft

TOKENS = np.random.default_rng(0).integers(2, 40, (2, 9)).astype(np.int32)
SHAPE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40, num_labels=3,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, pad_token_id=1,
)  # fmt: skip
DEBERTA = dict(relative_attention=True, pos_att_type=["c2p"], position_biased_input=False, type_vocab_size=0)
# kind: (further fields of the base's config, PEFT's options)
KINDS = {
    "Bert": ({}, {"target_modules": ["query"]}),
    "Roberta": ({}, {"target_modules": ["query"], "modules_to_save": ["classifier", "LayerNorm"]}),
    "DebertaV2": (DEBERTA, {"target_modules": ["query_proj"]}),
}


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory):
    """(our base, transformers' class, its folder, a PEFT folder with every trained leaf moved, its logits)."""
    import peft
    import transformers

    torch.manual_seed(0)
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    more, options = KINDS[kind]
    auto = getattr(transformers, f"{kind}ForSequenceClassification")
    auto(getattr(transformers, f"{kind}Config")(**SHAPE, **more)).save_pretrained(folder / "base")
    lora = peft.LoraConfig(r=2, lora_alpha=5, bias="all", task_type="SEQ_CLS", **options)
    model = peft.get_peft_model(auto.from_pretrained(folder / "base"), lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "in")
    return load_base(BaseConfig(str(folder / "base"))), auto, folder / "base", folder / "in", logits(model)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(TOKENS).long()).logits.numpy()


def gap(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


def read(base, folder):
    rows, layers = architecture_of(base.config).interop.hf_table(base.config), base.config.num_hidden_layers
    return load_peft(folder, base.params, rows, layers), rows, layers


def test_all_biases_and_a_saved_head_both_ways(written, tmp_path):
    import peft

    base, auto, base_folder, folder, expected = written
    adapter, rows, layers = read(base, folder)
    variables = jax.tree.map(jnp.asarray, adapter.variables)
    assert gap(np.asarray(jax.jit(attach(base.model, adapter.plan))(variables, TOKENS)), expected) < 1e-5
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, rows, layers, trained=adapter.changed)
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(base_folder), tmp_path / "out")
    assert gap(logits(again), expected) < 1e-5
    assert read(base, tmp_path / "out")[0].changed == adapter.changed


def test_copies_that_disagree_are_refused(written, tmp_path):
    """So is a key that is not a copy of a saved bias."""
    from safetensors.numpy import load_file, save_file

    base, _, _, folder, _ = written
    (tmp_path / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    held = load_file(folder / "adapter_model.safetensors")
    copy = next(key for key in held if ".modules_to_save." in key)
    for spoiled, message in (
        ({copy: held[copy] + 1}, rf"{re.escape(copy)} and .*bias are one bias in PEFT and differ here"),
        ({copy.replace("bias", "ghost"): held[copy]}, r"unknown: .*ghost"),
    ):
        save_file({**held, **spoiled}, tmp_path / "adapter_model.safetensors")
        with pytest.raises(UserError, match=message):
            read(base, tmp_path)
