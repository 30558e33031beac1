"""Tokenizers of checkpoints without a tokenizer.json, against transformers on the same files."""

import json

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.text.tokenizers import (
    SentencePieceTokenizer,
    SubwordTokenizer,
    has_tokenizer,
    load_tokenizer,
    save_tokenizer,
)

CORPUS = ["the cat sat on the mat, and the dog sat on the log; naïve café 12 34"] * 8
TEXTS = ["", "the cat", "The CAT's mat, 123!", "  two  spaces\nand a line", "naïve café 日本語 🙂", "a log.on"]


@pytest.fixture
def byte_pairs(tmp_path):
    """A folder with vocab.json and merges.txt alone, as GPT-2's and RoBERTa's first files."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    tokenizer.train_from_iterator(CORPUS, 400, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(tmp_path))
    return tmp_path


@pytest.fixture
def word_pieces(tmp_path):
    """A folder with vocab.txt alone, as BERT's first files."""
    from tokenizers import BertWordPieceTokenizer

    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(CORPUS, 90, show_progress=False)
    tokenizer.save_model(str(tmp_path))
    return tmp_path


def theirs_encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check_pairs(ours, theirs):
    first, second = ["the cat", "a log"], ["the dog sat on the mat", "12"]
    for pairs in (second, None):
        expected = theirs(first, pairs, truncation="longest_first", max_length=12, return_token_type_ids=True)
        made = ours.encode_pairs(first, pairs, 12)
        assert [ids for ids, _ in made] == expected["input_ids"]
        assert [types for _, types in made] == expected["token_type_ids"]


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("GPT2Tokenizer", {"bos_token_id": 5, "eos_token_id": 5}),
        ("RobertaTokenizer", {"model_type": "roberta", "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}),
    ],
)
def test_byte_pairs_equal_transformers(byte_pairs, kind, ids):
    import transformers

    (byte_pairs / "config.json").write_text(json.dumps(ids))
    ours = load_tokenizer(byte_pairs)
    theirs = getattr(transformers, kind).from_pretrained(byte_pairs)
    for text in TEXTS:
        assert ours.encode(text) == theirs_encode(theirs, text)
        assert ours.decode(ours.encode(text)) == text
    assert (ours.bos_id, ours.eos_id) == (ids["bos_token_id"], ids["eos_token_id"])
    assert ours.pad_id == ids.get("pad_token_id", ours.eos_id)
    assert ours.vocab_size == 296
    assert ours.encode("the<mask>cat").count(4) == 1
    if kind == "RobertaTokenizer":
        check_pairs(ours, theirs)
    assert ours.decode([ours.bos_id, *ours.encode("the cat"), ours.eos_id, ours.pad_id]) == "the cat"


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_word_pieces_equal_transformers(word_pieces, settings):
    import transformers

    (word_pieces / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "[PAD]"}))
    ours, theirs = load_tokenizer(word_pieces), transformers.BertTokenizer.from_pretrained(word_pieces)
    for text in [*TEXTS, "the [MASK] sat"]:
        assert ours.encode(text) == theirs_encode(theirs, text)
    check_pairs(ours, theirs)
    assert (ours.pad_id, ours.bos_id, ours.eos_id) == (0, None, None)
    assert ours.decode([2, *ours.encode("the cat sat"), 3, 0]) == "the cat sat"


def test_what_was_rebuilt_is_saved_as_one_file(byte_pairs, tmp_path):
    ours = load_tokenizer(byte_pairs)
    (tmp_path / "out").mkdir()
    save_tokenizer(ours, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert isinstance(again, SubwordTokenizer)
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_tokenizer_json_comes_first(byte_pairs, subwords):
    save_tokenizer(subwords, byte_pairs)
    assert load_tokenizer(byte_pairs).vocab_size == subwords.vocab_size != 296


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "vocab.txt"])
def test_damaged_files(byte_pairs, name):
    if name == "vocab.txt":
        (byte_pairs / "merges.txt").unlink()
    (byte_pairs / name).write_bytes(b"\xff\xfe{")
    with pytest.raises(UserError, match="vocabulary files cannot be read") as error:
        load_tokenizer(byte_pairs)
    assert "\n" not in str(error.value)


def test_a_vocabulary_without_its_marks(word_pieces):
    vocabulary = (word_pieces / "vocab.txt").read_text().replace("[CLS]", "[CSL]")
    (word_pieces / "vocab.txt").write_text(vocabulary)
    with pytest.raises(UserError, match=r"no \[CLS\] in the vocabulary"):
        load_tokenizer(word_pieces)


def test_half_of_the_files_is_no_tokenizer(byte_pairs):
    assert has_tokenizer(byte_pairs)
    (byte_pairs / "merges.txt").unlink()
    assert not has_tokenizer(byte_pairs)
    with pytest.raises(UserError, match=r"vocab.json with merges.txt"):
        load_tokenizer(byte_pairs)


@pytest.mark.parametrize("name", ["tokenizer.model", "spm.model"])
def test_sentencepiece_equals_transformers(tmp_path, name):
    spm = pytest.importorskip("sentencepiece")
    import transformers

    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS))
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "toy"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "toy.model").rename(tmp_path / "model" / name)
    assert has_tokenizer(tmp_path / "model")
    ours = load_tokenizer(tmp_path / "model")
    assert isinstance(ours, SentencePieceTokenizer)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 2, 300)
    for text in TEXTS:
        assert ours.decode(ours.encode(text)) == text
    assert ours.decode([1, *ours.encode("the cat"), 2]) == "the cat"
    if name == "tokenizer.model":
        theirs = transformers.LlamaTokenizer.from_pretrained(tmp_path / "model")
        for text in TEXTS:
            if not text.startswith(" "):  # there transformers leaves out the space that sentencepiece puts in front
                assert ours.encode(text) == theirs_encode(theirs, text), text
    (tmp_path / "out").mkdir()
    save_tokenizer(ours, tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
