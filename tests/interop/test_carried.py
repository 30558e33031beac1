"""An export has the other files of its base's folder: transformers reads the same from both folders."""

import json
import shutil

import jax
import pytest
from late import torch

from lowrank_jax.bases import locate
from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.carried import carry
from lowrank_jax.interop.llama import config_to_hf

TEXTS = ["the cat sat on 12 mats", "<s>naïve 日本語 🙂</s><turn>", "  two  spaces\n"]
CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<turn>{% endfor %}"
SETTINGS = {
    **{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<turn>"},
    **{
        "padding_side": "left",
        "truncation_side": "left",
        "model_max_length": 77,
        "clean_up_tokenization_spaces": False,
    },
}
GENERATION = {"eos_token_id": [1, 400], "bos_token_id": 0, "temperature": 0.7, "do_sample": True, "max_new_tokens": 3}
FIELDS = {  # of config.json, which the Llama here makes nothing of
    **{"bos_token_id": 0, "eos_token_id": [1, 400], "pad_token_id": 400, "attention_dropout": 0.25, "use_cache": False},
    **{"initializer_range": 0.01, "our_house_field": {"deep": [1, 2]}, "layer_types": ["full_attention"] * 3},
}


@pytest.fixture(scope="module")
def folder(helpers, subwords, tmp_path_factory):
    """A Llama with a tokenizer and all other files that are carried over."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("whole")
    helpers.make(True, vocab_size=410).save_pretrained(folder)
    backend = Tokenizer.from_str(subwords.backend.to_str())
    backend.add_tokens(["<turn>"])
    backend.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {**SETTINGS, "chat_template": TEMPLATE})
    write(folder, "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<turn>"})
    write(folder, "generation_config.json", GENERATION)
    write(folder, "config.json", read(folder, "config.json") | FIELDS | {"auto_map": {"AutoModel": "code.Model"}})
    return folder


def write(folder, name, values):
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def exported(folder, to):
    base = load_base(BaseConfig(str(folder)))
    return export_params(
        base.params, base.config, to, tokenizer=base.tokenizer, carried=carry(base.path, base.tokenizer)
    )


def tokenizers(*folders):
    from transformers import AutoTokenizer

    return [AutoTokenizer.from_pretrained(folder) for folder in folders]


def same_tokenizer(one, other):
    for text in TEXTS:
        assert one.encode(text) == other.encode(text)
        assert one.decode(one.encode(text)) == other.decode(other.encode(text))
    for name in ("padding_side", "truncation_side", "model_max_length", "special_tokens_map", "chat_template"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.get_vocab() == other.get_vocab()


def test_a_local_folder(folder, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    out = exported(folder, tmp_path / "out")
    ours, theirs = tokenizers(out, folder)
    same_tokenizer(ours, theirs)
    assert ours.padding_side == "left"
    assert ours.apply_chat_template(CHAT, tokenize=False) == "<s>user: the cat<turn>assistant: sat<turn>"
    assert read(out, "generation_config.json") == GENERATION
    assert GenerationConfig.from_pretrained(out).eos_token_id == [1, 400]
    values = read(out, "config.json")
    assert {name: values[name] for name in FIELDS} == FIELDS
    assert "auto_map" not in values
    assert AutoConfig.from_pretrained(out).rope_parameters == AutoConfig.from_pretrained(folder).rope_parameters
    one, other = (AutoModelForCausalLM.from_pretrained(name).eval() for name in (out, folder))
    given = ours("the cat", return_tensors="pt")
    options = {"do_sample": False, "max_new_tokens": 4}
    assert torch.equal(one.generate(**given, **options), other.generate(**given, **options))
    assert load_base(BaseConfig(str(out))).config == load_base(BaseConfig(str(folder))).config


def test_chat_templates_in_files(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "in")
    write(source, "tokenizer_config.json", SETTINGS)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("tools: " + TEMPLATE)
    out = exported(source, tmp_path / "out")
    ours, theirs = tokenizers(out, source)
    same_tokenizer(ours, theirs)
    assert sorted(ours.chat_template) == ["default", "tool_use"]
    exported(folder, out)  # whose one template is inline: the files go
    same_tokenizer(*tokenizers(out, folder))


@pytest.mark.parametrize("kind", ["vocab", "added"])
def test_older_tokenizer_files(folder, subwords, tmp_path, kind):
    """vocab.json with merges.txt, and added_tokens.json, are copied unchanged."""
    source = shutil.copytree(folder, tmp_path / "in")
    if kind == "vocab":
        (source / "tokenizer.json").unlink()
        subwords.backend.model.save(str(source))
        write(source, "tokenizer_config.json", {**SETTINGS, "pad_token": "</s>"})
    write(source, "added_tokens.json", {"<turn>": 400})
    out = exported(source, tmp_path / "out")
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (out / file.name).read_bytes() == file.read_bytes()


def test_what_the_export_changes_is_its_own(folder, tmp_path):
    """dtype, tied head, quantisation and code of the base do not survive; the rotary base has one place."""
    base, carried = abstract_base(BaseConfig(str(folder))), carry(folder, None)
    old = {"dtype": "bfloat16", "torch_dtype": "bfloat16", "quantization_config": {"bits": 4}, "rope_theta": 1.0}
    old |= {"rope_parameters": {"rope_theta": 2.0}, "tie_word_embeddings": False, "architectures": ["Other"]}
    own = config_to_hf(base.config, "float16")
    carried.config.update(old)
    values = carried.config_with(own)
    assert {name: values[name] for name in own if name not in FIELDS} == {
        name: value for name, value in own.items() if name not in FIELDS
    }
    assert not {"dtype", "quantization_config"} & (values.keys() - own.keys())
    assert ("rope_parameters" in values) == ("rope_parameters" in own)


LABELS = {0: "ENTAILMENT", 1: "NEUTRAL", 2: "CONTRADICTION"}


@pytest.mark.parametrize("name", ["Bert", "Roberta", "DebertaV2"])
def test_a_classifier_keeps_its_labels(tmp_path, name):
    import transformers

    torch.manual_seed(0)
    shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)
    if name == "DebertaV2":
        shape |= dict(relative_attention=True, pos_att_type=["c2p"], position_biased_input=False, type_vocab_size=0)
    labels = dict(id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    config = getattr(transformers, f"{name}Config")(
        **shape, **labels, pad_token_id=1, problem_type="single_label_classification"
    )
    getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(tmp_path / "in")
    out = exported(tmp_path / "in", tmp_path / "out")
    read_back = transformers.AutoConfig.from_pretrained(out)
    assert (read_back.id2label, read_back.problem_type) == (LABELS, "single_label_classification")
    assert read_back.label2id == {v: k for k, v in LABELS.items()}
    for head, count in (("classification", 2), ("regression", 1)):  # another head: its own labels
        base = load_base(
            BaseConfig(str(tmp_path / "in"), head=head, num_labels=count, fresh=("head/.*",), unused=(".*",)),
            key=jax.random.key(0),
        )
        export_params(base.params, base.config, tmp_path / head, carried=carry(base.path, None))
        values = read(tmp_path / head, "config.json")
        assert (len(values["id2label"]), values["id2label"]["0"]) == (count, "LABEL_0")
        assert load_base(BaseConfig(str(tmp_path / head))).config == base.config


def test_labels_beside_another_head(folder):
    """A causal model has no weights for them, and keeps them as they are."""
    own = config_to_hf(abstract_base(BaseConfig(str(folder))).config, "float32")
    carried = carry(folder, None)
    carried.config.update({"id2label": {str(i): name for i, name in LABELS.items()}})
    assert carried.config_with(own)["id2label"] == {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"}


def gguf_with_a_tokenizer(helpers, subwords, path, template=TEMPLATE, end=None):
    """A Llama as GGUF, with the tokenizer, chat templates and several ends in its metadata."""
    state = json.loads(subwords.backend.to_str())
    vocab = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)

    def change(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([*vocab, "<turn>", "<more>"])
        writer.add_token_types([*(3 if token in ("<s>", "</s>") else 1 for token in vocab), 3, 3])
        writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_pad_token_id(len(vocab) + 1)
        writer.add_eot_token_id(end or len(vocab))
        writer.add_add_bos_token(True)
        writer.add_chat_template(template)
        writer.add_sampling_temp(0.7)
        writer.add_sampling_top_k(20)

    return helpers.gguf(helpers.make(True, vocab_size=410), path, change=change), len(vocab)


def test_a_gguf_file(helpers, subwords, tmp_path):
    from transformers import GenerationConfig

    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools: " + TEMPLATE}]
    path, turn = gguf_with_a_tokenizer(helpers, subwords, tmp_path / "toy.gguf", named)
    out = exported(path, tmp_path / "out")
    (theirs,) = tokenizers(out)
    ours = load_base(BaseConfig(str(path))).tokenizer
    for text in TEXTS:
        assert theirs.encode(text) == [0, *ours.encode(text)]  # add_bos_token
        assert theirs.decode(ours.encode(text), skip_special_tokens=True) == ours.decode(ours.encode(text))
    assert theirs.chat_template == {"default": TEMPLATE, "tool_use": "tools: " + TEMPLATE}
    assert theirs.model_max_length == 128
    assert theirs.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<more>"}
    values = read(out, "config.json")
    assert (values["bos_token_id"], values["eos_token_id"], values["pad_token_id"]) == (0, [1, turn], turn + 1)
    generation = GenerationConfig.from_pretrained(out)
    assert (generation.eos_token_id, generation.temperature, generation.top_k) == ([1, turn], 0.7, 20)


def test_one_end_of_a_gguf_is_a_number(helpers, subwords, tmp_path):
    path, _ = gguf_with_a_tokenizer(helpers, subwords, tmp_path / "toy.gguf", end=1)
    carried = carry(path, load_base(BaseConfig(str(path))).tokenizer)
    assert carried.config["eos_token_id"] == 1
    assert json.loads(carried.files["tokenizer_config.json"])["chat_template"] == TEMPLATE


def test_files_beside_a_gguf_go_first(helpers, subwords, tmp_path, folder):
    path, _ = gguf_with_a_tokenizer(helpers, subwords, tmp_path / "toy.gguf", "of the file")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(folder / name, tmp_path)
    out = exported(path, tmp_path / "out")
    ours, theirs = tokenizers(out, tmp_path)
    assert (ours.chat_template, ours.model_max_length) == (theirs.chat_template, 77)
    assert read(out, "generation_config.json") == GENERATION


def test_a_hub_snapshot_brings_them_along():
    from huggingface_hub.utils import filter_repo_objects

    wanted = [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"),
        *("chat_template.jinja", "additional_chat_templates/tool_use.jinja", "special_tokens_map.json"),
    ]
    others = [
        *("original/params.json", "original/tokenizer.model", "onnx/config.json", "onnx/model.safetensors"),
        *("README.md", "code.py", "tokenizer/vocab.txt", "prompts/other.jinja", "model.onnx"),
    ]
    patterns = {"allow_patterns": [*locate.CONFIG_FILES, "*.safetensors"], "ignore_patterns": [*locate.NESTED]}
    assert list(filter_repo_objects(wanted + others, **patterns)) == wanted


def test_a_hub_base_and_a_single_file(monkeypatch, folder):
    """A snapshot in the Hub's cache; a weights file with other files next to it."""
    monkeypatch.setattr(locate, "_download", lambda *_: folder)
    for name in ("org/toy", str(folder / "model.safetensors")):
        base = abstract_base(BaseConfig(name))
        carried = carry(base.path, base.tokenizer)
        assert json.loads(carried.files["generation_config.json"]) == GENERATION
        assert json.loads(carried.files["tokenizer_config.json"])["chat_template"] == TEMPLATE


def test_a_base_that_is_gone(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        carry(tmp_path / "nowhere", None)


def test_a_random_base_has_its_tokenizer():
    base = abstract_base(BaseConfig("toy-llama", random_init=True))
    carried = carry(base.path, base.tokenizer)
    assert sorted(carried.files) == ["tokenizer.json", "tokenizer_config.json"]
    assert carried.config == {}
