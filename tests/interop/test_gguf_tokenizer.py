"""The tokenizer in a GGUF file: the same ids as the tokenizer it was written from."""

import json
import random
import uuid
from types import SimpleNamespace

import pytest

from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.prompts import Asked
from lowrank_jax.interop.gguf.settings import gguf_framed
from lowrank_jax.interop.gguf.splits import SPLITS, pre_tokenizer
from lowrank_jax.interop.gguf.tokenizer import gguf_tokenizer
from lowrank_jax.interop.readers import open_checkpoint
from lowrank_jax.text.tokenizers import load_tokenizer, save_tokenizer

TEXTS = [
    *(str(uuid.UUID(int=i * 0x1234567890ABCDEF1234567)) for i in range(20)),
    "The cat sat on the mat, and it's 1999 already!  Two  spaces.",
    "def f(x):\n\treturn x ** 2  # code\n\n",
    "naïve café 日本語 🙂 \u200b",
    " lead",
    "",
]


ALPHABET = [*"ab cXY.,!?\n\t 0123'-_()<>éß日本한🙂", "  ", " the ", "\r\n", "don't", "HTTPServer", "\u2581", "<tag>"]
RANDOM = random.Random(0)
MANY = [*TEXTS, *("".join(RANDOM.choices(ALPHABET, k=RANDOM.randrange(1, 40))) for _ in range(300))]


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
    for part, i in fields.get("ids", {"bos": 0, "eos": 1}).items():
        writer.add_uint32(f"tokenizer.ggml.{part}_token_id", i)
    for key, value in fields.get("more", {}).items():
        getattr(writer, f"add_{key}")(value)
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


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "gpt-2"])
def test_text_is_divided_as_by_transformers(subwords, tmp_path, pre):
    """transformers reads the same file."""
    from transformers import AutoTokenizer

    ours = gguf_tokenizer(written(subwords, tmp_path / "t.gguf", pre=pre), "toy")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="t.gguf")
    for text in MANY:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    # The toy has few merges: the pieces before them show more.
    for text in MANY:
        mine, other = (one.pre_tokenizer.pre_tokenize_str(text) for one in (ours.backend, theirs.backend_tokenizer))
        assert mine == other, text


def test_patterns_that_transformers_does_not_know():
    def pieces(pre, text):
        return [text[start:end] for _, (start, end) in pre_tokenizer(pre).pre_tokenize_str(text)]

    assert pieces("smollm", "in 1234") == ["in", " ", "1", "2", "3", "4"]
    assert pieces("deepseek-v3", "in 1234567 万岁abc\n\n") == ["in", " ", "123", "456", "7", " ", "万岁", "abc", "\n\n"]
    assert pieces("deepseek-coder", "x = 12\n\ny") == ["x", " = ", "1", "2", "\n", "\n", "y"]
    # Its class of punctuation, [:-~], has the ASCII letters, and its class of signs the quotation marks.
    split = ["a", " Ü", "n", "ï", " ", "12", " ", "‘", "b", "’", "\n", "万岁"]
    assert pieces("deepseek-llm", "a Ünï 12 ‘b’\n万岁") == split
    assert pieces("falcon", "a== 12345") == ["a", "==", " ", "123", "45"]
    assert pieces("default", "a== 12345") == ["a", "==", " ", "123", "45"]
    assert pieces("seed-coder", "x;\n12") == ["x", ";", "\n", "1", "2"]
    for pre in SPLITS:
        assert "".join(pieces(pre, "It's 1 text,  déjà\r\n vu!\n")) == "It's 1 text,  déjà\r\n vu!\n"


def test_a_whole_token_goes_before_the_merges(subwords, tmp_path):
    """LLaMA 3's tokens that no merges lead to; Qwen's merges alone count."""
    vocab = sorted(subwords.backend.get_vocab(), key=subwords.backend.get_vocab().get)
    changes = {"tokens": [*vocab, "xyz"], "types": [1] * (len(vocab) + 1), "merges": ["a t"]}
    whole = gguf_tokenizer(written(subwords, tmp_path / "a.gguf", **changes, pre="llama-bpe"), "a")
    merged = gguf_tokenizer(written(subwords, tmp_path / "b.gguf", **changes, pre="qwen2"), "b")
    assert whole.encode("xyz") == [len(vocab)]
    assert len(merged.encode("xyz")) == 3


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def pieces(request, tmp_path_factory):
    """(sentencepiece's own processor, whether it puts a space in front): a toy BPE with bytes and defined pieces."""
    import sentencepiece

    folder = tmp_path_factory.mktemp("pieces")
    (folder / "text.txt").write_text("the cat sat on the mat and ate a fig, then they thanked the other\n" * 5)
    sentencepiece.SentencePieceTrainer.train(
        input=folder / "text.txt", model_prefix=str(folder / "toy"), vocab_size=340, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=3,
        add_dummy_prefix=request.param, user_defined_symbols=[] if request.param else ["<tag>", "\n", "▁▁", "▁▁▁"],
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "toy.model")), request.param


def converted(pieces, **changes):
    """The metadata that llama.cpp's converter writes of a sentencepiece model."""
    ids = range(pieces.vocab_size())
    names = [pieces.id_to_piece(i) for i in ids]
    kinds = (pieces.is_unknown, pieces.is_control, pieces.is_unused, pieces.is_byte)
    types = [next((kind for kind, of in zip((2, 3, 5, 6), kinds, strict=True) if of(i)), 1) for i in ids]
    defined = {"<tag>", "\n", "▁▁", "▁▁▁"} & set(names)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [name.replace("▁", " ") if name in defined else name for name in names],
        "types": [4 if name in defined else kind for name, kind in zip(names, types, strict=True)],
        "merges": None,
        "ids": {"bos": 1, "eos": 2, "unknown": 0, "padding": 3},
        "more": {"token_scores": [pieces.get_score(i) for i in ids], **changes},
    }


def test_sentencepiece_ids(pieces, subwords, tmp_path):
    processor, prefix = pieces
    ours = gguf_tokenizer(written(subwords, tmp_path / "t.gguf", **converted(processor, add_space_prefix=prefix)), "t")
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size) == (1, 2, 3, processor.vocab_size())
    lengths = set()
    for text in MANY:
        assert ours.encode(text) == processor.encode(text), text
        assert ours.decode(ours.encode(text)) == processor.decode(processor.encode(text)), text
        lengths.update(len(processor.id_to_piece(i)) for i in processor.encode(text))
    assert max(lengths) >= 4  # pieces of several merges
    assert ours.encode("the</s>")[-1] == 2


def test_the_template_the_marks_and_transformers_files(pieces, subwords, tmp_path):
    from transformers import AutoTokenizer

    processor, prefix = pieces
    template = "{{ bos_token }}{{ messages[0].content }}"
    more = {"add_space_prefix": prefix, "chat_template": template}
    reader = written(subwords, tmp_path / "t.gguf", **converted(processor, **more))
    tokenizer = gguf_tokenizer(reader, "t")
    assert tokenizer.chat_template == gguf_framed(tokenizer, reader).chat_template == template
    framed = gguf_framed(tokenizer, reader).backend.encode("the cat").ids
    assert framed == [1, *tokenizer.encode("the cat")]  # without add_bos_token, as in llama.cpp
    save_tokenizer(tokenizer, tmp_path)
    again, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in MANY:
        ids = tokenizer.encode(text)
        assert again.encode(text) == theirs.encode(text, add_special_tokens=False) == ids, text
        assert again.decode(ids) == tokenizer.decode(ids)
    off = written(subwords, tmp_path / "off.gguf", **converted(processor, **more, add_bos_token=False))
    assert gguf_framed(tokenizer, off) is tokenizer


def test_sentencepiece_that_is_refused(pieces, subwords, tmp_path):
    processor, _ = pieces
    good = converted(processor)
    scores, tokens = good["more"]["token_scores"], good["tokens"]
    cases = [
        ({"more": {"token_scores": scores[:-1]}}, f"{len(scores) - 1} scores for {len(tokens)} tokens"),
        ({"more": {"token_scores": [float("nan"), *scores[1:]]}}, "no finite number"),
        ({"tokens": [*tokens[:-1], tokens[9]]}, "the token .* twice"),
        ({"tokens": [*tokens[:-1], "a" * 5000]}, "has over 512 characters"),
        ({"ids": {"bos": len(tokens)}}, "bos_token_id is .*, no id of its"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(UserError, match=message) as error:
            gguf_tokenizer(written(subwords, tmp_path / f"{number}.gguf", **{**good, **changes}), "toy")
        assert "\n" not in str(error.value)
    none = {**good, "ids": {"bos": 2**32 - 1, "eos": 2}}  # llama.cpp's "none"
    assert gguf_tokenizer(written(subwords, tmp_path / "none.gguf", **none), "toy").bos_id is None


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


def test_texts_begin_as_the_file_says(helpers, untied, tmp_path):
    """Gemma and LLaMA begin every text with BOS; without it they write nonsense."""
    from experiments.generation.framing import make_framing
    from lowrank_jax.tasks.framing import PLAIN

    def framing(adds, **more):
        def change(writer):
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("gpt-2")
            writer.add_token_list(["<s>", *(chr(32 + i) for i in range(1, 90)), "th"])
            writer.add_token_merges(["t h"])
            writer.add_bos_token_id(0)
            writer.add_add_bos_token(adds)

        base = load_base(BaseConfig(str(helpers.gguf(untied, tmp_path / "toy.gguf", change=change))))
        model = SimpleNamespace(base=base, virtual=PLAIN, **more)
        return model.base.tokenizer, make_framing(model, "", None, "", messages=False)

    for adds in (True, False):
        tokenizer, found = framing(adds, task=None)
        assert found.ids(Asked("the")) == [0] * adds + tokenizer.encode("the")
    trained = SimpleNamespace(add_bos=False)  # a run's own framing stays
    assert framing(True, task=trained)[1].ids(Asked("the")) == tokenizer.encode("the")


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
