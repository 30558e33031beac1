"""PEFT folders both ways on a toy GPT-2, whose fused c_attn is three modules of ours."""

import json

import jax
import numpy as np
import pytest
from late import torch
from toys import created

from lowrank_jax.adapters import AdapterConfig, make_plan
from lowrank_jax.bases.base import load_params
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.peft.config import hf_modules
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """(folder, rows, layers, params) of a toy GPT-2; its params through the key table alone."""
    import transformers

    gpt2 = pytest.importorskip("lowrank_jax.interop.gpt2")
    from lowrank_jax.interop.readers import open_checkpoint

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=1,
    )
    folder = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    ours = gpt2.config_from_hf(json.loads((folder / "config.json").read_text()))
    reader = open_checkpoint(folder)
    return folder, gpt2.hf_table(ours), ours.num_hidden_layers, load_params(reader, ours)[0]


def gpt2_logits(folder, adapter_folder):
    import peft
    import transformers

    model = peft.PeftModel.from_pretrained(transformers.GPT2LMHeadModel.from_pretrained(folder), adapter_folder).eval()
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits.numpy()


@pytest.mark.parametrize("dora", [False, True])
def test_a_fused_module_is_split_and_joined(gpt2, tmp_path, capsys, dora):
    import peft
    import transformers

    folder, rows, layers, params = gpt2
    options = {"r": 2, "lora_alpha": 5, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": dora}
    model = peft.get_peft_model(transformers.GPT2LMHeadModel.from_pretrained(folder), peft.LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "in")
    adapter = load_peft(tmp_path / "in", params, rows, layers)
    told = "one lora_A for transformer.h.0.attn.c_attn and others like it, we have one each for query, key, value;"
    assert told in adapter.notes[-1]
    assert capsys.readouterr().out.splitlines() == list(adapter.notes)
    assert [s.path for s in adapter.plan.sites] == [f"layers/attention/{n}" for n in ("key", "query", "value")] + [
        "layers/mlp/up"
    ]
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, rows, layers)
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 2
    np.testing.assert_allclose(gpt2_logits(folder, tmp_path / "out"), gpt2_logits(folder, tmp_path / "in"), atol=1e-5)
    kernel = flatten(adapter.variables)["params/layers/attention/value/kernel"]
    assert kernel.shape == (2, 16, 16)


def test_different_parts_of_a_fused_module_join_block_by_block(gpt2, tmp_path):
    """query and value alone, each with its own A and scale: merged here, and in PEFT."""
    from lowrank_jax.adapters import merge

    folder, rows, layers, params = gpt2
    plan = make_plan(params, AdapterConfig(rank=2, targets=("query", "value"), alpha_pattern=(("value", 3.0),)))
    made, rng = created(plan), np.random.default_rng(0)
    made["adapters"] = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), made["adapters"])
    variables = {"params": params, **made}
    save_peft(tmp_path, plan, variables, rows, layers)
    import peft
    import transformers

    model = peft.PeftModel.from_pretrained(transformers.GPT2LMHeadModel.from_pretrained(folder), tmp_path)
    merged = merge(variables, plan)["layers"]["attention"]
    for i, block in enumerate(model.merge_and_unload().transformer.h):
        fused = np.concatenate([merged[name]["kernel"][i] for name in ("query", "key", "value")], axis=1)
        np.testing.assert_allclose(block.attn.c_attn.weight.detach().numpy(), fused, atol=2e-5)


def test_the_table_names_the_modules_of_transformers(gpt2):
    import transformers

    folder, rows, layers, _ = gpt2
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert set(hf_modules(rows, layers)) <= {name for name, _ in model.named_modules()}
