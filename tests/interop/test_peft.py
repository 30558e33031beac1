"""PEFT folders both ways on a toy Llama: equal outputs and gradients, and what is refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from toys import created, jitted

from lowrank_jax.adapters import AdapterConfig, attach, make_plan
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.interop import llama
from lowrank_jax.interop.peft.config import hf_modules
from lowrank_jax.interop.peft.export import save_peft
from lowrank_jax.interop.peft.folder import load_peft

torch.set_num_threads(1)
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
def base(untied_folder):
    return load_base(BaseConfig(str(untied_folder)))


@pytest.fixture(scope="module")
def table(base):
    return llama.hf_table(base.config), base.config.num_hidden_layers


@pytest.fixture(scope="module")
def trained(untied_folder, tmp_path_factory, helpers, tokens):
    """name of an option -> (folder, logits): a peft adapter with every trainable tensor moved, and what it computes."""

    @functools.cache
    def build(name):
        import peft
        import transformers

        model = transformers.LlamaForCausalLM.from_pretrained(untied_folder).eval()
        torch.manual_seed(0)
        model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 10, **OPTIONS[name]})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        folder = tmp_path_factory.mktemp("peft")
        model.save_pretrained(folder)
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


@pytest.fixture
def spoiled(trained, tmp_path):
    """(option, change of the config, change of the tensors) -> a folder with both made."""
    from safetensors.numpy import load_file, save_file

    def build(name="lora", config=None, tensors=None, metadata=None):
        folder = shutil.copytree(trained(name)[0], tmp_path / "spoiled")
        values = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**values, **(config or {})}))
        held = load_file(folder / "adapter_model.safetensors")
        save_file((tensors or dict)(held), folder / "adapter_model.safetensors", metadata=metadata)
        return folder

    return build


# --- in, and out again ---


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


def test_bfloat16_tensors_are_read(base, table, trained, tokens, spoiled):
    from safetensors.torch import load_file, save_file

    folder = spoiled()
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


# --- refused, in one line ---


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
    adapter = read(trained("lora")[0], base, table)
    save_peft(tmp_path / "own", adapter.plan, adapter.variables, *table, "org/toy", "abc")
    with pytest.raises(UserError, match=r"made for the base 'org/toy' with other weights or another config \(abc\)"):
        read(tmp_path / "own", base, table, fingerprint=base.fingerprint)


def test_an_alpha_changed_after_writing_is_found(base, table, trained, tmp_path):
    """PEFT itself cannot know; what is written here carries its scales."""
    adapter = read(trained("lora")[0], base, table)
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
