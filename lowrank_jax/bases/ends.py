"""How a base begins and ends a text, by its files: several tokens may end one, such as one for texts, one for turns."""

from typing import Any

from lowrank_jax.bases.base import Base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.core.json_text import read_json
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.gguf.settings import gguf_config, gguf_framed
from lowrank_jax.interop.readers import open_checkpoint
from lowrank_jax.text.tokenizers import SubwordTokenizer, Tokenizer, has_tokenizer

FILES = ("generation_config.json", "config.json")
KEY = "eos_token_id"
SAID = "said"  # any text, to see what a tokenizer puts before it


def end_ids(base: Base) -> tuple[int, ...]:
    """The ids that end a text: of generation_config.json, otherwise config.json or the GGUF file, and the tokenizer's.

    Args:
      base: a loaded base; without files it has its tokenizer's alone.

    Raises:
      UserError: a file has something else there than an id or a list of ids.
    """
    found = []
    if base.path is not None:
        folder = base.path if base.path.is_dir() else base.path.parent
        for name in FILES:
            file = folder / name
            values = read_json(file, "copy the base's own file") if kind_of(file) is not None else {}
            if not found and isinstance(values, dict):
                found = _ids(values.get(KEY), f"{file}: {KEY}", base.config.vocab_size)
        if not found and isinstance(reader := open_checkpoint(base.path), GGUFReader):
            found = _ids(gguf_config(reader).get(KEY), f"{base.path}: {KEY}", base.config.vocab_size)
    own = None if base.tokenizer is None else base.tokenizer.eos_id
    return tuple(dict.fromkeys([*found, *([] if own is None else [own])]))


def framed_tokenizer(base: Base) -> Tokenizer | None:
    """The base's tokenizer with the marks that its files put around a text: a GGUF file has them in its metadata."""
    tokenizer = base.tokenizer
    if not isinstance(tokenizer, SubwordTokenizer) or base.path is None:
        return tokenizer
    if has_tokenizer(base.path if base.path.is_dir() else base.path.parent):
        return tokenizer  # its own tokenizer.json says it
    reader = open_checkpoint(base.path)
    return gguf_framed(tokenizer, reader) if isinstance(reader, GGUFReader) else tokenizer


def opening_ids(base: Base) -> tuple[int, ...]:
    """The ids that the base's tokenizer puts before a text by itself: BOS, or none."""
    tokenizer = framed_tokenizer(base)
    if isinstance(tokenizer, SubwordTokenizer):
        whole, plain = tokenizer.backend.encode(SAID).ids, tokenizer.encode(SAID)
        places = range(len(whole) - len(plain) + 1)
        return tuple(whole[: next((at for at in places if whole[at : at + len(plain)] == plain), 0)])
    piece = hasattr(tokenizer, "path")  # sentencepiece's models were trained with BOS
    return (tokenizer.bos_id,) if tokenizer is not None and piece and tokenizer.bos_id is not None else ()


def _ids(value: Any, where: str, vocabulary: int) -> list[int]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [one for one in ids if type(one) is not int or one >= vocabulary]:
        raise UserError(f"{where} has {str(wrong[0])[:40]}, no id below {vocabulary}; copy the base's own file")
    return [one for one in ids if one >= 0]  # some files write -1 for "none"
