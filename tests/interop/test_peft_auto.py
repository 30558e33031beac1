"""PEFT's Auto classes load what is written here from the folder alone: the task, the base's name, a trained head."""

import dataclasses
import json
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from late import torch
from toys import created

from lowrank_jax.adapters import AdapterConfig, attach, make_plan
from lowrank_jax.bases import locate
from lowrank_jax.bases.base import ARCHITECTURES, BaseConfig, abstract_base, architecture_of, load_base
from lowrank_jax.bases.peft import export_peft
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.peft.config import task_of
from lowrank_jax.interop.peft.folder import load_peft
from lowrank_jax.models.registry import MODELS

TOKENS = np.random.default_rng(0).integers(2, 40, (2, 9)).astype(np.int32)
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3, initializer_range=0.3)
DEBERTA = dict(relative_attention=True, pos_att_type=["c2p"], position_biased_input=False, type_vocab_size=0)
SHAPES = {
    "Llama": dict(SHAPE, tie_word_embeddings=False, initializer_range=0.3),
    "GPT2": dict(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1),
    "Bert": dict(SHAPE, **QUIET),
    "Roberta": dict(SHAPE, **QUIET),
    "DebertaV2": dict(SHAPE, **QUIET, **DEBERTA),
}
# class of transformers: (peft's Auto class, task_type)
CLASSES = {
    "LlamaForCausalLM": ("CausalLM", "CAUSAL_LM"),
    "GPT2LMHeadModel": ("CausalLM", "CAUSAL_LM"),
    "BertForSequenceClassification": ("SequenceClassification", "SEQ_CLS"),
    "RobertaForSequenceClassification": ("SequenceClassification", "SEQ_CLS"),
    "DebertaV2ForSequenceClassification": ("SequenceClassification", "SEQ_CLS"),
    "BertModel": ("FeatureExtraction", "FEATURE_EXTRACTION"),
    "RobertaForMaskedLM": ("", None),
    "DebertaV2ForMaskedLM": ("", None),
}


@pytest.fixture(scope="module")
def offline():
    """PEFT looks on the Hub for a tokenizer that the adapter's folder lacks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peft.auto.check_file_exists_on_hf_hub", lambda *_, **__: False)
        yield


def written(folder: Path, name: str) -> Path:
    import transformers

    torch.manual_seed(0)
    kind = next(kind for kind in SHAPES if name.startswith(kind))
    config = getattr(transformers, f"{kind}Config")(**SHAPES[kind], pad_token_id=1)
    getattr(transformers, name)(config).save_pretrained(folder / "base")
    return folder / "base"


def adapted(base, *targets, trained=()):
    """(plan, variables) of a LoRA with every leaf moved, and with the given leaves of the base moved too."""
    plan, rng = make_plan(base.params, AdapterConfig(rank=2, alpha=5.0, targets=targets)), np.random.default_rng(0)
    made, params = created(plan), base.params
    made["adapters"] = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), made["adapters"])
    moved = lambda path, leaf: leaf + 0.3 if path in trained else leaf  # noqa: E731
    params = jax.tree_util.tree_map_with_path(lambda p, x: moved("/".join(k.key for k in p), x), params)
    return plan, {"params": params, **made}


def theirs(folder, auto, **options):
    """What a peft Auto class computes from the folder, and the model."""
    import peft

    model = getattr(peft, f"AutoPeftModel{'For' if auto else ''}{auto}").from_pretrained(folder, **options).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(TOKENS).long())
    return (out.logits if "logits" in out else out.last_hidden_state).numpy(), model


def ours(base, plan, variables):
    out = attach(base.model, plan)(variables, TOKENS)
    return np.asarray(out[0] if isinstance(out, tuple) else out)


def gap(one, other):
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.mark.parametrize("name", CLASSES)
def test_from_the_folder_alone(tmp_path, offline, name):
    base = load_base(BaseConfig(str(written(tmp_path, name))))
    plan, variables = adapted(base, *(("attention/out", "mlp/down") if name.startswith("GPT2") else ("query", "value")))
    auto, task = CLASSES[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out.*")
        export_peft(tmp_path / "out", plan, variables, base)
        got, model = theirs(tmp_path / "out", auto)
    assert gap(got, ours(base, plan, variables)) < 1e-5
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (values["task_type"], values["inference_mode"], values["peft_type"]) == (task, True, "LORA")
    assert values["base_model_name_or_path"] == str(tmp_path / "base")
    assert values["fan_in_fan_out"] == name.startswith("GPT2")
    assert (values["auto_mapping"] or {}).get("base_model_class") == (None if task else name)
    rows = architecture_of(base.config).interop.hf_table(base.config)
    again = load_peft(tmp_path / "out", base.params, rows, 2, [base.name], base.fingerprint)
    assert again.changed == ()
    model.save_pretrained(tmp_path / "back")  # PEFT's own folder says the same
    back = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    for field in ("task_type", "base_model_name_or_path", "fan_in_fan_out", "revision"):
        assert back[field] == values[field], field


def test_a_trained_embedding_beside_a_head_of_its_own(tmp_path, offline):
    """An untied Llama's table is no head: PEFT reads ours and we read it back; of a tied one it stays refused."""
    base = load_base(BaseConfig(str(written(tmp_path, "LlamaForCausalLM"))))
    trained = ["embed/embedding"]
    plan, variables = adapted(base, "query", trained=trained)
    export_peft(tmp_path / "out", plan, variables, base, trained)
    got, model = theirs(tmp_path / "out", "CausalLM")
    assert gap(got, ours(base, plan, variables)) < 1e-5
    model.save_pretrained(tmp_path / "back")
    rows = architecture_of(base.config).interop.hf_table(base.config)
    for folder in ("out", "back"):
        again = load_peft(tmp_path / folder, base.params, rows, 2)
        assert again.changed == tuple(trained)
        assert gap(ours(base, again.plan, again.variables), ours(base, plan, variables)) < 1e-5
    tied = [row for row in rows if row.target != "head/kernel"]
    params = {name: tree for name, tree in base.params.items() if name != "head"}
    with pytest.raises(UserError, match=r"a trained model.embed_tokens is this base's output head too"):
        load_peft(tmp_path / "out", params, tied, 2)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2"])
def test_a_trained_head(tmp_path, offline, name):
    """A part of the head is trained, and an earlier layer: the file has the whole head."""
    base = load_base(BaseConfig(str(written(tmp_path, f"{name}ForSequenceClassification"))))
    trained = ["head/out/bias", "pooler/kernel"] if name != "Roberta" else ["head/out/kernel"]
    plan, variables = adapted(base, "query", trained=trained)
    assert gap(ours(base, plan, variables), ours(base, plan, {**variables, "params": base.params})) > 1e-2
    export_peft(tmp_path / "out", plan, variables, base, trained)
    got, _ = theirs(tmp_path / "out", "SequenceClassification")
    assert gap(got, ours(base, plan, variables)) < 1e-5
    rows = architecture_of(base.config).interop.hf_table(base.config)
    assert load_peft(tmp_path / "out", base.params, rows, 2).changed == tuple(sorted(trained))


def test_a_fresh_head_on_a_bare_encoder(tmp_path, offline):
    """It is drawn here and in no other file: it is written though it is not trained."""
    folder = written(tmp_path, "DebertaV2Model")
    config = BaseConfig(str(folder), head="classification", num_labels=3, fresh=("head/.*", "pooler/.*"))
    base = load_base(config, key=jax.random.key(1))
    plan, variables = adapted(base, "query")
    export_peft(tmp_path / "out", plan, variables, base)
    got, _ = theirs(tmp_path / "out", "SequenceClassification", num_labels=3)
    assert gap(got, ours(base, plan, variables)) < 1e-5


def test_biases_beside_a_trained_head(tmp_path, offline):
    base = load_base(BaseConfig(str(written(tmp_path, "BertForSequenceClassification"))))
    trained = ["layers/attention/query/bias", "head/out/bias"]
    plan, variables = adapted(base, "query", trained=trained)
    export_peft(tmp_path / "out", plan, variables, base, trained)
    values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (values["bias"], values["modules_to_save"]) == ("lora_only", ["classifier"])
    got, _ = theirs(tmp_path / "out", "SequenceClassification")
    assert gap(got, ours(base, plan, variables)) < 1e-5


def test_an_adapter_on_the_head(tmp_path, offline):
    """PEFT accepts it only without the task, which would save the head whole."""
    base = load_base(BaseConfig(str(written(tmp_path, "BertForSequenceClassification"))))
    plan, variables = adapted(base, "query", "head/out")
    export_peft(tmp_path / "out", plan, variables, base)
    got, _ = theirs(tmp_path / "out", "")
    assert gap(got, ours(base, plan, variables)) < 1e-5


def test_the_name_that_a_base_is_loaded_by(tmp_path):
    folder = written(tmp_path, "LlamaForCausalLM")
    base = load_base(BaseConfig(str(folder)))
    plan, variables = adapted(base, "query")

    def named(**changes):
        export_peft(tmp_path / "out", plan, variables, dataclasses.replace(base, **changes))
        values = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        return values["base_model_name_or_path"], values["revision"]

    assert named() == (str(folder), None)
    assert named(path=folder / "model.safetensors") == (str(folder), None)
    assert named(path=folder / "toy.gguf") == (str(folder / "toy.gguf"), None)
    assert named(name="org/toy", source="hub:org/toy@abc", path=Path("/cache/abc")) == ("org/toy", "abc")
    assert named(name="minilm-l6") == (locate.KNOWN["minilm-l6"].repository, None)
    assert named(name="toy-llama", source="random", path=None) == (None, None)


@pytest.mark.parametrize("name", MODELS)
def test_the_task_is_that_of_the_exported_class(name):
    """From a key table alone, for every architecture and head, as in an export's config.json."""
    config = abstract_base(BaseConfig(name, random_init=True)).config
    architecture = architecture_of(config)
    heads = ("none", "masked-lm", "classification", "regression") if architecture.with_head else ("",)
    for head in heads:
        shaped = architecture.with_head(config, head, 1) if head else config
        task, hf_class = task_of(architecture.interop.hf_table(shaped))
        (exported,) = architecture.interop.config_to_hf(shaped, "float32")["architectures"]
        end = {"CAUSAL_LM": ("ForCausalLM", "LMHeadModel"), "FEATURE_EXTRACTION": ("Model",)}.get(task, (hf_class,))
        assert exported.endswith(end)
    assert architecture in ARCHITECTURES
