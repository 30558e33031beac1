"""Turns the metadata of a GGUF file into the fields of transformers' files: special ids, templates, sampling."""

import copy
import math
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.gguf.fields import REMEDY, flag, shortest, special_id, text, texts
from lowrank_jax.interop.gguf.file import GGUFReader
from lowrank_jax.interop.gguf.splits import WHOLE_FIRST
from lowrank_jax.text.tokenizers import SubwordTokenizer

BYTE_LEVEL, PIECES = "gpt2", "llama"  # the values of tokenizer.ggml.model that are read
# transformers' name: GGUF's part of tokenizer.ggml.*_token_id ("seperator" is its spelling)
SPECIAL = {
    **{"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"},
    **{"sep_token": "seperator", "cls_token": "cls", "mask_token": "mask"},
}
ENDS = ("eos", "eot", "eom")  # of a text, a turn and a message: all end a generation in llama.cpp
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def adds(reader: GGUFReader, name: str) -> bool:
    """Whether the file's tokenizer adds its "bos" or "eos" to a text; by default as llama.cpp does for its kind."""
    kind, pre = text(reader, "tokenizer.ggml.model"), text(reader, "tokenizer.ggml.pre")
    default = name == "bos" and (kind == PIECES or pre in WHOLE_FIRST)
    return flag(reader, f"tokenizer.ggml.add_{name}_token", default)


def chat_template(reader: GGUFReader) -> str | None:
    """The chat template; where there are several, the default one."""
    return text(reader, "tokenizer.chat_template")


def gguf_framed(tokenizer: SubwordTokenizer, reader: GGUFReader) -> SubwordTokenizer:
    """The tokenizer that adds BOS and EOS to a text as the file says, for programs that read only tokenizer.json."""
    from tokenizers import processors

    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    added = [name for name, i in ids.items() if i is not None and adds(reader, name)]
    if not added:
        return tokenizer
    backend = copy.deepcopy(tokenizer.backend)
    marks = {name: backend.id_to_token(ids[name]) for name in added}

    def frame(text, kind):
        first, last = (f"{marks[name]}:{kind}" if name in marks else "" for name in ("bos", "eos"))
        return f"{first} {text}:{kind} {last}".split()

    single, pair = frame("$A", 0), [*frame("$A", 0), *frame("$B", 1)]
    specials = [(mark, ids[name]) for name, mark in marks.items()]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=specials)
    kept = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.name
    return SubwordTokenizer(backend, *kept, chat_template=tokenizer.chat_template)


def gguf_settings(reader: GGUFReader) -> dict[str, Any]:
    """tokenizer_config.json from the metadata: special tokens, chat templates, the longest text."""
    tokens = texts(reader, "tokenizer.ggml.tokens") or []
    ids = {name: special_id(reader, part, _ids(reader)) for name, part in SPECIAL.items()}
    settings: dict[str, Any] = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    for name in ("bos", "eos"):
        if reader.metadata.get(key := f"tokenizer.ggml.add_{name}_token") is not None:
            settings[f"add_{name}_token"] = flag(reader, key, False)
    length = reader.metadata.get(f"{text(reader, 'general.architecture')}.context_length")
    if type(length) is int and length > 0:  # any other is refused with the model's shape
        settings["model_max_length"] = length
    if (template := _templates(reader)) is not None:
        settings["chat_template"] = template
    return {"tokenizer_class": "PreTrainedTokenizerFast", **settings} if settings else {}


def gguf_config(reader: GGUFReader) -> dict[str, Any]:
    """config.json's special ids from the metadata; `eos_token_id` is a list where several tokens end a text."""
    found = {name: special_id(reader, name, _ids(reader)) for name in ("bos", "padding", *ENDS)}
    ends = list(dict.fromkeys(value for name in ENDS if (value := found[name]) is not None))
    ids = {"bos_token_id": found["bos"], "pad_token_id": found["padding"]}
    config: dict[str, Any] = {name: value for name, value in ids.items() if value is not None}
    return config | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def gguf_generation(reader: GGUFReader) -> dict[str, Any]:
    """generation_config.json from the metadata: the special ids, and the makers' settings for sampling."""
    found = {name: reader.metadata.get(f"general.sampling.{part}") for name, part in SAMPLING.items()}
    for name, value in found.items():
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise UserError(
                f"{reader.path}: general.sampling.{SAMPLING[name]} must be a number, not {str(value)[:40]!r}; {REMEDY}"
            )
    sampling = {name: int(value) if name == "top_k" else shortest(value) for name, value in found.items() if value}
    return gguf_config(reader) | ({"do_sample": True, **sampling} if sampling else {})


def _templates(reader: GGUFReader) -> str | list[dict[str, str]] | None:
    """The chat template, or all of them by name, in tokenizer_config.json's form."""
    default, names = chat_template(reader), texts(reader, "tokenizer.chat_templates") or []
    named = {name: text(reader, f"tokenizer.chat_template.{name}") for name in names}
    if not named:
        return default
    found = {**({} if default is None else {"default": default}), **dict(sorted(named.items()))}
    return [{"name": name, "template": template} for name, template in found.items() if template is not None]


def _ids(reader: GGUFReader) -> int:
    """How many ids there are: tokens, or rows of the embedding in a file without tokens."""
    tokens, table = texts(reader, "tokenizer.ggml.tokens"), "token_embd.weight"
    return len(tokens or ()) or (reader.shape(table)[0] if table in reader.keys() else 0)  # noqa: SIM118 (no dictionary)
