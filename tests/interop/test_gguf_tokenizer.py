"""The tokenizer in a GGUF file: the same ids as the tokenizer it was written from."""

import json
import uuid

import pytest

from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.gguf.tokenizer import gguf_tokenizer
from lowrank_jax.interop.readers import open_checkpoint

TEXTS = [
    *(str(uuid.UUID(int=i * 0x1234567890ABCDEF1234567)) for i in range(20)),
    "The cat sat on the mat, and it's 1999 already!  Two  spaces.",
    "def f(x):\n\treturn x ** 2  # code\n\n",
    "naïve café 日本語 🙂 \u200b",
    " lead",
    "",
]


def written(subwords, path, **changes):
    """A GGUF file with no tensors and the tokenizer of `subwords` in its metadata."""
    import gguf

    state = json.loads(subwords.backend.to_str())
    vocab = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": vocab,
        "types": [3 if token in ("<s>", "</s>") else 1 for token in vocab],
        "merges": [" ".join(pair) for pair in state["model"]["merges"]],
        **changes,
    }
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    if fields["merges"]:
        writer.add_token_merges(fields["merges"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return open_checkpoint(path)


def test_same_ids_and_round_trip(subwords, tmp_path):
    rebuilt = gguf_tokenizer(written(subwords, tmp_path / "t.gguf"), "toy")
    assert rebuilt.vocab_size == subwords.vocab_size
    assert (rebuilt.bos_id, rebuilt.eos_id, rebuilt.pad_id) == (0, 1, 1)
    for text in TEXTS:
        assert rebuilt.encode(text) == subwords.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == text
    assert rebuilt.encode("the</s>")[-1] == 1
    assert rebuilt.decode([0, *rebuilt.encode("the"), 1]) == "the"


def test_digits_split_only_where_the_file_says_so(subwords, tmp_path):
    vocab = sorted(subwords.backend.get_vocab(), key=subwords.backend.get_vocab().get)
    changes = {"tokens": [*vocab, "12"], "types": [1] * (len(vocab) + 1), "merges": ["1 2"]}
    split = gguf_tokenizer(written(subwords, tmp_path / "a.gguf", **changes), "a")
    joined = gguf_tokenizer(written(subwords, tmp_path / "b.gguf", **changes, pre="gpt-2"), "b")
    assert len(split.encode("12")) == 2
    assert joined.encode("12") == [len(vocab)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert' is neither byte-level BPE"),
        ({"model": "llama"}, "no scores of its tokenizer's tokens"),
        ({"pre": "viking"}, "unknown pre-tokenizer 'viking' .known: gpt-2, "),
        ({"merges": None}, "no tokenizer merges"),
        ({"merges": ["zz qq"]}, "its tokenizer is inconsistent"),
        ({"types": [1, 1]}, "2 token types for"),
    ],
)
def test_tokenizers_that_are_refused(subwords, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        gguf_tokenizer(written(subwords, tmp_path / "t.gguf", **changes), "toy")
    assert "tokenizer.json next to the file" in str(error.value)
    assert "\n" not in str(error.value)


def test_vocabulary_larger_than_the_embedding(helpers, untied, tmp_path, subwords):
    def change(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([f"t{i}" for i in range(300)])
        writer.add_token_merges(["t1 t2"])

    path = helpers.gguf(untied, tmp_path / "toy.gguf", change=change)
    subwords.backend.save(str(tmp_path / "tokenizer.json"))  # beside the file: taken instead of the metadata
    with pytest.raises(UserError, match=f"has {subwords.vocab_size} ids but the model's vocabulary is 259"):
        load_base(BaseConfig(str(path)))
