"""Answers to mathematical questions: lm-eval's filters, math-verify's verdicts, and answers that are given up on."""

import json
from pathlib import Path

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.answers import gsm8k, verify
from lowrank_jax.metrics.interval import wilson

# gsm8k_filters: gold, answer, the strict filter and its verdict, the flexible one and its verdict, by lm-eval 0.4.13;
# math_verify: gold, answer, the verdict of math-verify 0.9.0 (those that took under 0.1 s, of 40).
GOLDEN = json.loads((Path(__file__).parent / "answers.json").read_text(encoding="utf-8"))
UNICODE = ("-3", "\N{MINUS SIGN}3")  # math-verify misses the minus, which is normalised here


def test_the_filters_are_lm_eval_s():
    for gold, answer, *wanted in GOLDEN["gsm8k_filters"]:
        strict, flexible = gsm8k.strict(answer), gsm8k.flexible(answer)
        found = [strict, gsm8k.same(strict, gold), flexible, gsm8k.same(flexible, gold)]
        assert found == wanted, (gold, answer)
    assert {row[3] for row in GOLDEN["gsm8k_filters"]} == {True, False}


def test_verdicts_are_math_verify_s():
    golds, answers, wanted = zip(*GOLDEN["math_verify"], strict=True)
    found = verify.verify_all(golds, answers)
    assert found.given_up == 0
    for gold, answer, right, said in zip(golds, answers, found.right, wanted, strict=True):
        assert right == (said or (gold, answer) == UNICODE), (gold, answer)
    assert {*wanted} == {True, False}
    assert UNICODE in zip(golds, answers, strict=True)


def test_an_answer_that_ends_the_judge_is_given_up_on(tmp_path, monkeypatch):
    """As one that takes too long: it counts as wrong, and another process judges the next."""
    program = tmp_path / "judge.py"
    program.write_text(
        "import json, sys\nprint(flush=True)\nfor line in sys.stdin:\n"
        "    gold, answer = json.loads(line)\n    if answer == 'end':\n        sys.exit()\n"
        "    print(json.dumps(gold == answer), flush=True)\n"
    )
    monkeypatch.setattr(verify, "PROGRAM", program)
    assert verify.verify_all(["1"] * 4, ["1", "end", "2", "1"]) == ([True, False, False, True], 1)
    program.write_text("import sys\nsys.exit(1)\n")
    with pytest.raises(UserError, match="math-verify cannot be started"):
        verify.verify_all(["1"], ["1"])


def test_wilson_s_interval():
    """By its definition, the roots p of (share - p)^2 = z^2 p (1 - p) / n; and at the ends."""
    for correct, n in ((3, 10), (9, 10), (250, 14042)):
        for edge in wilson(correct, n):
            assert (correct / n - edge) ** 2 == pytest.approx(1.959963984540054**2 * edge * (1 - edge) / n)
        assert wilson(correct, n)[0] < correct / n < wilson(correct, n)[1]
    for n in (3, 10, 1319):  # exactly, as a base with none right must lie within
        assert (wilson(0, n)[0], wilson(n, n)[1]) == (0, 1)
    for wrong in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="correct of"):
            wilson(*wrong)
