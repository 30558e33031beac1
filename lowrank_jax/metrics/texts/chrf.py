"""chrF++, the F score of characters' and words' n-grams, by sacrebleu as WebNLG's script has it."""

from lowrank_jax.metrics.texts.rows import Texts, streams


def chrf(texts: Texts) -> float:
    """chrF++ over all rows, 0 to 1: six orders of characters, two of words, beta 2; empty references do not count."""
    from sacrebleu.metrics.chrf import CHRF

    references = streams([[text for text in row if text] for row in texts.references])
    return CHRF(word_order=2, eps_smoothing=True).corpus_score(texts.predictions, references).score / 100
