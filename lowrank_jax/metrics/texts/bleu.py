"""BLEU in percent, by sacrebleu, as three official scripts count it."""

import math

from lowrank_jax.metrics.texts.rows import Texts, streams


def e2e(texts: Texts) -> dict[str, float]:
    """`bleu`, of mteval-v13a: lower case, all references of a row; and `bleu_python`, of `measure_scores.py -p`.

    They differ where a prediction is shorter than four words. mteval counts no n-grams in it; the other script counts
    len - n + 1 of them, which may be negative, and an empty prediction as one word. nan where such a count is not
    positive over all rows.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(lowercase=True, tokenize="13a", force=True)  # force: no warning of text in tokens
    found = metric.corpus_score(texts.predictions, streams(texts.references))
    rows = len(texts.predictions)
    length = found.sys_len + sum(not metric.tokenizer(text) for text in texts.predictions)
    counts = [length - n * rows for n in range(4)]
    if min(counts) <= 0:
        python = math.nan
    else:
        # 1e-15: the script's own stand-in for no match
        logs = [math.log(max(hits, 1e-15) / count) for hits, count in zip(found.counts, counts, strict=True)]
        python = 100 * math.exp(min(0.0, 1 - found.ref_len / length) + math.fsum(logs) / 4)
    return {"bleu": found.score, "bleu_python": python}


def multi_bleu(texts: Texts) -> float:
    """BLEU of Moses' multi-bleu-detok, which WebNLG's GenerationEval runs: no smoothing, and "" is a reference.

    An empty reference can be the nearest in length to a short prediction, which then has a lower brevity penalty.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(lowercase=False, tokenize="13a", smooth_method="none", force=True)
    return metric.corpus_score(texts.predictions, streams(texts.references)).score
