"""PEFT folders as other programs leave them: AutoModel's names, a classifier's head, torch's format, named folders."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch

from lowrank_jax.adapters import attach
from lowrank_jax.bases.attached import load_attached
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.peft import export_peft, headed, import_peft
from lowrank_jax.core.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's of saved embeddings and tied weights
TOKENS = np.random.default_rng(0).integers(2, 40, (2, 9)).astype(np.int32)
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=40)
QUIET = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1)
DEBERTA = dict(relative_attention=True, pos_att_type=["c2p"], position_biased_input=False, type_vocab_size=0)
# kind: (config's fields, class with a head, adapted modules)
KINDS = {
    "Llama": (dict(SHAPE, tie_word_embeddings=True), "LlamaForCausalLM", ["q_proj", "down_proj"]),
    "Bert": (dict(SHAPE, **QUIET), "BertForSequenceClassification", ["query", "value"]),
    "Roberta": (dict(SHAPE, **QUIET), "RobertaForSequenceClassification", ["query"]),
    "DebertaV2": (dict(SHAPE, **QUIET, **DEBERTA), "DebertaV2ForSequenceClassification", ["query_proj"]),
}


def config_of(kind, **more):
    import transformers

    return getattr(transformers, f"{kind}Config")(**KINDS[kind][0], initializer_range=0.3, **more)


def moved(model, folder, targets, name="default", safe=True, **options):
    """PEFT's model with every trained leaf moved, saved into the folder."""
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_alpha=5, target_modules=targets, **options), adapter_name=name
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder, safe_serialization=safe)
    return model


def outputs(model):
    with torch.no_grad():
        out = model.eval()(input_ids=torch.tensor(TOKENS).long())
    return (out.logits if "logits" in out else out.last_hidden_state).numpy()


def gap(one, other):
    assert one.shape == other.shape
    return np.abs(one - other).max() / np.abs(other).max()


def ours(base, adapter):
    out = attach(base.model, adapter.plan)(jax.tree.map(jnp.asarray, adapter.variables), TOKENS)
    return np.asarray(out[0] if isinstance(out, tuple) else out)


def with_head(folder, labels):
    return load_base(headed(BaseConfig(str(folder / "base")), "classification", labels), jax.random.key(3))


@pytest.mark.parametrize("kind", ["Llama", "Bert"])
def test_an_adapter_of_auto_model_on_a_class_with_a_head(tmp_path, kind):
    """Its names have no "model." or "bert."; in PEFT it goes around the model inside the class with a head."""
    import peft
    import transformers

    torch.manual_seed(0)
    whole = getattr(transformers, KINDS[kind][1])(config_of(kind)).eval()
    whole.save_pretrained(tmp_path / "base")
    inner = whole.base_model_prefix
    bare = transformers.AutoModel.from_pretrained(
        tmp_path / "base", **({"add_pooling_layer": True} if kind == "Bert" else {})
    )
    moved(bare, tmp_path / "in", KINDS[kind][2])
    setattr(whole, inner, peft.PeftModel.from_pretrained(getattr(whole, inner), tmp_path / "in"))
    base, adapter = import_peft(tmp_path / "in", load_base(BaseConfig(str(tmp_path / "base"))))
    assert gap(ours(base, adapter), outputs(whole)) < 1e-5


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DebertaV2"])
def test_a_classifier_on_a_plain_encoder(tmp_path, kind):
    """The head is in the adapter alone: it is read onto the encoder, and goes back to PEFT."""
    import peft
    import transformers

    torch.manual_seed(0)
    transformers.AutoModel.from_config(config_of(kind)).save_pretrained(tmp_path / "base")
    auto = getattr(transformers, KINDS[kind][1])
    pooled = {"modules_to_save": ["classifier", "pooler"]} if kind == "DebertaV2" else {}  # its encoder has no pooler
    options = {"task_type": "SEQ_CLS", **pooled}
    targets = "all-linear" if kind == "Roberta" else KINDS[kind][2]
    theirs = moved(auto.from_pretrained(tmp_path / "base", num_labels=3), tmp_path / "in", targets, **options)
    if targets == "all-linear":  # PEFT saves the names that it stands for
        change(tmp_path / "in", {"target_modules": targets})
    expected = outputs(theirs)
    with pytest.raises(UserError, match=r"a classifier of 3 labels, and .* has the head 'none'; .*--num_labels 3"):
        import_peft(tmp_path / "in", load_base(BaseConfig(str(tmp_path / "base"))))

    with pytest.raises(UserError, match=r"a classifier of 3 labels, and .* has 2 labels; give .*base.num_labels=3"):
        import_peft(tmp_path / "in", with_head(tmp_path, 2))
    base, adapter = import_peft(tmp_path / "in", with_head(tmp_path, 3))
    assert gap(ours(base, adapter), expected) < 1e-5
    export_peft(tmp_path / "out", adapter.plan, adapter.variables, base, adapter.changed)
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(tmp_path / "base", num_labels=3), tmp_path / "out")
    assert gap(outputs(again), expected) < 1e-5


def test_a_head_that_nobody_has(tmp_path):
    """DeBERTa's pooler is drawn anew in PEFT too, and not saved unless it is named: such a file is refused."""
    import transformers

    transformers.AutoModel.from_config(config_of("DebertaV2")).save_pretrained(tmp_path / "base")
    model = transformers.DebertaV2ForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    moved(model, tmp_path / "in", ["query_proj"], task_type="SEQ_CLS")
    said = r"neither .* nor the adapter in .* has pooler/bias, pooler/kernel, which would"
    with pytest.raises(UserError, match=said):
        import_peft(tmp_path / "in", with_head(tmp_path, 3))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, our base) of a toy with tied tables."""
    import transformers

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config_of("Llama")).save_pretrained(folder)
    return folder, load_base(BaseConfig(str(folder)))


def saved(llama, folder, resize=None, **options):
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(llama[0])
    if resize:
        model.resize_token_embeddings(resize, mean_resizing=False)
    return moved(model, folder, options.pop("targets", ["q_proj"]), **options)


def test_a_named_folder_in_torchs_format(llama, tmp_path):
    expected = outputs(saved(llama, tmp_path / "in", name="mine", safe=False))
    assert (tmp_path / "in" / "mine" / "adapter_model.bin").exists()
    base, adapter = import_peft(tmp_path / "in", llama[1])
    assert gap(ours(base, adapter), expected) < 1e-5
    shutil.copytree(tmp_path / "in" / "mine", tmp_path / "in" / "other")
    with pytest.raises(UserError, match=r"has several adapters, mine, other; name one's folder"):
        import_peft(tmp_path / "in", llama[1])
    base, adapter = import_peft(tmp_path / "in" / "other", llama[1])
    assert gap(ours(base, adapter), expected) < 1e-5


def test_every_program_loads_what_import_peft_does(llama, tmp_path):
    """A named folder with a larger vocabulary: generate and merge_adapter load it by `load_attached`."""
    expected = outputs(saved(llama, tmp_path / "in", name="mine", resize=43))
    base, plan, variables = load_attached(tmp_path / "in", llama[1])
    assert base.config.vocab_size == 43
    out = attach(base.model, plan)(jax.tree.map(jnp.asarray, variables), TOKENS)
    assert gap(np.asarray(out), expected) < 1e-5


def change(folder, config=(), tensors=dict):
    from safetensors.numpy import load_file, save_file

    file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    file.write_text(json.dumps({**json.loads(file.read_text()), **dict(config)}))
    save_file(tensors(load_file(weights)), weights)


def test_a_vocabulary_that_grew_without_its_embedding(llama, tmp_path, subwords):
    """Rows of a token, of an adapted table, of one of two tables; and a tokenizer with more ids: each in one line."""
    grown = r"the vocabulary has grown without its embedding; save the adapter again with save_embedding_layers=True"

    def refused(name, message):
        with pytest.raises(UserError, match=message + ".*" + grown) as error:
            import_peft(tmp_path / name, llama[1])
        assert "\n" not in str(error.value)

    saved(llama, tmp_path / "rows", trainable_token_indices=[3])
    change(tmp_path / "rows", {"trainable_token_indices": [41]})
    refused("rows", r"trainable_token_indices reaches 42 ids, and model.embed_tokens has 40")
    saved(llama, tmp_path / "adapted", resize=43, targets=["embed_tokens"])
    drop = lambda part: lambda held: {key: value for key, value in held.items() if part not in key}  # noqa: E731
    change(tmp_path / "adapted", tensors=drop("base_layer"))
    refused("adapted", r"embed_tokens.lora_embedding_A reaches 43 ids, and model.embed_tokens has 40")
    saved(llama, tmp_path / "one", resize=43)
    change(tmp_path / "one", tensors=drop("embed_tokens"))
    refused("one", r"model.embed_tokens with 40 rows and lm_head with 43 rows of this base of 40")
    saved(llama, tmp_path / "tokens")
    subwords.backend.save(str(tmp_path / "tokens" / "tokenizer.json"))
    (tmp_path / "tokens" / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    refused("tokens", r"the tokenizer in .*tokens has \d+ ids and the embedding 40 rows")


def test_rows_that_are_no_ids(llama, tmp_path):
    saved(llama, tmp_path, trainable_token_indices=[3])
    for spoiled in ([], [3, 3], [-1], ["a"], {"embed_tokens": 3}):
        change(tmp_path, {"trainable_token_indices": spoiled})
        with pytest.raises(UserError, match=r"trainable_token_indices has .*; it must be different ids of tokens"):
            import_peft(tmp_path, llama[1])


def test_tables_of_another_shape(llama, tmp_path):
    """Each is found before anything is computed with it."""
    table = "base_model.model.model.embed_tokens."
    saved(llama, tmp_path / "rows", trainable_token_indices=[3])
    saved(llama, tmp_path / "whole", modules_to_save=["embed_tokens"])
    for folder, key, shape in (
        ("rows", "token_adapter.trainable_tokens_delta", (2, 16)),
        ("rows", "token_adapter.trainable_tokens_delta", ()),
        ("whole", "weight", (40, 8)),
        ("whole", "weight", (40,)),
    ):
        change(tmp_path / folder, tensors=lambda held, key=key, shape=shape: {**held, table + key: np.ones(shape, "f")})
        with pytest.raises(
            UserError, match=r"embed_tokens\..* is \[.*\], and not \[(1|rows), 16\] as this base has it"
        ):
            import_peft(tmp_path / folder, llama[1])


def test_a_classifier_of_a_decoder_is_refused(llama, tmp_path):
    import transformers

    model = transformers.LlamaForSequenceClassification.from_pretrained(llama[0], num_labels=3)
    moved(model, tmp_path, ["q_proj"], task_type="SEQ_CLS")
    with pytest.raises(UserError, match=r"a sequence classifier, which is read for encoders alone; .* is a decoder"):
        import_peft(tmp_path, llama[1])
