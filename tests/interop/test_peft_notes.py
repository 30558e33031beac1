"""What is said when a PEFT folder is loaded: scales and base where nothing but its config has them."""

import json

import jax
import pytest
from toys import created

from lowrank_jax.adapters import AdapterConfig, make_plan
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop import llama
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("toy-llama", random_init=True), jax.random.key(0))


@pytest.fixture
def written(base, tmp_path):
    """(fields to change in adapter_config.json, keep the record) -> folder and what reads it."""
    from safetensors.numpy import load_file, save_file

    plan = make_plan(base.params, AdapterConfig(rank=2, alpha=5.0, targets=("query", "value", "up")))
    rows = llama.hf_table(base.config)
    variables = {"params": base.params, **created(plan)}
    save_peft(tmp_path, plan, variables, rows, base.config.num_hidden_layers, "x/toy", base.fingerprint)

    def read(changes, recorded=False, names=()):
        config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        if not recorded:
            save_file(load_file(weights), weights)
        return load_peft(tmp_path, base.params, rows, base.config.num_hidden_layers, names, base.fingerprint)

    return read


SITES = "layers/attention/query, layers/attention/value, layers/mlp/up"


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, f"2.5 at {SITES}"),
        ({"lora_alpha": 8}, f"4 at {SITES}"),
        ({"use_rslora": True}, f"3.53553 at {SITES}"),
        (
            {"alpha_pattern": {"v_proj": 16, "layers.1.mlp.up_proj": 3}},
            "2.5 at layers/attention/query, layers/mlp/up (layer 0); 8 at layers/attention/value; "
            "1.5 at layers/mlp/up (layer 1)",
        ),
    ],
)
def test_scales_that_only_the_config_has_are_printed(written, capsys, changes, scales):
    adapter = written(changes, names=["toy"])
    (line,) = adapter.notes
    assert f"by adapter_config.json the scale is {scales}; it names the base x/toy, and toy is in use" in line
    assert capsys.readouterr().out == line + "\n"


def test_a_base_without_a_name_is_said(written):
    (line,) = written({"base_model_name_or_path": None}).notes
    assert "it names no base, and one without a name is in use" in line


def test_a_folder_with_our_record_is_compared_with_it(written, capsys):
    assert written({}, recorded=True).notes == ()
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"the scale 4, and the adapter was written with 2\.5"):
        written({"lora_alpha": 8}, recorded=True)
