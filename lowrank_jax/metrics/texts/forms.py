"""The two forms of a text that WebNLG's and DART's metrics read: LoRA's split lower case, and NLTK's words."""

import re

from lowrank_jax.metrics.texts.rows import Texts

PIECE = re.compile(r"\w+|[^\w\s]")


def split_lower(texts: Texts) -> Texts:
    """Lower case, and each character that is neither of a word nor a space apart."""

    def split(text: str) -> str:
        return " ".join(PIECE.findall(text.lower()))

    return Texts(
        [split(text) for text in texts.predictions],
        [[split(text) for text in row] for row in texts.references],
    )


def nltk_words(texts: Texts) -> Texts:
    """The words of NLTK's tokenizer, joined by spaces.

    Each text is tokenised as one sentence: of split text NLTK's finder of sentences, which needs data of its own to be
    downloaded, makes the same words.
    """
    from nltk.tokenize import word_tokenize

    def words(text: str) -> str:
        return " ".join(word_tokenize(text, preserve_line=True))

    return Texts(
        [words(text) for text in texts.predictions], [[words(text) for text in row] for row in texts.references]
    )
