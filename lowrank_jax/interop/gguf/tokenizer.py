"""Rebuilds the tokenizer in a GGUF file's metadata: byte-level BPE, or sentencepiece's BPE from its scores."""

import math
from collections.abc import Sequence
from typing import Any

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.interop.gguf.fields import flag, special_id, text, texts
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.gguf.settings import BYTE_LEVEL, PIECES, chat_template
from lowrank_jax.interop.gguf.splits import SPLITS, WHOLE_FIRST, pre_tokenizer
from lowrank_jax.text.tokenizers import SubwordTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # llama.cpp's token types
SPACE = "\u2581"  # sentencepiece's
LONGEST = 512  # most characters of a piece: every way of cutting it in two is tried
REMEDY = "put the base's tokenizer.json next to the file"


def gguf_tokenizer(reader: GGUFReader, name: str) -> SubwordTokenizer:
    """The tokenizer stored in a GGUF file.

    Args:
      reader: an opened GGUF file.
      name: for records and messages.

    Raises:
      UserError: the file's tokenizer is of another kind, splits text in a way that is unknown here, or is inconsistent;
        a tokenizer.json next to the file replaces it.
    """
    kind, tokens = text(reader, "tokenizer.ggml.model"), texts(reader, "tokenizer.ggml.tokens")
    if kind not in (BYTE_LEVEL, PIECES):
        raise UserError(
            f"{reader.path}: tokenizer model {kind!r} is neither byte-level BPE ({BYTE_LEVEL!r}) nor sentencepiece's "
            f"BPE ({PIECES!r}); {REMEDY}"
        )
    if not tokens:
        raise UserError(f"{reader.path} has no tokenizer tokens; {REMEDY}")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]  # as in llama.cpp
    unprefixed = kind == PIECES and not flag(reader, "tokenizer.ggml.add_space_prefix", True)
    if unprefixed:  # llama.cpp's converter writes runs of spaces as spaces, and sentencepiece as SPACE
        tokens = _respelled(tokens)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise UserError(f"{reader.path} has the token {twice[:40]!r} twice; {REMEDY}")
    types = _per_token(reader, "token_type", "token types", len(tokens)) or [NORMAL] * len(tokens)
    backend = (_pieces if kind == PIECES else _byte_level)(reader, vocab, types)
    _add_marked(backend, tokens, types, unprefixed)
    bos, eos, pad = (special_id(reader, part, len(tokens)) for part in ("bos", "eos", "padding"))
    return SubwordTokenizer(backend, bos, eos, pad, name, chat_template=chat_template(reader))


def _byte_level(reader: GGUFReader, vocab: dict[str, int], types: Sequence[Any]) -> Any:
    """Byte-level BPE by the file's merges."""
    from tokenizers import Tokenizer, decoders, models

    pre = text(reader, "tokenizer.ggml.pre") or "gpt-2"
    if pre not in SPLITS:
        raise UserError(f"{reader.path}: unknown pre-tokenizer {pre[:40]!r} (known: {', '.join(SPLITS)}); {REMEDY}")
    merges = texts(reader, "tokenizer.ggml.merges")
    if merges is None:
        raise UserError(f"{reader.path} has no tokenizer merges; {REMEDY}")
    if wrong := [merge for merge in merges if " " not in merge]:
        raise UserError(f"{reader.path}: its tokenizer is inconsistent (the merge {wrong[0][:40]!r}); {REMEDY}")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in WHOLE_FIRST))
    except Exception as error:  # the library raises plain Exception, e.g. for a merge of unknown tokens
        raise UserError(f"{reader.path}: its tokenizer is inconsistent ({one_line(error)}); {REMEDY}") from None
    backend.pre_tokenizer = pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pieces(reader: GGUFReader, vocab: dict[str, int], types: Sequence[Any]) -> Any:
    """Sentencepiece's BPE: neighbours are joined into the piece of the highest score; unknown characters become bytes.

    A text begins with a space unless the file says otherwise; as in llama.cpp, so does the text after a special token.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = _per_token(reader, "scores", "scores", len(vocab))
    if scores is None:
        raise UserError(f"{reader.path} has no scores of its tokenizer's tokens; {REMEDY}")
    if not all(isinstance(one, int | float) and math.isfinite(one) for one in scores):
        raise UserError(f"{reader.path}: a score of its tokenizer's tokens is no finite number; {REMEDY}")
    unknown = special_id(reader, "unknown", len(vocab))
    names = list(vocab)
    token = names[unknown] if unknown is not None else next((n for n in names if types[vocab[n]] == UNKNOWN), None)
    normal = {name: i for name, i in vocab.items() if types[i] == NORMAL}
    if long := [name for name in normal if len(name) > LONGEST]:
        raise UserError(f"{reader.path}: the token {long[0][:40]!r}... has over {LONGEST} characters; {REMEDY}")
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=_merges(normal, scores), unk_token=token, fuse_unk=True, byte_fallback=True)
    )
    prefixed = flag(reader, "tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return backend


def _merges(pieces: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """All pairs of pieces whose concatenation is a piece, by its score, the highest first."""
    found = []
    for name, i in pieces.items():
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in pieces and right in pieces:
                found.append((-scores[i], i, cut, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _respelled(tokens: list[str]) -> list[str]:
    """The tokens with SPACE instead of spaces, except those that would then be there twice."""
    held = set(tokens)
    return [new if " " in token and (new := token.replace(" ", SPACE)) not in held else token for token in tokens]


def _add_marked(backend: Any, tokens: Sequence[str], types: Sequence[Any], spelled: bool) -> None:
    """Adds the tokens that are found in a text before it is split: control tokens, and user-defined ones.

    Args:
      spelled: user-defined tokens are looked for after spaces have become SPACE.
    """
    from tokenizers import AddedToken

    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        marked = [token for token, type_ in zip(tokens, types, strict=True) if type_ == kind]
        control = kind == CONTROL
        add([AddedToken(token, normalized=spelled and not control, special=control) for token in marked])


def _per_token(reader: GGUFReader, field: str, name: str, count: int) -> list[Any] | None:
    found = reader.metadata.get(f"tokenizer.ggml.{field}")
    if found is not None and (not isinstance(found, list) or len(found) != count):
        held = len(found) if isinstance(found, list) else "no list of"
        raise UserError(f"{reader.path}: {held} {name} for {count} tokens; {REMEDY}")
    return found
