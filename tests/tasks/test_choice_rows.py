"""Prompts with candidates as ids: where completions start, what is cut, and rows that are refused by their place."""

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.choice_rows import Question, candidate_arrays, encode_questions
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
GOOD = Question("the cat:", (" sat", " ate a fig"), 1)


def encode(*questions, seq_len=32, tokenizer=BYTES, **how):
    return encode_questions(tokenizer, questions, seq_len, name="set", place=lambda at: f"set, row {at + 7}", **how)


@pytest.mark.parametrize("kind", ["bytes", "subwords"])
def test_a_prompt_s_ids_are_those_of_decoding(kind, subwords):
    tokenizer = BYTES if kind == "bytes" else subwords
    rows = encode(GOOD, Question("a mat:", (" the", " mat"), 0), tokenizer=tokenizer).rows
    assert rows.answers.tolist() == [1, 0]
    for row, question in zip((rows[0], rows[1]), (GOOD, Question("a mat:", (" the", " mat"), 0)), strict=True):
        for one, text in zip(row, question.candidates, strict=True):
            assert one.tokens[: one.start].tolist() == tokenizer.encode(question.prompt)
            assert tokenizer.decode(one.tokens[one.start :].tolist()) == text
            assert one.size == len(text.strip())
    assert rows.lengths.tolist() == [max(len(one.tokens) for one in rows[at]) for at in range(2)]
    (right,) = encode(GOOD, tokenizer=tokenizer, right_alone=True).rows[0]
    np.testing.assert_array_equal(right.tokens, rows[0][1].tokens)


def test_arrays_have_the_targets_of_every_candidate():
    rows = encode(GOOD).rows
    made = candidate_arrays(rows[0], 3, rows.most, 258)
    assert {name: value.shape for name, value in made.items()} == {
        "tokens": (18, 3), "targets": (3, 10), "starts": (3,), "counts": (3,), "sizes": (3,),
    }  # fmt: skip
    assert made["counts"].tolist() == [4, 10, 0]
    assert bytes(made["targets"][0, :4].tolist()) == b" sat"
    assert made["tokens"][12:, 0].tolist() == [258] * 6


@pytest.mark.parametrize("bos", [False, True])
def test_a_long_prompt_loses_its_beginning_and_no_completion(bos):
    found = encode(GOOD, seq_len=16, truncate=True, add_bos=bos)
    short, long = found.rows[0]
    text, first = b"the cat: ate a fig", [BYTES.bos_id] * bos
    assert long.tokens.tolist() == [*first, *text[-16 + bos :]]
    assert bytes(long.tokens[long.start :].tolist()) == b" ate a fig"
    assert short.tokens.tolist() == [*first, *b"the cat: sat"]  # it fits
    assert f"{2 + bos} of {18 + bos} tokens are lost" in str(found.note)
    assert encode(GOOD).note is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (Question("", (" a", " b"), 0), "the prompt is empty"),
        (Question("p", (" a", " "), 0), "candidate 2 of 2 is empty"),
        (Question("p", (" a",), 0), "has 1 candidate"),
        (Question("p", (" a", " b"), 2), "the right candidate is number 3 of 2, which the row lacks"),
        (Question("p", (" a", " b"), -1), "the right candidate is number 0 of 2"),
        (Question("x" * 30, (" yes", " no"), 0), r"has 34 tokens with ' yes', and task\.seq_len is 32; raise it"),
    ],
)
def test_a_bad_row_is_named(row, said):
    with pytest.raises(UserError, match=rf"^set, row 8: {said}"):
        encode(GOOD, row)


def test_a_completion_that_leaves_no_prompt_is_refused_even_when_cutting():
    with pytest.raises(UserError, match=r"^set, row 7: has 41 tokens"):
        encode(Question("p", (" " + "y" * 39, " no"), 0), truncate=True)
