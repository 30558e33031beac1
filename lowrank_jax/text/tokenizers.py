"""Text to ids and back: bytes, subwords and sentencepiece, all without automatic special tokens."""

import copy
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.core.files import check_file, kind_of
from lowrank_jax.core.json_text import read_json
from lowrank_jax.text.byte_backend import MARKS, SETTINGS, byte_backend
from lowrank_jax.text.chat_files import read_template
from lowrank_jax.text.vocabulary_files import has_vocabulary, read_vocabulary

# sentencepiece's file: LLaMA-2's name for it and DeBERTa's -> the class of transformers that reads it
PIECE_FILES = {"tokenizer.model": "LlamaTokenizer", "spm.model": "DebertaV2Tokenizer"}
BYTE_CLASS = "ByteTokenizer"
# In tokenizer_config.json of a byte-level base; older ones have BYTE_CLASS as tokenizer_class, unknown to transformers.
BYTE_MARK = "lowrank_jax_tokenizer"

Encoding = tuple[list[int], list[int]]  # ids, types


class Tokenizer(Protocol):
    """The methods and fields that a tokenizer must have; special ids are None where the vocabulary has none."""

    name: str
    vocab_size: int
    chat_template: str | None  # Jinja, of the checkpoint

    @property
    def special_tokens(self) -> dict[str, int]:
        """Token -> id of the tokens that stand for no text, or for a text that is never split."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Begins a text."""
        ...

    @property
    def eos_id(self) -> int | None:
        """Ends a text."""
        ...

    @property
    def pad_id(self) -> int | None:
        """Fills a row."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS."""
        ...

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a text that contains the names of special tokens, as chat templates write them; nothing is added."""
        ...

    def encode_pairs(self, first: Sequence[str], second: Sequence[str] | None, max_len: int) -> list[Encoding]:
        """Ids and segment types of many texts or pairs, with the special tokens that the checkpoint was trained with.

        A tokenizer without a template gives BOS a EOS, or BOS a EOS b EOS (without the marks that it lacks), all of
        type 0. Pairs that are too long lose tokens at the end of the longer text first.

        Raises:
          UserError: `max_len` has no room for a token of each text.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special ids are dropped."""
        ...


def encode_pair(tokenizer: Tokenizer, a: str, b: str | None, max_len: int) -> Encoding:
    """`encode_pairs` of one text or pair."""
    return tokenizer.encode_pairs([a], None if b is None else [b], max_len)[0]


class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, then BOS 256, EOS 257, PAD 258."""

    name = "bytes"
    vocab_size = 259
    bos_id, eos_id, pad_id = 256, 257, 258

    def __init__(self, chat_template: str | None = None):
        self.chat_template = chat_template
        self.special_tokens = dict(zip(MARKS.values(), (self.bos_id, self.eos_id, self.pad_id), strict=True))

    def encode(self, text: str) -> list[int]:
        """UTF-8 bytes of the text; a lone surrogate (JSON can hold one) becomes '?'."""
        return list(text.encode("utf-8", errors="replace"))

    def encode_marked(self, text: str) -> list[int]:
        """UTF-8 bytes of the text, and BOS, EOS and PAD where their names stand."""
        return _encode_marked(self, text)

    def encode_pairs(self, first: Sequence[str], second: Sequence[str] | None, max_len: int) -> list[Encoding]:
        """BOS a EOS, or BOS a EOS b EOS, of type 0."""
        return _frame(self, first, second, max_len)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the bytes; special ids are dropped, invalid UTF-8 becomes U+FFFD.

        Raises:
          ValueError: an id is outside 0-258.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ValueError(f"ids outside 0-{self.vocab_size - 1}: {wrong[:5]}")
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")


class SubwordTokenizer:
    """A `tokenizers.Tokenizer` without its automatic specials, truncation and padding.

    Args:
      tokenizer: the library's tokenizer; its truncation and padding are switched off here.
      bos_id, eos_id, pad_id: special ids or None. Without a pad id the end id pads (padding is never scored).
      name: for records and messages.
      chat_template: the checkpoint's, if it has one.
    """

    def __init__(
        self,
        tokenizer: Any,
        bos_id: int | None = None,
        eos_id: int | None = None,
        pad_id: int | None = None,
        name: str = "subwords",
        chat_template: str | None = None,
    ):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.backend = tokenizer
        self.name, self.chat_template = name, chat_template
        # Ids may have gaps: the highest id counts, not the number of tokens.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id, self.eos_id = bos_id, eos_id
        self.pad_id = eos_id if pad_id is None else pad_id

    @property
    def special_tokens(self) -> dict[str, int]:
        """The tokens that were added to the vocabulary, and BOS and EOS."""
        found = {added.content: i for i, added in self.backend.get_added_tokens_decoder().items()}
        return {**found, **{self.backend.id_to_token(i): i for i in (self.bos_id, self.eos_id) if i is not None}}

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_marked(self, text: str) -> list[int]:
        """As `encode`: the library finds the special tokens in any text."""
        return self.encode(text)

    def encode_pairs(self, first: Sequence[str], second: Sequence[str] | None, max_len: int) -> list[Encoding]:
        """The backend's own template: [CLS] a [SEP] b [SEP] of types 0 and 1 for BERT; without one, BOS a EOS b EOS."""
        specials = self.backend.num_special_tokens_to_add(is_pair=second is not None)
        if not specials:
            return _frame(self, first, second, max_len)
        _check_room(self.name, specials, second, max_len)
        backend = copy.deepcopy(self.backend)  # truncation is a setting of the backend
        backend.enable_truncation(max_len, strategy="longest_first")
        texts = first if second is None else zip(first, second, strict=True)
        return [(row.ids, row.type_ids) for row in backend.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; special tokens are dropped."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=True)


class SentencePieceTokenizer:
    """A sentencepiece model (LLaMA-2's and DeBERTa's own files); needs the sentencepiece package."""

    def __init__(self, path: str | Path, chat_template: str | None = None):
        try:
            import sentencepiece
        except ImportError:
            raise UserError(
                f"{path} needs the sentencepiece package (pip install sentencepiece), or a tokenizer.json next to it"
            ) from None
        self.path = check_file(path)
        self.name, self.chat_template = self.path.parent.name, chat_template
        try:
            self.backend = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{path} is not a sentencepiece model ({one_line(error)})") from None
        self.vocab_size = self.backend.vocab_size()
        ids = self.backend.bos_id(), self.backend.eos_id(), self.backend.pad_id()
        self.bos_id, self.eos_id, pad = (i if i >= 0 else None for i in ids)
        self.pad_id = self.eos_id if pad is None else pad
        # User-defined pieces are found in any text by the library itself, and are no control pieces.
        control = [i for i in range(self.vocab_size) if self.backend.is_control(i)]
        self.special_tokens = {self.backend.id_to_piece(i): i for i in control}

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS."""
        return self.backend.encode(text)

    def encode_marked(self, text: str) -> list[int]:
        """Ids of the text, and control tokens where their names stand; each text between them begins with a space."""
        return _encode_marked(self, text)

    def encode_pairs(self, first: Sequence[str], second: Sequence[str] | None, max_len: int) -> list[Encoding]:
        """BOS a EOS, or BOS a EOS b EOS, of type 0."""
        return _frame(self, first, second, max_len)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids; control tokens are dropped."""
        return self.backend.decode([int(i) for i in ids])


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder.

    The byte tokenizer by its name; otherwise the first of tokenizer.json, vocab.json with merges.txt, vocab.txt and
    sentencepiece's file.

    Raises:
      UserError: none is there, a file is damaged, or sentencepiece is needed and absent.
    """
    folder = Path(folder)
    settings = _settings(folder)
    template = read_template(folder, settings)
    if BYTE_CLASS in (settings.get(BYTE_MARK), settings.get("tokenizer_class")):
        return ByteTokenizer(template)
    if kind_of(folder / "tokenizer.json") is not None:
        return _subwords(_read_json(folder / "tokenizer.json"), folder, settings, template)
    if has_vocabulary(folder):
        return _subwords(read_vocabulary(folder, settings), folder, settings, template)
    for name in PIECE_FILES:
        if kind_of(folder / name) is not None:
            return SentencePieceTokenizer(folder / name, template)
    raise UserError(
        f"{folder} has no tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model; "
        "copy the base's tokenizer files into it"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has any tokenizer file, be it only one of settings."""
    files = ("tokenizer.json", "tokenizer_config.json", *PIECE_FILES)
    return any(kind_of(folder / file) is not None for file in files) or has_vocabulary(folder)


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Writes what `load_tokenizer` and transformers read back.

    Raises:
      UserError: a tokenizer of another kind.
    """
    for name, content in tokenizer_files(tokenizer).items():
        (Path(folder) / name).write_bytes(content)


def tokenizer_files(tokenizer: Tokenizer, **settings: Any) -> dict[str, bytes]:
    """{file name: content} of the files that `save_tokenizer` writes.

    Args:
      settings: further entries of tokenizer_config.json; the tokenizer's override them.

    Raises:
      UserError: a tokenizer of another kind.
    """
    if isinstance(tokenizer, ByteTokenizer):
        own = {BYTE_MARK: BYTE_CLASS, "tokenizer_class": "PreTrainedTokenizerFast", **SETTINGS}
        files = {"tokenizer.json": byte_backend().to_str(pretty=True).encode()}
    elif isinstance(tokenizer, SubwordTokenizer):
        ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        own = {name: tokenizer.backend.id_to_token(i) for name, i in ids.items() if i is not None}
        own["tokenizer_class"] = "PreTrainedTokenizerFast"
        files = {"tokenizer.json": tokenizer.backend.to_str(pretty=True).encode()}
    elif isinstance(tokenizer, SentencePieceTokenizer):
        own = {"tokenizer_class": PIECE_FILES.get(tokenizer.path.name, "LlamaTokenizer")}
        files = {tokenizer.path.name: tokenizer.path.read_bytes()}
    else:
        raise UserError(f"tokenizer {tokenizer.name!r} cannot be saved; copy its files into the weights' folder")
    if tokenizer.chat_template is not None and "chat_template" not in settings:
        own["chat_template"] = tokenizer.chat_template
    if "chat_template" in {**settings, **own}:
        own = reading_marks(own)
    text = json.dumps({**settings, **own}, indent=2, ensure_ascii=False) + "\n"
    return {**files, "tokenizer_config.json": text.encode()}


def reading_marks(settings: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json beside a chat template: transformers then reads a byte tokenizer's marks as ids.

    In training the template's marks are ids too. Without a template a mark is text (`byte_backend.SETTINGS`).
    """
    return {**settings, "split_special_tokens": False} if settings.get(BYTE_MARK) == BYTE_CLASS else settings


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuses a tokenizer with ids that the model's embedding does not have.

    Raises:
      UserError: the tokenizer's vocabulary is larger than the model's.
    """
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} ids but the model's vocabulary is {vocab_size}; "
            "the vocabulary has grown without its embedding: resize that and save the model again, or use the "
            "tokenizer that belongs to this base"
        )


def _frame(tokenizer: Tokenizer, first: Sequence[str], second: Sequence[str] | None, max_len: int) -> list[Encoding]:
    """BOS a EOS, or BOS a EOS b EOS, without the marks that the tokenizer lacks."""
    bos, eos = ([] if mark is None else [mark] for mark in (tokenizer.bos_id, tokenizer.eos_id))
    room = max_len - len(bos) - len(eos) * (1 if second is None else 2)
    _check_room(tokenizer.name, max_len - room, second, max_len)
    rows = []
    if second is None:
        rows = [[*bos, *tokenizer.encode(a)[:room], *eos] for a in first]
    else:
        for a, b in zip(map(tokenizer.encode, first), map(tokenizer.encode, second), strict=True):
            short = min(len(a), len(b), room // 2)  # what the shorter keeps; the longer takes the rest
            keep_a, keep_b = (short, room - short) if len(a) <= len(b) else (room - short, short)
            rows.append([*bos, *a[:keep_a], *eos, *b[:keep_b], *eos])
    return [(row, [0] * len(row)) for row in rows]


def _encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text whose special tokens get their ids, and the texts between these are encoded one by one."""
    marks = tokenizer.special_tokens
    pieces = re.split(f"({'|'.join(map(re.escape, sorted(marks, key=len, reverse=True)))})", text) if marks else [text]
    return [i for piece in pieces if piece for i in ([marks[piece]] if piece in marks else tokenizer.encode(piece))]


def decode_marked(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of the ids in which special tokens stand by their names, for a person to read."""
    names = {i: name for name, i in tokenizer.special_tokens.items()}
    runs = itertools.groupby(map(int, ids), key=names.get)
    return "".join(tokenizer.decode(run) if name is None else name * len([*run]) for name, run in runs)


def _check_room(name: str, specials: int, second: Any, max_len: int) -> None:
    needed = specials + (1 if second is None else 2)
    if max_len < needed:
        raise UserError(
            f"a length of {max_len} is too short for tokenizer {name!r}, which adds {specials} special tokens; "
            f"use at least {needed}"
        )


def _read_json(file: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    check_file(file)
    try:
        return Backend.from_file(str(file))
    except Exception as error:  # the library raises plain Exception for every fault of the file
        raise UserError(f"{file} cannot be read ({one_line(error)})") from None


def _subwords(backend: Any, folder: Path, settings: dict[str, Any], template: str | None) -> SubwordTokenizer:
    def special(name):
        token = settings.get(f"{name}_token")
        if isinstance(token, dict):  # older files write an AddedToken's fields
            token = token.get("content")
        if not isinstance(token, str | None):
            raise UserError(f"{folder / 'tokenizer_config.json'}: {name}_token {token!r} is no string")
        found = None if token is None else backend.token_to_id(token)
        if token is not None and found is None:
            raise UserError(f"{folder / 'tokenizer_config.json'}: {name}_token {token!r} is not in the vocabulary")
        return _id(settings, f"{name}_token_id", folder, backend) if token is None else found

    return SubwordTokenizer(backend, special("bos"), special("eos"), special("pad"), folder.name, template)


def _id(settings: dict[str, Any], name: str, folder: Path, backend: Any) -> int | None:
    """A special id of config.json; None where it has none, for which some files write a negative one."""
    number = settings.get(name)
    if isinstance(number, list):  # Llama-3 style: several end ids; the first is the text's end
        number = number[0] if number else None
    if number is None or (type(number) is int and number < 0):
        return None
    if type(number) is not int or number > max(backend.get_vocab(with_added_tokens=True).values()):
        raise UserError(f"{folder / 'config.json'}: {name} is {str(number)[:40]}, no id of the tokenizer; correct it")
    return number


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, and config.json's special ids where it names no tokens."""
    merged: dict[str, Any] = {}
    for name in ("config.json", "tokenizer_config.json"):
        if kind_of(folder / name) is None:
            continue
        found = read_json(folder / name, "copy the base's own file")
        if not isinstance(found, dict):
            raise UserError(f"{folder / name} is not a JSON object; copy the base's own file")
        merged.update({key: value for key, value in found.items() if value is not None})
    return merged
