"""The byte tokenizer as transformers loads it: the ids and texts of our own, on any text and any ids."""

import random

import pytest

from lowrank_jax.text.tokenizers import ByteTokenizer, load_tokenizer, save_tokenizer

OURS = ByteTokenizer()
TEXTS = [
    *(
        "",
        " lead and trail ",
        "a\x00b\n\ttab\r\n\r\n",
        "naïve café",
        "日本語 🙂\u200d \u2028 \ufeff",
        "İ ǅ ﬁ",
        "1999 it's",
    ),
    *("<|eos|>", "a <|bos|><|pad|> b", "</s> [PAD] <0x41>", "x" * 600, "\U0010ffff\ufffd\x7f\x80\xa0\xad"),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bytes")
    save_tokenizer(OURS, folder)
    assert isinstance(load_tokenizer(folder), ByteTokenizer)
    return AutoTokenizer.from_pretrained(folder)


def random_texts():
    rng = random.Random(0)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(30))) for _ in range(300)]


def test_the_special_ids(theirs):
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (256, 257, 258)
    assert len(theirs) == OURS.vocab_size
    assert theirs.decode([256, 104, 105, 257]) == "<|bos|>hi<|eos|>"


@pytest.mark.parametrize("texts", [TEXTS, random_texts()], ids=["chosen", "random"])
def test_texts_have_our_ids(theirs, texts):
    """Even a text that spells a mark."""
    for text in texts:
        ids = OURS.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text


def test_any_bytes_have_our_text(theirs):
    """Invalid UTF-8 too: surrogates, overlong forms, sequences that break off."""
    rng = random.Random(1)
    odd = [0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x99, 0xED, 0xA0, 0x80, 0xC0, 0xC1, 0xF4, 0x90, 0xFF, 0x41]
    for pool in (range(259), odd):
        for _ in range(300):
            ids = rng.choices(pool, k=rng.randrange(20))
            assert theirs.decode(ids, skip_special_tokens=True) == OURS.decode(ids)


def test_folders_of_earlier_exports_still_load(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByteTokenizer"}')
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
