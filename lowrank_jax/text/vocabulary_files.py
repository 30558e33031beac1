"""Subword tokenizers rebuilt from older checkpoints' files: vocab.json with merges.txt, or WordPiece's vocab.txt."""

from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.core.files import check_file, kind_of

BYTE_PAIRS = ("vocab.json", "merges.txt")  # GPT-2, RoBERTa
WORD_PIECES = "vocab.txt"  # BERT
# Tokens that stand for no text, in the vocabularies of these families; those that a vocabulary has are special.
SPECIAL = ("<|endoftext|>", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def has_vocabulary(folder: Path) -> bool:
    """Whether `read_vocabulary` finds its files."""
    return _has(folder, *BYTE_PAIRS) or _has(folder, WORD_PIECES)


def read_vocabulary(folder: Path, settings: dict[str, Any]) -> Any:
    """The `tokenizers.Tokenizer` of the folder's vocabulary files.

    Args:
      settings: of config.json and tokenizer_config.json; do_lower_case, strip_accents and tokenize_chinese_chars for
        WordPiece, add_prefix_space and model_type for byte pairs, with transformers' defaults.

    Raises:
      UserError: the files cannot be read.
    """
    read = _byte_pairs if _has(folder, *BYTE_PAIRS) else _word_pieces
    for name in BYTE_PAIRS if read is _byte_pairs else (WORD_PIECES,):
        check_file(folder / name)
    try:
        tokenizer = read(folder, settings)
    except Exception as error:  # the library raises plain Exception for every fault of the files
        raise UserError(
            f"{folder}'s vocabulary files cannot be read ({one_line(error)}); copy the base's own again"
        ) from None
    tokenizer.add_special_tokens([token for token in SPECIAL if tokenizer.token_to_id(token) is not None])
    return tokenizer


def _has(folder: Path, *names: str) -> bool:
    return all(kind_of(folder / name) is not None for name in names)


def _byte_pairs(folder: Path, settings: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.BPE.from_file(*(str(folder / name) for name in BYTE_PAIRS)))
    space = bool(settings.get("add_prefix_space", False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    if settings.get("model_type") == "roberta":  # GPT-2's template adds nothing
        first, last = ((token, _id(tokenizer, token)) for token in ("<s>", "</s>"))
        tokenizer.post_processor = processors.RobertaProcessing(last, first, add_prefix_space=space)
    return tokenizer


def _word_pieces(folder: Path, settings: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece.from_file(str(folder / WORD_PIECES), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    first, last = ((token, _id(tokenizer, token)) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.BertProcessing(last, first)
    return tokenizer


def _id(tokenizer: Any, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"no {token} in the vocabulary")
    return found
