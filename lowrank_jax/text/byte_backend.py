"""The byte tokenizer as a `tokenizers.Tokenizer`, which transformers loads: one token a byte, the same ids."""

from typing import Any

MARKS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}  # ids 256, 257, 258
# A mark within a text is text: without the first setting, transformers would turn it into its id.
SETTINGS = {"split_special_tokens": True, "clean_up_tokenization_spaces": False, **MARKS}


def byte_backend() -> Any:
    """Ids 0-255 are the bytes of the text, then BOS, EOS, PAD; nothing is added, merged or normalised."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_alphabet())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS.values()])
    return backend


def _alphabet() -> list[str]:
    """GPT-2's printable character of each byte: itself where it is printable, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
