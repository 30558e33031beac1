"""Tokenizers: round trips, no automatic specials, and vocabularies that do not fit."""

import json
import sys

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.tokenizers import (
    ByteTokenizer,
    SubwordTokenizer,
    check_vocabulary,
    load_tokenizer,
    save_tokenizer,
)

TEXTS = ["", "plain", "naïve 日本語 🙂", "a\x00b\n\ttab", " lead and trail ", "9f1c-44"]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_round_trip(text):
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_bytes_drop_specials_and_mend_invalid_text():
    tokenizer = ByteTokenizer()
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, 258, 259)
    assert tokenizer.decode(np.array([256, 104, 105, 257, 258, 258])) == "hi"
    assert tokenizer.decode([0xE2, 0x82]) == "\ufffd"
    assert tokenizer.decode([0xFF, 104]) == "\ufffdh"
    assert tokenizer.encode("\ud800") == [ord("?")]
    with pytest.raises(ValueError, match="259"):
        tokenizer.decode([104, 259])


@pytest.mark.parametrize("text", TEXTS)
def test_subword_round_trip(subwords, text):
    assert subwords.decode(subwords.encode(text)) == text


def backend_with_specials():
    """A word-level tokenizer that by itself adds BOS and EOS, cuts at 3 and pads to 8."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(["<s>", "</s>", "<pad>", "a", "b", "c", "d"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<s>", "</s>", "<pad>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    backend.enable_truncation(3)
    backend.enable_padding(length=8, pad_id=2, pad_token="<pad>")
    return backend


def test_subwords_add_nothing_of_their_own():
    tokenizer = SubwordTokenizer(backend_with_specials(), bos_id=0, eos_id=1)
    assert tokenizer.encode("a b c d a b") == [3, 4, 5, 6, 3, 4]
    assert tokenizer.decode([0, 3, 4, 1, 2]) == "a b"
    assert tokenizer.pad_id == 1  # the end pads when there is no pad


def test_vocabulary_counts_the_highest_id():
    from tokenizers import Tokenizer, models

    tokenizer = SubwordTokenizer(Tokenizer(models.WordLevel({"a": 0, "b": 40}, unk_token="a")), name="holes")
    assert tokenizer.vocab_size == 41
    check_vocabulary(tokenizer, 41)
    with pytest.raises(UserError, match="'holes' has 41 ids but the model's vocabulary is 40"):
        check_vocabulary(tokenizer, 40)


@pytest.mark.parametrize("end", ["</s>", {"content": "</s>", "lstrip": False}])
def test_load_from_a_folder(tmp_path, end):
    backend_with_specials().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": end}))
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": 2, "eos_token_id": 5}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)  # the config's end id gives way
    assert tokenizer.encode("d c b a") == [6, 5, 4, 3]
    assert tokenizer.name == tmp_path.name


def test_several_end_ids_in_the_config(tmp_path):
    backend_with_specials().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert load_tokenizer(tmp_path).eos_id == 1


def test_save_and_load(tmp_path, subwords):
    save_tokenizer(subwords, tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.bos_id, again.eos_id, again.vocab_size) == (subwords.bos_id, subwords.eos_id, subwords.vocab_size)
    assert again.encode("the cat 12") == subwords.encode("the cat 12")

    (tmp_path / "bytes").mkdir()
    save_tokenizer(ByteTokenizer(), tmp_path / "bytes")
    assert isinstance(load_tokenizer(tmp_path / "bytes"), ByteTokenizer)


def test_faults_of_a_folder(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no tokenizer.json, vocab.json with .* or tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
    with pytest.raises(UserError, match="pip install sentencepiece"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(UserError, match=r"tokenizer.json cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    backend_with_specials().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    with pytest.raises(UserError, match="eos_token '<end>' is not in"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="is not a JSON object"):
        load_tokenizer(tmp_path)
