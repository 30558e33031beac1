"""The folder that scripts/merge_adapter.py writes: its base's files, but for what the adapter brings along."""

import json

import numpy as np
import pytest
from late import torch
from toys import moved_peft

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's of saved embeddings and tied weights
SHAPE = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.3)
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
OURS = {"dtype", "torch_dtype", "transformers_version"}  # fields of config.json that an export decides


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("merge_adapter")


def tokenizer_into(folder, backend, **settings):
    backend.save(str(folder / "tokenizer.json"))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "padding_side": "left",
            **marks,
            **settings,
        },
        "special_tokens_map.json": marks,
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values))


@pytest.fixture(scope="module")
def base(tmp_path_factory, subwords):
    """A Llama's folder as its makers publish it: tokenizer, template, generation, ids, labels, fields of their own."""
    import transformers

    torch.manual_seed(0)
    folder, size = tmp_path_factory.mktemp("published"), subwords.backend.get_vocab_size()
    config = transformers.LlamaConfig(
        **SHAPE, vocab_size=size, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_into(folder, subwords.backend)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "added_tokens.json").write_text("{}")
    ends = {"eos_token_id": [1, 5], "pad_token_id": 1, "bos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps({**ends, "do_sample": True, "temperature": 0.7}))
    file = folder / "config.json"
    labels = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **ends, **labels, "attention_dropout": 0.5}))
    return folder


def moved(model, folder, **options):
    """PEFT's model with every trained leaf moved, saved into the folder."""
    import peft

    return moved_peft(model, peft.LoraConfig(r=2, lora_alpha=5, **options), folder, seed=1, by=0.2)


def outputs(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(tokens).long()).logits.numpy()


def same(one, other):
    assert one.shape == other.shape
    assert np.abs(one - other).max() < 1e-5 * np.abs(other).max()


def test_every_file_beside_the_weights_is_the_base_s(script, base, tmp_path):
    import transformers

    theirs = moved(transformers.LlamaForCausalLM.from_pretrained(base), tmp_path / "in", target_modules=["q_proj"])
    script.run(str(base), tmp_path / "in", tmp_path / "out", "bfloat16")
    read = lambda folder: {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".safetensors"}  # noqa: E731
    before, after = read(base), read(tmp_path / "out")
    configs = [json.loads(files.pop("config.json")) for files in (before, after)]
    assert after == before
    rotary = {"rope_parameters"}  # the same values under older names, which AutoConfig reads below
    old, new = ({name: value for name, value in config.items() if name not in OURS | rotary} for config in configs)
    assert {name: new.get(name) for name in old} == old
    loads = (transformers.AutoTokenizer, transformers.GenerationConfig, transformers.AutoConfig)
    for load in loads:
        one, other = (load.from_pretrained(folder) for folder in (tmp_path / "out", base))
        if load is transformers.AutoTokenizer:
            chat = [{"role": "user", "content": "hi"}]
            assert one("the cat sat") == other("the cat sat")
            assert one.apply_chat_template(chat, tokenize=False) == other.apply_chat_template(chat, tokenize=False)
            assert (one.special_tokens_map, one.padding_side) == (other.special_tokens_map, other.padding_side)
        else:
            assert {k: v for k, v in one.to_dict().items() if k not in OURS | {"_name_or_path"}} == {
                k: v for k, v in other.to_dict().items() if k not in OURS | {"_name_or_path"}
            }
    tokens = np.arange(12).reshape(2, 6)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    gap = np.abs(outputs(model, tokens) - outputs(theirs, tokens)).max()
    assert 0 < gap < 0.05 * np.abs(outputs(theirs, tokens)).max()  # written in bfloat16


def test_added_tokens_come_with_their_tokenizer(script, base, subwords, tmp_path):
    """Two tokens were added, and the tables padded to a multiple of 8: model and tokenizer are the adapter's."""
    import transformers
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(subwords.backend.to_str())
    backend.add_tokens(["<tool>", "</tool>"])
    model = transformers.LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(backend.get_vocab_size(), pad_to_multiple_of=8, mean_resizing=False)
    rows = model.config.vocab_size
    theirs = moved(model, tmp_path / "in", target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"])
    tokenizer_into(tmp_path / "in", backend, model_max_length=77)
    (tmp_path / "in" / "chat_template.jinja").write_text("<tool>" + TEMPLATE)
    assert script.main(["--base", str(base), "--adapter", str(tmp_path / "in"), "--to", str(tmp_path / "out")]) == 0
    out = tmp_path / "out"
    merged, tokenizer = (
        load.from_pretrained(out) for load in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    assert (merged.config.vocab_size, merged.config.tie_word_embeddings) == (rows, False)
    tokens = np.array([[3, rows - 1, 0, backend.token_to_id("<tool>")]])
    same(outputs(merged, tokens), outputs(theirs, tokens))
    assert tokenizer("<tool>")["input_ids"] == [backend.token_to_id("<tool>")]
    assert tokenizer.model_max_length == 77
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<tool>user: hi</s>"
    assert (out / "generation_config.json").read_bytes() == (base / "generation_config.json").read_bytes()


def test_a_classifier_of_a_plain_encoder(script, tmp_path, capsys):
    """Its head is in the adapter: without --head one line says what to give."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    auto = transformers.BertForSequenceClassification
    model = auto.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = moved(
        model, tmp_path / "in", target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["classifier", "pooler"]
    )
    words = ["--base", str(tmp_path / "base"), "--adapter", str(tmp_path / "in"), "--to", str(tmp_path / "out")]
    assert script.main(words) == 2
    assert "(merge_adapter: --head classification --num_labels 3)" in capsys.readouterr().err
    assert script.main([*words, "--head", "classification", "--num-labels", "3"]) == 0
    tokens = np.arange(2, 14).reshape(2, 6)
    same(outputs(auto.from_pretrained(tmp_path / "out"), tokens), outputs(theirs, tokens))


def test_an_embedding_adapted_beside_a_tied_head(script, base, tmp_path):
    """Merged, the two differ: the model gets an output layer of its own."""
    import transformers

    theirs = moved(
        transformers.LlamaForCausalLM.from_pretrained(base), tmp_path / "in", target_modules=["embed_tokens"]
    )
    script.run(str(base), tmp_path / "in", tmp_path / "out", "float32")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not merged.config.tie_word_embeddings
    tokens = np.arange(12).reshape(2, 6)
    same(outputs(merged, tokens), outputs(theirs, tokens))
