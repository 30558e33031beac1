"""Scores written answers of exams: lm-eval's filters and PEFT's reading of GSM8K's, and math-verify."""

from collections.abc import Sequence

import numpy as np

from lowrank_jax.metrics.answers import gsm8k
from lowrank_jax.metrics.answers import stated as stating
from lowrank_jax.metrics.answers.verify import verify_all

GSM8K = "gsm8k"


def score_texts(task: str, predictions: Sequence[str], golds: Sequence[str], judged: bool = True) -> dict[str, float]:
    """Shares of right answers and their counts, over all questions.

    Args:
      task: the exam.
      predictions, golds: texts, and what they must come to.
      judged: whether math-verify is asked.

    Returns:
      "n"; with `judged` "math_verify", "math_verify_correct", and "given_up", answers that took too long to judge and
      count as wrong; of GSM8K "strict" and "flexible" (`metrics.answers.gsm8k`), "stated" (`metrics.answers.stated`)
      and their counts; "main", which is strict of GSM8K, otherwise math_verify.

    Raises:
      UserError: math-verify is wanted and not installed.
    """
    found, right = {"n": float(len(golds))}, {}
    if judged:
        verdicts = verify_all(golds, predictions)
        found["given_up"], right["math_verify"] = float(verdicts.given_up), verdicts.right
    if task == GSM8K:
        for name, find in (("strict", gsm8k.strict), ("flexible", gsm8k.flexible)):
            pairs = zip(predictions, golds, strict=True)
            right[name] = [gsm8k.same(find(said), gold) for said, gold in pairs]
        right["stated"] = [
            stating.same(stating.stated(said), gold) for said, gold in zip(predictions, golds, strict=True)
        ]
    for name, each in right.items():
        found |= {name: float(np.mean(each)), f"{name}_correct": float(np.sum(each))}
    main = "strict" if "strict" in found else "math_verify"
    return found | ({"main": found[main]} if main in found else {})
