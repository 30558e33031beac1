"""Rebuilds a byte-level BPE tokenizer from the metadata of a GGUF file."""

from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.tokenizers import SubwordTokenizer
from lowrank_jax.interop.readers import GGUFReader

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types


def _pre_tokenizers() -> dict[str, list[Any]]:
    """`tokenizer.ggml.pre` -> steps before the merges; ByteLevel holds GPT-2's pattern."""
    from tokenizers import pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return {"smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2], "gpt-2": [gpt2]}


def gguf_tokenizer(reader: GGUFReader, name: str) -> SubwordTokenizer:
    """The tokenizer stored in a GGUF file.

    Args:
      reader: an opened GGUF file.
      name: for records and messages.

    Raises:
      UserError: the file's tokenizer is no byte-level BPE, or splits text in a way that is unknown here; a
        tokenizer.json beside the file replaces it (see `sources`).
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    meta = reader.metadata
    remedy = "put the base's tokenizer.json beside the file"
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise UserError(f"{reader.path}: tokenizer model {kind!r} is not byte-level BPE ('gpt2'); {remedy}")
    known = _pre_tokenizers()
    if pre not in known:
        raise UserError(f"{reader.path}: unknown pre-tokenizer {pre!r} (known: {', '.join(known)}); {remedy}")
    tokens, merges = meta.get("tokenizer.ggml.tokens"), meta.get("tokenizer.ggml.merges")
    if not tokens or merges is None:
        raise UserError(f"{reader.path} has no tokenizer tokens and merges; {remedy}")

    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    try:
        backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    except Exception as error:  # the library raises plain Exception, e.g. for a merge of unknown tokens
        raise UserError(f"{reader.path}: its tokenizer is inconsistent ({error}); {remedy}") from None
    backend.pre_tokenizer = pre_tokenizers.Sequence(known[pre])
    backend.decoder = decoders.ByteLevel()
    types = meta.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{reader.path}: {len(types)} token types for {len(tokens)} tokens; {remedy}")
    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        add([AddedToken(token, normalized=False) for token, type_ in zip(tokens, types, strict=True) if type_ == kind])

    def special(part):
        return meta.get(f"tokenizer.ggml.{part}_token_id")

    return SubwordTokenizer(backend, special("bos"), special("eos"), special("padding"), name)
