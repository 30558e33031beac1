"""A run's merged model has the same files besides its weights as its base."""

import json
from types import SimpleNamespace

import jax
import numpy as np

from experiments.session.export import ExportConfig, export_run
from lowrank_jax.adapters import AdapterConfig, create, make_plan
from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base, param_shapes
from lowrank_jax.core.paths import unflatten
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def test_a_merged_model_has_what_lies_beside_its_base(tmp_path):
    from transformers import AutoTokenizer

    shape, rng = get_model("toy-llama"), np.random.default_rng(0)
    params = {path: rng.normal(size=size).astype(np.float32) for path, size in param_shapes(shape).items()}
    folder = export_params(unflatten(params), shape, tmp_path / "base", tokenizer=ByteTokenizer())
    for name, more in (
        ("tokenizer_config.json", {"chat_template": TEMPLATE, "padding_side": "left", "model_max_length": 99}),
        ("config.json", {"eos_token_id": [257, 10], "use_cache": False}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | more))
    (folder / "generation_config.json").write_text('{"eos_token_id": [257, 10]}')

    loaded = load_base(BaseConfig(str(folder)))
    plan = make_plan(loaded.params, AdapterConfig(rank=2, targets=("query",)))
    variables = {"params": loaded.params, **create(plan, jax.random.key(0))}
    config = SimpleNamespace(export=ExportConfig(adapter=False, merged="float32"), trainable="adapters")
    experiment = SimpleNamespace(
        config=config, plan=plan, base=abstract_base(BaseConfig(str(folder))), variables=lambda *_: variables
    )
    export_run(tmp_path / "run", experiment, None, None, loaded.fingerprint)
    out = tmp_path / "run" / "model"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (tokenizer.padding_side, tokenizer.model_max_length) == ("left", 99)
    values = json.loads((out / "config.json").read_text())
    assert (values["eos_token_id"], values["use_cache"]) == ([257, 10], False)
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": [257, 10]}
    assert isinstance(load_base(BaseConfig(str(out))).tokenizer, ByteTokenizer)
