"""Carries a base's other files and config fields over to a model that is exported from it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.files import kind_of, read_bytes
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.gguf.settings import gguf_config, gguf_framed, gguf_generation, gguf_settings
from lowrank_jax.interop.readers import open_checkpoint, read_json
from lowrank_jax.text.chat_files import JINJA, JSON
from lowrank_jax.text.tokenizers import (
    BYTE_CLASS,
    PIECE_FILES,
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    has_tokenizer,
    reading_marks,
    tokenizer_files,
)
from lowrank_jax.text.vocabulary_files import BYTE_PAIRS, WORD_PIECES

TEMPLATES = "additional_chat_templates"  # the folder where transformers keeps chat templates by name
SETTINGS, GENERATION = "tokenizer_config.json", "generation_config.json"
BESIDE = (JINJA, JSON, GENERATION)
TOKENIZER = ("tokenizer.json", SETTINGS, "special_tokens_map.json", "added_tokens.json", *BYTE_PAIRS, WORD_PIECES)
# Fields of config.json that are never taken from the base: types, quantisation, the rotary base in its old and new
# places, how the head is tied and its keys are spelled, and code. The export writes its own where it has any.
OURS = (
    *("architectures", "model_type", "dtype", "torch_dtype", "quantization_config", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "legacy", "auto_map"),
)
THEIRS = ("bos_token_id", "eos_token_id", "pad_token_id", "tokenizer_class")  # the export knows only one end id
LABELS = ("id2label", "label2id", "num_labels", "_num_labels")


@dataclasses.dataclass(frozen=True)
class Carried:
    """Files and config fields of the base that an export keeps unchanged.

    Attributes:
      files: {name in the folder: content}.
      config: the base's fields of config.json.
    """

    files: Mapping[str, bytes]
    config: Mapping[str, Any]

    def config_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the export: its fields override the base's, except special ids and a kept head's labels."""
        base = {name: value for name, value in self.config.items() if name not in OURS}
        if base.get("tokenizer_class") == BYTE_CLASS:
            del base["tokenizer_class"]  # a class unknown to transformers; the tokenizer's files name the right one
        if not self._same_head(values):
            base = {name: value for name, value in base.items() if name not in (*LABELS, "problem_type")}
        kept = {name: base[name] for name in (*THEIRS, *LABELS) if base.get(name) is not None}
        return {**base, **values, **kept}

    def write(self, folder: Path) -> None:
        """Writes the files; removes those of an earlier export that this one lacks.

        Raises:
          OSError: the folder cannot be written.
        """
        earlier = [folder / name for name in (*BESIDE, *TOKENIZER, *PIECE_FILES)]
        for old in [*earlier, *(folder / TEMPLATES).glob("*.jinja")]:
            old.unlink(missing_ok=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    def _same_head(self, values: Mapping[str, Any]) -> bool:
        problem = self.config.get("problem_type")
        return _head(self.config) == _head(values) and problem in (None, values.get("problem_type"))


def carry(path: Path | None, tokenizer: Tokenizer | None) -> Carried:
    """Reads the files of a base other than its weights.

    Args:
      path: folder or file of the base; None for a random one, which has only its tokenizer.
      tokenizer: the base's; it is written in transformers' format where the base's files are in another.

    Raises:
      UserError: the base is gone, or a file of it cannot be read.
    """
    if path is None:
        return Carried({} if tokenizer is None else tokenizer_files(tokenizer), {})
    folder, reader = path if path.is_dir() else path.parent, open_checkpoint(path)
    templates = sorted(f"{TEMPLATES}/{file.name}" for file in (folder / TEMPLATES).glob("*.jinja"))
    files = _read(folder, [*BESIDE, *templates])
    settings = _json_of(folder, SETTINGS)
    if isinstance(reader, GGUFReader):
        config = gguf_config(reader)
        settings = gguf_settings(reader) | settings
        if GENERATION not in files and (generation := gguf_generation(reader)):
            files[GENERATION] = _bytes(generation)
    else:
        config = _text(_json_of(folder, "config.json"))
    settings.pop("auto_map", None)  # code files, which are not carried over
    if has_tokenizer(folder) and not isinstance(tokenizer, ByteTokenizer):
        files |= _read(folder, [*TOKENIZER, *PIECE_FILES])
        if settings != _json_of(folder, SETTINGS):
            files[SETTINGS] = _bytes(settings)
    elif tokenizer is not None:
        if isinstance(reader, GGUFReader) and isinstance(tokenizer, SubwordTokenizer):
            tokenizer = gguf_framed(tokenizer, reader)
        files |= tokenizer_files(tokenizer, **settings)
    return Carried(files, config)


def with_tokenizer(carried: Carried, folder: Path) -> Carried:
    """The same files with the tokenizer and the chat templates of an adapter's folder, or its chat template alone.

    Raises:
      UserError: a file cannot be read.
    """
    if not has_tokenizer(folder):
        files = {**carried.files, **(template := _read(folder, [JINJA]))}
        if template and SETTINGS in files:
            files[SETTINGS] = _bytes(reading_marks(json.loads(files[SETTINGS])))
        return dataclasses.replace(carried, files=files)
    templates = sorted(f"{TEMPLATES}/{file.name}" for file in (folder / TEMPLATES).glob("*.jinja"))
    names = [*TOKENIZER, *PIECE_FILES, *(name for name in BESIDE if name != GENERATION), *templates]
    own = _read(folder, names)
    if SETTINGS in own:
        settings = _json_of(folder, SETTINGS)
        settings.pop("auto_map", None)
        own[SETTINGS] = _bytes(settings)
    kept = {name: content for name, content in carried.files.items() if name == GENERATION}
    return dataclasses.replace(carried, files=kept | own)


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's fields; for a model of text and images those of the text part, which is what is exported."""
    if not isinstance(text := config.get("text_config"), dict):
        return config
    return {**text, **{name: config[name] for name in THEIRS if name in config}}


def _head(config: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The class with its head, and a classifier's labels, two by default, as in transformers."""
    name = (config.get("architectures") or [None])[0]
    if not (name or "").endswith("ForSequenceClassification"):
        return name, None  # labels that no weight depends on
    return name, len(config.get("id2label") or ()) or config.get("num_labels") or 2


def _read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The files that exist."""
    return {name: read_bytes(folder / name) for name in names if kind_of(folder / name) is not None}


def _json_of(folder: Path, name: str) -> dict[str, Any]:
    return read_json(folder / name) if kind_of(folder / name) is not None else {}


def _bytes(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
