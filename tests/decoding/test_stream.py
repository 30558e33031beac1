"""Text as it comes: whole characters, stop strings across tokens, end tokens, and the same text as in one piece."""

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.decoding.decoder import Decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.stream import Streamer
from lowrank_jax.decoding.text import END, LENGTH, STOP, UNKNOWN, WINDOW, Detokenizer, TextStream
from lowrank_jax.text.tokenizers import ByteTokenizer, SubwordTokenizer

TEXT = "naïve 你好, “quoted” 🙂👩‍👩‍👧 the cat sat; " * 4
BYTES = ByteTokenizer()


@pytest.fixture(scope="module", params=["bytes", "byte-level", "byte fallback"])
def tokenizer(request, subwords):
    """A token a byte; several bytes a token; and words whose spaces decode by their place, with bytes for the rest."""
    if request.param == "bytes":
        return BYTES
    if request.param == "byte-level":
        return subwords
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = [(f"<0x{byte:02X}>", -9.0) for byte in range(256)]
    words = [("<unk>", -20.0), ("▁the", -1.0), ("▁cat", -1.0), ("▁", -2.0), *((c, -3.0) for c in "satquoedniv,;")]
    backend = Tokenizer(models.Unigram([*words, *vocabulary], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return SubwordTokenizer(backend)


def pieces(tokenizer, ids, size):
    made = Detokenizer(tokenizer)
    return [made.push(ids[i : i + size], i + size >= len(ids)) for i in range(0, len(ids), size)]


@pytest.mark.parametrize("size", [1, 3, 50])
def test_pieces_have_whole_characters_and_join_to_the_text(tokenizer, size):
    ids = tokenizer.encode(TEXT)
    assert len(ids) > WINDOW
    found = pieces(tokenizer, ids, size)
    assert "".join(found) == tokenizer.decode(ids) == TEXT
    assert not any(UNKNOWN in piece for piece in found)
    assert size > 1 or len([piece for piece in found if piece]) > len(TEXT) / 4


def test_what_is_no_character_is_shown_and_never_held_for_long():
    for ids, want in (
        ([240, 159, 146], UNKNOWN),  # cut short
        ([255] * 300, UNKNOWN * 300),
        ([104, 255, 105], f"h{UNKNOWN}i"),
        ([*"é".encode(), 195], f"é{UNKNOWN}"),
    ):
        assert "".join(pieces(BYTES, ids, 1)) == want == BYTES.decode(ids)
    made = Detokenizer(BYTES)
    assert sum(len(made.push([255])) for _ in range(50)) == 47


def test_a_window_of_tokens_is_decoded_not_the_whole_row(monkeypatch):
    lengths = []
    decode = ByteTokenizer.decode
    monkeypatch.setattr(ByteTokenizer, "decode", lambda self, ids: lengths.append(len(list(ids))) or decode(self, ids))
    pieces(BYTES, BYTES.encode(TEXT * 5), 1)
    assert max(lengths) <= WINDOW + 5


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize(
    ("text", "stops", "want", "ended"),
    [
        ("one two three", ["two"], "one ", STOP),
        ("one two three", ["three", "two"], "one ", STOP),
        ("one two three", ["o tt", "wt"], "one two three", LENGTH),
        ("aaab", ["aab"], "a", STOP),
        ("ends with a sto", ["stop"], "ends with a sto", LENGTH),
        ("naïve 你好 end", ["你好"], "naïve ", STOP),
        ("stop", ["stop"], "", STOP),
        ("no stops", [], "no stops", LENGTH),
    ],
)
def test_stop_strings_across_tokens(text, stops, want, ended, size):
    stream, ids, shown = TextStream(BYTES, (257,), stops), BYTES.encode(text), ""
    for i in range(0, len(ids), size):
        shown += stream.push(ids[i : i + size], i + size >= len(ids))
        assert shown in text
    assert (shown, stream.text, stream.ended) == (want, want, ended)


def test_the_end_token_ends_a_row_and_is_no_text():
    stream = TextStream(BYTES, (257, 258))
    assert stream.push([104, 105, 258, 33]) == "hi"
    assert (stream.ended, stream.tokens) == (END, 3)
    assert stream.push([33, 33], True) == ""
    held = TextStream(BYTES, (257,), ["hint"])
    assert [held.push([104, 105]), held.push([257])] == ["", "hi"]


def script(texts):
    """A decoder whose row b writes the bytes of texts[b]; its cache counts the steps that were taken."""
    width = max(len(text.encode()) for text in texts) + 1
    table = jnp.asarray([[*text.encode(), *[257] * (width - len(text.encode()))] for text in texts])

    def logits(cache):
        taken.append(1)
        return jax.nn.one_hot(jnp.take(table, jnp.minimum(cache["at"], width - 1), axis=1), 259) * 50.0

    def start(variables, tokens, mask, length):
        cache = {"at": jnp.int32(0)}
        return logits(cache), {"at": jnp.int32(1)}

    def step(variables, token, position, slots, cache):
        jax.debug.callback(lambda at: steps.append(int(at)), cache["at"])
        return logits(cache), {"at": cache["at"] + 1}

    taken, steps = [], []
    return Decoder(start, step), steps


def test_rows_stream_until_each_has_ended():
    texts = ["short", "a longer text with a STOP in it and more", "naïve 🙂"]
    decoder, steps = script([*texts, "x" * 60])
    streamer = Streamer(decoder, BYTES, 256, ["STOP"], chunk=4)
    shown, ends = ["", "", ""], {}
    for piece in streamer.stream({}, [[1], [2, 3], [4]], Limits(100, (257,)), [0, 1, 2], size=4):
        shown[piece.row] += piece.text
        ends[piece.row] = piece.stream.ended
    assert shown == ["short", "a longer text with a ", "naïve 🙂"]
    assert ends == {0: END, 1: STOP, 2: END}
    jax.effects_barrier()
    assert max(steps) < 32  # the loop ended with the last row, not after 100 steps; the filler had 60


def test_limits_of_length():
    decoder, _ = script(["abcdefgh"])
    streamer = Streamer(decoder, BYTES, 20, chunk=3)
    (*_, last) = streamer.stream({}, [[1] * 15], Limits(5, (257,)), [0])
    assert (last.stream.text, last.stream.ended, last.stream.tokens) == ("abcde", LENGTH, 5)
    with pytest.raises(UserError, match="15 tokens and 6 new ones exceed the model's 20 positions"):
        next(streamer.stream({}, [[1] * 15], Limits(6), [0]))
    with pytest.raises(UserError, match="a stop string is empty"):
        Streamer(decoder, BYTES, 20, [""])
