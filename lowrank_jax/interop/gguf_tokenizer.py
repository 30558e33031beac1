"""The tokenizer in the metadata of a GGUF file: rebuilt as byte-level BPE, and as the fields of transformers' files."""

import copy
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.readers import GGUFReader
from lowrank_jax.text.tokenizers import SubwordTokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's token types
# transformers' name: GGUF's part of tokenizer.ggml.*_token_id ("seperator" is its spelling)
SPECIAL = {
    **{"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"},
    **{"sep_token": "seperator", "cls_token": "cls", "mask_token": "mask"},
}
ENDS = ("eos", "eot", "eom")  # of a text, a turn and a message: all end a generation in llama.cpp
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def _pre_tokenizers() -> dict[str, list[Any]]:
    """`tokenizer.ggml.pre` -> the steps before the merges; ByteLevel has GPT-2's pattern."""
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
        tokenizer.json next to the file replaces it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    meta = reader.metadata
    remedy = "put the base's tokenizer.json next to the file"
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


def gguf_framed(tokenizer: SubwordTokenizer, reader: GGUFReader) -> SubwordTokenizer:
    """The tokenizer with the file's marks around a text, for programs that follow tokenizer.json alone."""
    from tokenizers import processors

    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id}
    added = [n for n, i in ids.items() if i is not None and reader.metadata.get(f"tokenizer.ggml.add_{n}_token")]
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
    return SubwordTokenizer(backend, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.name)


def gguf_settings(reader: GGUFReader) -> dict[str, Any]:
    """tokenizer_config.json from the metadata: special tokens, chat templates, the longest text."""
    meta = reader.metadata
    tokens = meta.get("tokenizer.ggml.tokens") or []
    ids = {name: meta.get(f"tokenizer.ggml.{part}_token_id") for name, part in SPECIAL.items()}
    settings = {name: tokens[i] for name, i in ids.items() if i is not None and i < len(tokens)}
    for name in ("add_bos_token", "add_eos_token"):
        if (value := meta.get(f"tokenizer.ggml.{name}")) is not None:
            settings[name] = bool(value)
    if length := meta.get(f"{meta.get('general.architecture')}.context_length"):
        settings["model_max_length"] = int(length)
    if (template := _templates(meta)) is not None:
        settings["chat_template"] = template
    return {"tokenizer_class": "PreTrainedTokenizerFast", **settings} if settings else {}


def gguf_config(reader: GGUFReader) -> dict[str, Any]:
    """config.json's special ids from the metadata; `eos_token_id` is a list where several tokens end a text."""
    meta = reader.metadata
    found = {name: meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "padding", *ENDS)}
    ends = list(dict.fromkeys(int(value) for name in ENDS if (value := found[name]) is not None))
    ids = {"bos_token_id": found["bos"], "pad_token_id": found["padding"]}
    config: dict[str, Any] = {name: int(value) for name, value in ids.items() if value is not None}
    return config | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def gguf_generation(reader: GGUFReader) -> dict[str, Any]:
    """generation_config.json from the metadata: the special ids, and the makers' settings for sampling."""
    found = {name: reader.metadata.get(f"general.sampling.{part}") for name, part in SAMPLING.items()}
    shortest = lambda value: float(str(np.float32(value)))  # noqa: E731  0.7 is stored as 0.69999999
    sampling = {name: int(value) if name == "top_k" else shortest(value) for name, value in found.items() if value}
    return gguf_config(reader) | ({"do_sample": True, **sampling} if sampling else {})


def _templates(meta: Any) -> str | list[dict[str, str]] | None:
    """One chat template, or those of every name, as tokenizer_config.json has them."""
    default = meta.get("tokenizer.chat_template")
    named = {name: meta.get(f"tokenizer.chat_template.{name}") for name in meta.get("tokenizer.chat_templates") or []}
    if not named:
        return default
    found = {**({} if default is None else {"default": default}), **dict(sorted(named.items()))}
    return [{"name": name, "template": template} for name, template in found.items() if template is not None]
