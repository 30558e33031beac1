"""NIST, the information that matching n-grams have, in both readings of the E2E challenge (Doddington, 2002)."""

import math
from collections import Counter
from collections.abc import Callable, Iterator

from lowrank_jax.metrics.texts.rows import Texts

ORDER = 5  # longest n-gram
PENALTY = math.log(0.5) / math.log(1.5) ** 2  # a prediction of 2/3 the references' length gets half the score


def nist(texts: Texts) -> dict[str, float]:
    """`nist`, of mteval-v13a, and `nist_python`, of `measure_scores.py -p`; both on its tokens in lower case.

        NIST = penalty(predicted words / reference words) * sum over n of (information of matches / n-grams predicted)
        information(w1..wn) = log2(count(w1..wn-1) / count(w1..wn)), counted in all references

    They differ in the length of the references, for mteval all their words divided by the mean number of references a
    row, otherwise the sum of each row's mean; and in short predictions, as the two BLEUs do (see `bleu.e2e`). nan
    where a count of n-grams is not positive over all rows.
    """
    words = _tokenizer()
    references = [[words(text) for text in row] for row in texts.references]
    predictions = [words(text) for text in texts.predictions]
    seen = Counter(gram for row in references for text in row for gram in _grams(text))
    seen[()] = sum(len(text) for row in references for text in row)

    information = [0.0] * (ORDER + 1)
    for prediction, row in zip(predictions, references, strict=True):
        most = Counter()
        for text in row:
            most |= Counter(_grams(text))
        for gram, count in (Counter(_grams(prediction)) & most).items():
            information[len(gram)] += count * math.log2(seen[gram[:-1]] / seen[gram])

    orders = range(1, ORDER + 1)
    lengths = [len(prediction) for prediction in predictions]
    mean_references = sum(len(row) for row in references) / len(references)
    counts = {n: max(1, sum(max(0, length - n + 1) for length in lengths)) for n in orders}
    perl = _penalty(sum(lengths) / (seen[()] / mean_references)) * math.fsum(information[n] / counts[n] for n in orders)

    lengths = [max(1, length) for length in lengths]
    counts = {n: sum(length - n + 1 for length in lengths) for n in orders}
    if min(counts.values()) <= 0:
        return {"nist": perl, "nist_python": math.nan}
    mean_lengths = math.fsum(sum(len(text) for text in row) / len(row) for row in references)
    python = _penalty(sum(lengths) / mean_lengths) * math.fsum(information[n] / counts[n] for n in orders)
    return {"nist": perl, "nist_python": python}


def _penalty(ratio: float) -> float:
    """exp(PENALTY log(ratio)^2) of predictions that are shorter than the references, otherwise 1."""
    return 1.0 if ratio >= 1 else 0.0 if ratio <= 0 else math.exp(PENALTY * math.log(ratio) ** 2)


def _grams(words: list[str]) -> Iterator[tuple[str, ...]]:
    for n in range(1, ORDER + 1):
        yield from zip(*(words[i:] for i in range(n)), strict=False)


def _tokenizer() -> Callable[[str], list[str]]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenizer = Tokenizer13a()
    return lambda text: tokenizer(text.lower()).split()
