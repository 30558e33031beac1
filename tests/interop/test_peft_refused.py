"""PEFT folders that are refused, each in one line: spoiled ones, another base's, and what PEFT has no form for."""

import json
import shutil

import numpy as np
import pytest
from toys import created

from lowrank_jax.adapters import AdapterConfig, make_plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unflatten
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft


@pytest.fixture(scope="module")
def trained(untied_folder, tmp_path_factory, helpers):
    """The folder of a peft adapter with every trainable tensor moved."""
    folder = tmp_path_factory.mktemp("peft")
    helpers.peft(untied_folder, folder, r=4, lora_alpha=10, target_modules=["q_proj", "v_proj"])
    return folder


@pytest.fixture
def spoiled(trained, tmp_path):
    """(change of the config, change of the tensors) -> a folder with both made."""
    from safetensors.numpy import load_file, save_file

    def build(config=None, tensors=None):
        folder = shutil.copytree(trained, tmp_path / "spoiled")
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**values, **(config or {})}))
        held = load_file(folder / "adapter_model.safetensors")
        save_file((tensors or dict)(held), folder / "adapter_model.safetensors")
        return folder

    return build


def read(folder, base, table, **options):
    return load_peft(folder, base.params, *table, **options)


def drop(text):
    return lambda held: {k: v for k, v in held.items() if text not in k}


def rename(old, new):
    return lambda held: {k.replace(old, new): v for k, v in held.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensors": rename("base_model.model.", "")}, r"lacks the prefix 'base_model.model.'"),
        ({"tensors": rename("base_model.model.model.", "base_model.model.decoder.")}, r"missing: .*unknown: "),
        ({"tensors": drop("layers.1.self_attn.q_proj.lora_B")}, r"missing: .*layers.1.self_attn.q_proj.lora_B.weight$"),
        (
            {"tensors": lambda held: {**held, "base_model.model.x.lora_A.weight": np.ones((1, 1))}},
            r"unknown: base_model.model.x",
        ),
        ({"config": {"r": 8}}, r"of another rank or shape: .*\[4, 32\] instead of \[8, 32\]"),
        ({"config": {"rank_pattern": {"q_proj": 2}}}, r"\[4, 32\] instead of \[2, 32\]"),
        ({"config": {"lora_alpha": None}}, r"lora_alpha is None; it must be a number above 0"),
        ({"config": {"lora_alpha": 0}}, r"lora_alpha is 0;"),
        ({"config": {"r": "4"}}, r"r is '4'; it must be a whole number"),
        ({"config": {"peft_type": "LOHA"}}, r"peft_type 'LOHA' is not read; known: LORA"),
        (
            {"config": {"use_mora": True, "mora_type": 6}},
            r"of another rank or shape: .*lora_A.weight \[4, 32\] instead of",
        ),
        ({"config": {"use_mora": True, "mora_type": 5}}, r"mora_type 5 has no forward pass"),
        ({"config": {"use_quantum": True, "lora_bias": True}}, r"lora_bias, use_quantum is not supported here"),
        ({"config": {"use_dora": True}}, r"missing: .*lora_magnitude_vector"),
        ({"config": {"init_lora_weights": "corda"}}, r"init_lora_weights 'corda' changes the base"),
        ({"config": {"target_modules": ["embed_tokens"], "use_dora": True}}, r"an embedding, which has no dora here"),
        ({"config": {"target_modules": ["c_attn"]}}, r"\('c_attn',\) matches no module of this base"),
        ({"config": {"bias": "some"}}, r"bias 'some' is not one of"),
        ({"config": {"modules_to_save": ["lm_head"]}}, r"missing: base_model.model.lm_head.weight"),
        ({"config": {"modules_to_save": ["embed_tokens"]}}, r"missing: base_model.model.model.embed_tokens.weight"),
        ({"tensors": lambda held: {k: v * np.nan for k, v in held.items()}}, r"lora_A.weight is not finite"),
    ],
)
def test_a_spoiled_adapter_is_refused(base, table, spoiled, change, message):
    with pytest.raises(UserError, match=message) as error:
        read(spoiled(**change), base, table)
    assert "\n" not in str(error.value)


def test_an_adapter_of_another_base_is_refused(base, table, spoiled, tmp_path, trained):
    folder = spoiled(config={"base_model_name_or_path": "meta-llama/Llama-2-7b-hf"})
    read(folder, base, table)
    read(folder, base, table, base_names=("other/llama-2-7b-HF",))
    with pytest.raises(UserError, match="was made for meta-llama/Llama-2-7b-hf, not for org/toy"):
        read(folder, base, table, base_names=("org/toy",))
    adapter = read(trained, base, table)
    save_peft(tmp_path / "own", adapter.plan, adapter.variables, *table, "org/toy", "abc")
    with pytest.raises(UserError, match=r"made for the base 'org/toy' with other weights or another config \(abc\)"):
        read(tmp_path / "own", base, table, fingerprint=base.fingerprint)


def test_an_alpha_changed_after_writing_is_found(base, table, trained, tmp_path):
    """PEFT itself cannot know; what is written here carries its scales."""
    adapter = read(trained, base, table)
    save_peft(tmp_path, adapter.plan, adapter.variables, *table)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 99}))
    with pytest.raises(
        UserError, match=r"lora_alpha and r give model.layers.0.self_attn.q_proj the scale 24.75.* 2.5;"
    ):
        read(tmp_path, base, table)


def test_folders_without_an_adapter(base, table, tmp_path):
    with pytest.raises(UserError, match=r"has no adapter_model.safetensors; give the folder"):
        read(tmp_path, base, table)


def test_what_has_no_form_in_peft_is_not_written(base, table, tmp_path):
    def save(config, **changes):
        plan = make_plan(base.params, config)
        variables = {"params": base.params, **created(plan, base.params)}
        save_peft(tmp_path / "out", plan, {**variables, **changes.pop("variables", {})}, *table, **changes)

    query = {"rank": 2, "targets": ("query",)}
    with pytest.raises(UserError, match="PEFT's LoRA has no houlsby; keep that adapter in our own format"):
        save([AdapterConfig(**query), AdapterConfig("houlsby", 2)])
    with pytest.raises(UserError, match="a PEFT folder has one method, not lora and dora"):
        save([AdapterConfig(**query), AdapterConfig("dora", 2, targets=("value",))])
    with pytest.raises(UserError, match="LoftQ adapter belongs to a 4-bit residual"):
        save(AdapterConfig(init="loftq", **query))
    with pytest.raises(UserError, match=r"PEFT cannot train model.layers.0.self_attn.q_proj and adapt it too"):
        save(AdapterConfig(**query), trained=("layers/attention/query/kernel",))
    with pytest.raises(UserError, match=r"no tensor for \['ghost'\]"):
        save(AdapterConfig(**query), trained=("ghost",))
    zero = {"scales": unflatten({"layers/attention/query/scale": np.zeros(3, np.float32)})}
    with pytest.raises(UserError, match="every layer's adapter is switched off"):
        save(AdapterConfig(**query), variables=zero)
    assert not (tmp_path / "out").exists()
