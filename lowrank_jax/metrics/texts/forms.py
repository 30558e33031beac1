"""Prepares texts as WebNLG's and DART's metrics read them: LoRA's lower case with split punctuation, NLTK's words."""

import re

from lowrank_jax.metrics.texts.rows import Texts

PIECE = re.compile(r"\w+|[^\w\s]")


def split_lower(texts: Texts) -> Texts:
    """The texts in lower case, with spaces around each character that is neither part of a word nor a space."""

    def split(text: str) -> str:
        return " ".join(PIECE.findall(text.lower()))

    return Texts(
        [split(text) for text in texts.predictions],
        [[split(text) for text in row] for row in texts.references],
    )


def nltk_words(texts: Texts) -> Texts:
    """The words of NLTK's tokenizer, joined by spaces.

    Each text is tokenised as one sentence. NLTK's division into sentences would need a download, and does not change
    the words of texts that `split_lower` has made.
    """
    from nltk.tokenize import word_tokenize

    def words(text: str) -> str:
        return " ".join(word_tokenize(text, preserve_line=True))

    return Texts(
        [words(text) for text in texts.predictions], [[words(text) for text in row] for row in texts.references]
    )
