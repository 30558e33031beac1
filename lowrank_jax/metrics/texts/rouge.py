"""ROUGE-1, ROUGE-2 and ROUGE-L of summaries, by rouge-score with its stemmer."""

import statistics

from lowrank_jax.metrics.texts.rows import Texts


def rouge(texts: Texts) -> dict[str, float]:
    """`rouge1`, `rouge2` and `rouge_l`, 0 to 1: mean over the rows of the F score, the best of a row's references."""
    from rouge_score.rouge_scorer import RougeScorer

    kinds = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL"}
    scorer = RougeScorer(list(kinds.values()), use_stemmer=True)
    rows = [scorer.score_multi(row, text) for text, row in zip(texts.predictions, texts.references, strict=True)]
    return {name: statistics.fmean(row[kind].fmeasure for row in rows) for name, kind in kinds.items()}
