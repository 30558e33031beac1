"""PEFT folders both ways on a toy Llama: equal outputs and gradients."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch
from toys import created, jitted

from lowrank_jax.adapters import AdapterConfig, attach, make_plan
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.interop import llama
from lowrank_jax.interop.peft.config import hf_modules
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: options of peft.LoraConfig
OPTIONS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"target_modules": ALL, "use_rslora": True},
    "dora": {"target_modules": ALL, "use_dora": True},
    "patterns": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 6, r"model.layers.\d.self_attn.o_proj": 3},
        "alpha_pattern": {"v_proj": 3, "layers.0.mlp.up_proj": 32},
    },
    "dora-patterns": {
        "target_modules": ["q_proj", "up_proj"],
        "use_dora": True,
        "rank_pattern": {"layers.2.mlp.up_proj": 1},
    },
    "layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "dora-layers": {"target_modules": ["q_proj"], "layers_to_transform": 1, "use_dora": True},
    "exclude": {"target_modules": ALL, "exclude_modules": ["k_proj", "model.layers.1.mlp.up_proj"]},
    "regex": {"target_modules": r".*\.layers\.[12]\.(self_attn\.q_proj|mlp\.down_proj)"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"], "rank_pattern": {"embed_tokens": 3}},
    "saved": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["lm_head", "input_layernorm", "classifier"],
        "bias": "all",
    },
    "saved-embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "pissa": {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "pissa"},
    "olora": {"target_modules": ["q_proj", "up_proj"], "init_lora_weights": "olora", "use_dora": False},
}


@pytest.fixture(scope="module")
def trained(untied_folder, tmp_path_factory, helpers, tokens):
    """name of an option -> (folder, logits): a peft adapter with every trainable tensor moved, and what it computes."""

    @functools.cache
    def build(name):
        folder = tmp_path_factory.mktemp("peft")
        model = helpers.peft(untied_folder, folder, **{"r": 4, "lora_alpha": 10, **OPTIONS[name]})
        return folder, helpers.torch_logits(model, tokens)

    return build


def ours(base, adapter, tokens):
    return np.asarray(jax.jit(attach(base.model, adapter.plan))(adapter.variables, tokens))


def gap(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


def read(folder, base, table, **options):
    return load_peft(folder, base.params, *table, **options)


def in_peft(base_folder, folder):
    import peft
    import transformers

    return peft.PeftModel.from_pretrained(transformers.LlamaForCausalLM.from_pretrained(base_folder), folder).eval()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_peft_adapter_computes_here_what_it_does_there(base, table, trained, tokens, name):
    folder, expected = trained(name)
    adapter = read(folder, base, table)
    assert gap(ours(base, adapter, tokens), expected) < 1e-5
    assert gap(np.asarray(jitted(base.model)({"params": base.params}, tokens)), expected) > 1e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_it_goes_back_to_peft(base, table, trained, tokens, tmp_path, helpers, untied_folder, name):
    folder, expected = trained(name)
    adapter = read(folder, base, table)
    kept = () if name in ("pissa", "olora") else adapter.changed
    variables = {**adapter.variables, "params": base.params} if not kept else adapter.variables
    save_peft(tmp_path / "out", adapter.plan, variables, *table, "x/toy", base.fingerprint, kept)
    assert gap(helpers.torch_logits(in_peft(untied_folder, tmp_path / "out"), tokens), expected) < 1e-5
    before, after = (json.loads((f / "adapter_config.json").read_text()) for f in (folder, tmp_path / "out"))
    for field in ("use_dora", "use_rslora"):
        assert before[field] == after[field]
    again = read(tmp_path / "out", base, table, fingerprint=base.fingerprint)
    for path, leaf in flatten(adapter.adapters).items():
        np.testing.assert_array_equal(flatten(again.adapters)[path], leaf)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_fresh_adapter_of_ours_loads_in_peft(base, table, tmp_path, tokens, helpers, untied_folder, method):
    config = AdapterConfig(method, 3, alpha=16.0, targets=("all-linear",), rank_pattern=(("up", 5),))
    plan = make_plan(base.params, config)
    made = created(plan, base.params)
    rng = np.random.default_rng(0)
    made["adapters"] = jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), made["adapters"]
    )
    variables = {"params": base.params, **made}
    save_peft(tmp_path, plan, variables, *table)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["target_modules"] == sorted(ALL)
    assert (values["r"], values["lora_alpha"]) == (3, 16)
    expected = np.asarray(attach(base.model, plan)(variables, tokens))
    assert gap(helpers.torch_logits(in_peft(untied_folder, tmp_path), tokens), expected) < 1e-5


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_gradients_are_pefts(base, table, trained, tokens, untied_folder, name):
    folder, _ = trained(name)
    adapter = read(folder, base, table)
    model = in_peft(untied_folder, folder)
    for key, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in key)
    loss = torch.log_softmax(model(torch.tensor(tokens)).logits, -1).square().mean()
    loss.backward()
    theirs = {
        key.removeprefix("base_model.model."): p.grad.numpy()
        for key, p in model.named_parameters()
        if p.grad is not None
    }
    trainable, frozen = partition(jax.tree.map(jnp.asarray, adapter.variables))
    apply_fn = attach(base.model, adapter.plan)
    objective = lambda t: jnp.square(jax.nn.log_softmax(apply_fn(combine(t, frozen), tokens))).mean()  # noqa: E731
    grads, seen = flatten(jax.jit(jax.grad(objective))(trainable)), 0
    names = {"a": "lora_A.default.weight", "b": "lora_B.default.weight", "m": "lora_magnitude_vector.default.weight"}
    for hf, module in hf_modules(*table).items():
        for leaf, suffix in names.items():
            if (path := f"adapters/{module.parts[0]}/{leaf}") in grads:
                assert gap(grads[path][module.layer], theirs[f"{hf}.{suffix}"].T) < 1e-4, hf
                seen += 1
    assert seen == len(theirs)


def test_two_configurations_of_one_family_share_a_folder(base, table, tmp_path, tokens, helpers, untied_folder):
    configs = [
        AdapterConfig(rank=2, alpha=6.0, targets=("query",)),
        AdapterConfig(rank=3, alpha=5.0, targets=("embed",)),
    ]
    plan, rng = make_plan(base.params, configs), np.random.default_rng(0)
    made = created(plan)
    made["adapters"] = jax.tree.map(lambda x: np.float32(0.2 * rng.normal(size=x.shape)), made["adapters"])
    variables = {"params": base.params, **made}
    save_peft(tmp_path, plan, variables, *table)
    expected = np.asarray(attach(base.model, plan)(variables, tokens))
    assert gap(helpers.torch_logits(in_peft(untied_folder, tmp_path), tokens), expected) < 1e-5


def test_padded_ranks_and_left_out_layers_stay_what_they_are(base, table, trained, tokens):
    for name in ("patterns", "layers"):
        adapter = read(trained(name)[0], base, table)
        trainable, frozen = partition(jax.tree.map(jnp.asarray, adapter.variables))
        apply_fn = attach(base.model, adapter.plan)
        grads = jax.jit(jax.grad(lambda t, f=frozen, g=apply_fn: (g(combine(t, f), tokens) ** 2).mean()))(trainable)
        for path, leaf in flatten(adapter.adapters).items():
            axis = -2 if path.endswith("/a") else -1  # over which one of A's columns, or B's rows, is all zero
            grad = np.asarray(flatten(grads)[f"adapters/{path}"])
            assert not grad.any(axis)[~leaf.any(axis)].any(), path
            assert grad.any()
        assert any(not leaf[1].any() for leaf in flatten(adapter.adapters).values()) == (name == "layers")


def test_what_was_read_is_described(base, table, trained):
    plan = read(trained("patterns")[0], base, table).plan
    ranks = {site.path.rpartition("/")[2]: site.spec.rank for site in plan.sites}
    assert ranks == {"query": 2, "key": 4, "value": 4, "out": 3, "gate": 4, "up": 6, "down": 4}
    assert read(trained("saved")[0], base, table).changed == ("head/kernel", "layers/attention_norm/scale")


def test_bfloat16_tensors_are_read(base, table, trained, tokens, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(trained("lora")[0], tmp_path / "rounded")
    path = folder / "adapter_model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    assert gap(ours(base, read(folder, base, table), tokens), trained("lora")[1]) < 2e-2


def test_an_embedding_beside_a_tied_head(helpers, tokens, tmp_path):
    """PEFT leaves the head's product alone, and so do we; merging, which would not, is refused."""
    import peft

    from lowrank_jax.adapters import merge

    model = helpers.make(True)
    model.save_pretrained(tmp_path / "base")
    options = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["embed_tokens", "v_proj"], use_rslora=True)
    model = peft.get_peft_model(model, options).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "in")
    base = load_base(BaseConfig(str(tmp_path / "base")))
    rows, layers = llama.hf_table(base.config), base.config.num_hidden_layers
    adapter = load_peft(tmp_path / "in", base.params, rows, layers)
    assert adapter.changed == ()
    assert [site.path for site in adapter.plan.sites] == ["embed", "layers/attention/value"]
    expected = helpers.torch_logits(model, tokens)
    assert gap(ours(base, adapter, tokens), expected) < 1e-5
    save_peft(tmp_path / "out", adapter.plan, adapter.variables, rows, layers)
    assert gap(helpers.torch_logits(in_peft(tmp_path / "base", tmp_path / "out"), tokens), expected) < 1e-5
    with pytest.raises(UserError, match=r"embed is multiplied with by a tied head too.*head of its own"):
        merge(adapter.variables, adapter.plan)


def test_an_untied_embedding_merges(base, table, trained, tokens):
    from lowrank_jax.adapters import merge

    for name in ("embedding", "saved-embedding"):
        adapter = read(trained(name)[0], base, table)
        merged = np.asarray(jitted(base.model)({"params": merge(adapter.variables, adapter.plan)}, tokens))
        assert gap(merged, trained(name)[1]) < 1e-5


def test_the_tables_name_the_modules_of_transformers(base, table, untied):
    import transformers

    assert set(hf_modules(*table)) == {n for n, m in untied.named_modules() if isinstance(m, torch.nn.Linear)}
    bert = pytest.importorskip("lowrank_jax.interop.bert")
    for kind in ("Bert", "Roberta"):
        config = getattr(transformers, f"{kind}Config")(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=20
        )
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        values = {**config.to_dict(), "architectures": [type(model).__name__]}
        names = set(hf_modules(bert.hf_table(bert.config_from_hf(values)), 2))
        assert names == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
