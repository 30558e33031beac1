"""ROUGE-L and CIDEr of COCO's caption code, by pycocoevalcap, on Penn Treebank words."""

from lowrank_jax.metrics.texts.rows import Texts


def rouge_l(words: Texts) -> float:
    """Mean ROUGE-L, 0 to 1, of texts that `ptb.tokenize` has split; beta 1.2, best precision and recall of a row."""
    from pycocoevalcap.rouge.rouge import Rouge

    return float(Rouge().compute_score(*_by_row(words))[0])


def cider(words: Texts) -> float:
    """Mean CIDEr, 0 to 10, of texts that `ptb.tokenize` has split; an n-gram's weight comes from these references."""
    from pycocoevalcap.cider.cider import Cider

    return float(Cider().compute_score(*_by_row(words))[0])


def _by_row(words: Texts) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(words.references)), {row: [text] for row, text in enumerate(words.predictions)}
