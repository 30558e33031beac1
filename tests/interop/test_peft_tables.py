"""PEFT folders with trained embeddings and output layers, as users have them: both ways, equal outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch
from toys import jitted

from lowrank_jax.adapters import attach, merge
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.peft import export_peft, import_peft
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's of saved embeddings and tied weights
ROWS = 40
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)
BOTH = ["embed_tokens", "lm_head"]
# name: (base tied, rows after resizing and their multiple, options of peft.LoraConfig, our output layer stays tied)
CASES = {
    "both": (False, None, {"modules_to_save": BOTH}, False),
    "last-letters": (False, None, {"modules_to_save": ["norm"]}, False),  # layers' norms too
    "all-linear": (False, None, {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}, False),
    "tied-table": (True, None, {"modules_to_save": ["embed_tokens"]}, False),
    "tied-output": (True, None, {"modules_to_save": ["lm_head"]}, False),
    "tied-both": (True, None, {"modules_to_save": BOTH}, False),
    "tied-together": (True, None, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "adapted-output": (True, None, {"target_modules": ["q_proj", "lm_head"]}, False),
    "adapted-together": (
        True,
        None,
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        False,
    ),
    "grown": (False, (43, None), {}, False),
    "grown-tied": (True, (43, 8), {}, True),
    "grown-saved": (True, (43, 8), {"modules_to_save": BOTH}, False),
    "rows-by-name": (False, None, {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [1, 2]}}, False),
    "rows-tied": (True, None, {"trainable_token_indices": [7]}, True),
    "rows-output": (True, None, {"trainable_token_indices": {"lm_head": [7]}}, False),
    "rows-differ": (True, None, {"trainable_token_indices": {"embed_tokens": [5], "lm_head": [1, 2]}}, False),
    "rows-grown": (True, (43, None), {"trainable_token_indices": [40, 42]}, True),
}


def model_of(folder, resize=None):
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    if resize:
        model.resize_token_embeddings(resize[0], pad_to_multiple_of=resize[1], mean_resizing=False)
    return model


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens).long()).logits.numpy()


def gap(one, other):
    assert one.shape == other.shape
    return np.abs(one - other).max() / np.abs(other).max()


def ours(base, adapter, tokens):
    variables = jax.tree.map(jnp.asarray, adapter.variables)
    return np.asarray(jax.jit(attach(base.model, adapter.plan))(variables, tokens))


def moved(model, options, folder, name="default", **saving):
    """PEFT's model of these options with every trained leaf moved, saved into the folder."""
    import peft

    torch.manual_seed(1)
    lora = peft.LoraConfig(**{"r": 2, "lora_alpha": 5, "target_modules": ["q_proj"], **options})
    model = peft.get_peft_model(model, lora, adapter_name=name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, **saving)
    return model


def change(folder, values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """tied -> (folder, our base)."""
    import transformers

    found = {}
    for tied in (False, True):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp(f"tied-{tied}")
        config = transformers.LlamaConfig(**SHAPE, vocab_size=ROWS, tie_word_embeddings=tied)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        found[tied] = folder, load_base(BaseConfig(str(folder)))
    return found


@pytest.mark.parametrize("name", CASES)
def test_both_ways(bases, tmp_path, name):
    import peft

    tied, resize, options, stays_tied = CASES[name]
    folder, base = bases[tied]
    theirs = moved(model_of(folder, resize), options, tmp_path / "in")
    if options.get("target_modules") == "all-linear":  # PEFT saves the names that it stands for
        change(tmp_path / "in", {"target_modules": "all-linear"})
    rows = theirs.get_input_embeddings().weight.shape[0]
    tokens = np.random.default_rng(0).integers(0, rows, (2, 9)).astype(np.int32)
    tokens[0, :4] = 3, 7, 38, rows - 1
    expected = logits(theirs, tokens)

    fitted, adapter = import_peft(tmp_path / "in", base)
    assert (fitted.config.vocab_size, fitted.config.tie_word_embeddings) == (rows, stays_tied)
    assert gap(ours(fitted, adapter, tokens), expected) < 1e-5
    merged = jitted(fitted.model)({"params": merge(adapter.variables, adapter.plan)}, tokens)
    assert gap(np.asarray(merged), expected) < 1e-5

    export_peft(tmp_path / "out", adapter.plan, adapter.variables, fitted, adapter.changed, adapter.token_rows)
    again = peft.PeftModel.from_pretrained(model_of(folder, resize), tmp_path / "out")
    assert gap(logits(again, tokens), expected) < 1e-5
    refitted, back = import_peft(tmp_path / "out", base)
    assert (refitted.config, back.changed) == (fitted.config, adapter.changed)
    for path, leaf in flatten(adapter.variables).items():
        np.testing.assert_allclose(flatten(back.variables)[path], leaf, rtol=1e-6, err_msg=path)
    single = json.loads((tmp_path / "out" / "adapter_config.json").read_text()).get("trainable_token_indices")
    assert bool(single) == ("trainable_token_indices" in options and not resize)


# kind: (class, options), each with three more rows
OTHERS = {
    "GPT2": ("GPT2LMHeadModel", {"target_modules": ["c_attn"]}),
    "Bert": (
        "BertForSequenceClassification",
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "trainable_token_indices": [3, 41]},
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures(tmp_path, kind):
    import peft
    import transformers

    torch.manual_seed(0)
    name, options = OTHERS[kind]
    shape = SHAPE if kind == "Bert" else dict(n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1)
    config = getattr(transformers, f"{kind}Config")(**{**shape, "vocab_size": ROWS, "initializer_range": 0.3})
    getattr(transformers, name)(config).save_pretrained(tmp_path / "base")
    base, tokens = load_base(BaseConfig(str(tmp_path / "base"))), np.array([[3, 7, 41, 0, 8, 42]], np.int32)

    def grown():
        model = getattr(transformers, name).from_pretrained(tmp_path / "base")
        model.resize_token_embeddings(43, mean_resizing=False)
        return model

    expected = logits(moved(grown(), options, tmp_path / "in"), tokens)
    fitted, adapter = import_peft(tmp_path / "in", base)
    assert gap(ours(fitted, adapter, tokens), expected) < 1e-5
    export_peft(tmp_path / "out", adapter.plan, adapter.variables, fitted, adapter.changed, adapter.token_rows)
    assert gap(logits(peft.PeftModel.from_pretrained(grown(), tmp_path / "out"), tokens), expected) < 1e-5


def test_a_masked_lm_has_one_table(tmp_path):
    """Its head is always tied here: what trains or grows one alone is refused."""
    import transformers

    transformers.BertForMaskedLM(transformers.BertConfig(**SHAPE, vocab_size=ROWS)).save_pretrained(tmp_path / "base")
    base = load_base(BaseConfig(str(tmp_path / "base")))
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    moved(model, {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]}, tmp_path / "one")
    with pytest.raises(
        UserError, match=r"trains the embedding or the output layer by itself, and this encoder has one"
    ):
        import_peft(tmp_path / "one", base)
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(43, mean_resizing=False)
    moved(model, {"target_modules": ["query"]}, tmp_path / "grown")
    with pytest.raises(UserError, match=r"has 43 token ids and this masked-lm base 40; merge it in PEFT first"):
        import_peft(tmp_path / "grown", base)
