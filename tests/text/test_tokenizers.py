"""Tokenizers: round trips, no automatic specials, pairs in the template, and vocabularies that do not fit."""

import json
import sys

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.text.tokenizers import (
    ByteTokenizer,
    SubwordTokenizer,
    check_vocabulary,
    encode_pair,
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


WORDS = ["a", "b", "c", "d"]
PAIRS = [("a b c d", "d c"), ("a", "b c d a b c d"), ("a b c d a b", "b c d a b c"), ("", "a"), ("a b", "")]


def pair_backend(kind):
    """A word-level tokenizer with the post-processor of an encoder's checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = {"bert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>"), "deberta": ("[CLS]", "[SEP]")}[kind]
    vocab = {word: i for i, word in enumerate([*marks, "<pad>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([*marks, "<pad>"])
    first, last = marks
    backend.post_processor = {
        "bert": processors.BertProcessing((last, 1), (first, 0)),
        "roberta": processors.RobertaProcessing((last, 1), (first, 0), add_prefix_space=False),
        "deberta": processors.TemplateProcessing(
            f"{first} $A {last}", f"{first} $A {last} $B:1 {last}:1", [(first, 0), (last, 1)]
        ),
    }[kind]
    return backend


def test_pairs_in_the_templates_of_encoders():
    bert, roberta = (SubwordTokenizer(pair_backend(kind)) for kind in ("bert", "roberta"))
    assert encode_pair(bert, "a b", "c", 16) == ([0, 3, 4, 1, 5, 1], [0, 0, 0, 0, 1, 1])
    assert encode_pair(roberta, "a b", "c", 16) == ([0, 3, 4, 1, 1, 5, 1], [0] * 7)
    for tokenizer in (bert, roberta):
        assert encode_pair(tokenizer, "a b", None, 16) == ([0, 3, 4, 1], [0] * 4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta"])
def test_pairs_are_cut_as_transformers_cuts_them(kind):
    from transformers import PreTrainedTokenizerFast

    tokenizer = SubwordTokenizer(pair_backend(kind))
    theirs = PreTrainedTokenizerFast(tokenizer_object=pair_backend(kind))
    first, second = map(list, zip(*PAIRS, strict=True))  # as lists: alone, an empty second text counts as none there
    for length in (6, 7, 8, 9, 12, 64):
        for texts in (second, None):
            expected = theirs(first, texts, truncation="longest_first", max_length=length, return_token_type_ids=True)
            made = tokenizer.encode_pairs(first, texts, length)
            assert [ids for ids, _ in made] == expected["input_ids"]
            assert [types for _, types in made] == expected["token_type_ids"]
        assert made == [encode_pair(tokenizer, text, None, length) for text in first]
    assert tokenizer.encode("a b c d a b") == [3, 4, 5, 6, 3, 4]  # the cut left the tokenizer as it was


def test_pairs_of_a_fetched_checkpoint():
    from transformers import AutoTokenizer

    from lowrank_jax.bases.locate import cache_folder

    folder = cache_folder("minilm-l6")
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("run: python scripts/fetch_weights.py minilm-l6")
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    first = ["The sailors rode the breeze clear of the rocks.", "naïve 日本語 🙂", "", '"Unbalanced, he said. ' * 20]
    second = ["It rained; they sailed.", "Xyzzyx [SEP] [MASK]", "unaffable", "a " * 30]
    for length in (8, 9, 16, 128):
        for pairs in (second, None):
            expected = theirs(first, pairs, truncation="longest_first", max_length=length)
            made = ours.encode_pairs(first, pairs, length)
            assert [ids for ids, _ in made] == expected["input_ids"]
            assert [types for _, types in made] == expected["token_type_ids"]


def test_pairs_without_a_template(subwords):
    tokenizer = ByteTokenizer()
    assert encode_pair(tokenizer, "ab", "c", 16) == ([256, 97, 98, 257, 99, 257], [0] * 6)
    assert encode_pair(tokenizer, "ab", None, 16) == ([256, 97, 98, 257], [0] * 4)
    assert encode_pair(tokenizer, "abcd", None, 4)[0] == [256, 97, 98, 257]
    ids, types = encode_pair(subwords, "the cat", "a fig", 64)
    assert ids == [0, *subwords.encode("the cat"), 1, *subwords.encode("a fig"), 1]
    assert types == [0] * len(ids)

    class Bare(ByteTokenizer):
        bos_id = eos_id = None

    assert encode_pair(Bare(), "ab", "c", 16)[0] == [97, 98, 99]


def test_pairs_without_a_template_are_cut_as_those_with_one():
    with_template = SubwordTokenizer(pair_backend("bert"))
    without = SubwordTokenizer(pair_backend("bert"), bos_id=0, eos_id=1)
    from tokenizers import processors

    without.backend.post_processor = processors.ByteLevel(trim_offsets=False)  # GPT-2's: adds nothing
    for length in range(5, 16):
        for pair in PAIRS:
            assert encode_pair(without, *pair, length)[0] == encode_pair(with_template, *pair, length)[0]


def test_a_length_without_room_is_refused():
    with pytest.raises(UserError, match="a length of 4 is too short for tokenizer 'bytes', which adds 3 special"):
        encode_pair(ByteTokenizer(), "a", "b", 4)
    tokenizer = SubwordTokenizer(pair_backend("roberta"), name="toy")
    with pytest.raises(UserError, match="tokenizer 'toy', which adds 4 special tokens; use at least 6"):
        encode_pair(tokenizer, "a", "b", 5)
    with pytest.raises(UserError, match="use at least 3"):
        encode_pair(tokenizer, "a", None, 2)
