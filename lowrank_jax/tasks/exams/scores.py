"""Scores exams: picked options, and written answers as lm-eval, PEFT, AdaptLLM and math-verify judge them."""

from collections.abc import Sequence

import numpy as np

from lowrank_jax.metrics.answers import convfinqa, gsm8k
from lowrank_jax.metrics.answers import stated as stating
from lowrank_jax.metrics.answers.verify import verify_all
from lowrank_jax.metrics.classification import weighted_f1
from lowrank_jax.metrics.entities import entities, entity_f1
from lowrank_jax.metrics.resampling import mean_interval, weighted_f1_interval

GSM8K, MATH, CONVFINQA, NER = "gsm8k", "math", "convfinqa", "ner"
JUDGED = (GSM8K, MATH)  # exams whose answers math-verify reads
WRITTEN = (*JUDGED, CONVFINQA, NER)  # exams that `score_texts` scores


def score_texts(task: str, predictions: Sequence[str], golds: Sequence[str], judged: bool = True) -> dict[str, float]:
    """Shares of right answers and their counts, over all questions.

    Args:
      task: the exam.
      predictions, golds: texts, and what they must come to.
      judged: whether math-verify is asked, of exams in JUDGED.

    Returns:
      "n"; with `judged` "math_verify", "math_verify_correct", and "given_up", answers that took too long to judge and
      count as wrong; of GSM8K "strict" and "flexible" (`metrics.answers.gsm8k`), "stated" (`metrics.answers.stated`)
      and their counts; of ConvFinQA "exact" (`metrics.answers.convfinqa`) and its count; of NER "entity_f1", the mean
      over texts (`metrics.entities`), with its 95% interval, "entity_f1_low" to "entity_f1_high"; "main", which is
      strict of GSM8K, exact of ConvFinQA, entity_f1 of NER, otherwise math_verify.

    Raises:
      UserError: math-verify is wanted and not installed.
    """
    found, right = {"n": float(len(golds))}, {}
    pairs = list(zip(predictions, golds, strict=True))
    if task == NER:
        each = [entity_f1(entities(said), entities(gold)) for said, gold in pairs]
        return found | _with_interval("entity_f1", float(np.mean(each)), mean_interval(each))
    if judged and task in JUDGED:
        verdicts = verify_all(golds, predictions)
        found["given_up"], right["math_verify"] = float(verdicts.given_up), verdicts.right
    if task == GSM8K:
        for name, find in (("strict", gsm8k.strict), ("flexible", gsm8k.flexible)):
            right[name] = [gsm8k.same(find(said), gold) for said, gold in pairs]
        right["stated"] = [stating.same(stating.stated(said), gold) for said, gold in pairs]
    if task == CONVFINQA:
        right["exact"] = [convfinqa.same(said, gold) for said, gold in pairs]
    for name, each in right.items():
        found |= {name: float(np.mean(each)), f"{name}_correct": float(np.sum(each))}
    main = {GSM8K: "strict", CONVFINQA: "exact"}.get(task, "math_verify")
    return found | ({"main": found[main]} if main in found else {})


def score_classes(picks: np.ndarray, answers: np.ndarray, groups: Sequence[str], classes: int) -> dict[str, float]:
    """The F1 of picked options, weighted by how often each option is right, as the mean over groups of rows.

    Args:
      picks, answers: indices of options [n]; a pick of `classes` stands for none.
      groups: the group of each row; groups are scored apart.
      classes: how many options there are.

    Returns:
      "weighted_f1", also as "main", with its 95% interval "weighted_f1_low" to "weighted_f1_high".
    """
    each = np.asarray(groups)
    parts = [(picks[each == one], answers[each == one]) for one in dict.fromkeys(groups)]
    score = float(np.mean([weighted_f1(*part, classes) for part in parts]))
    return _with_interval("weighted_f1", score, weighted_f1_interval(parts, classes))


def _with_interval(name: str, score: float, interval: tuple[float, float]) -> dict[str, float]:
    low, high = interval
    return {name: score, f"{name}_low": low, f"{name}_high": high, "main": score}
