"""GGUF files that are damaged or say what no writer would: taken, or refused in one line, and soon."""

import struct

import numpy as np
import pytest

from lowrank_jax.bases.base import BaseConfig, abstract_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.carried import carry
from lowrank_jax.interop.readers import open_checkpoint


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


# What a value may be instead, as GGUF's type and bytes.
OTHERS = {
    "zero": struct.pack("<II", 4, 0),
    "minus one": struct.pack("<Ii", 5, -1),
    "huge": struct.pack("<IQ", 10, 2**63),
    "nan": struct.pack("<If", 6, float("nan")),
    "infinity": struct.pack("<If", 6, float("inf")),
    "true": struct.pack("<I?", 7, True),
    "text": struct.pack("<I", 8) + text("a text\nof two lines"),
    "no UTF-8": struct.pack("<IQ", 8, 2) + b"\xff\xfe",
    "no texts": struct.pack("<IIQ", 9, 8, 0),
    "texts": struct.pack("<IIQ", 9, 8, 2) + text("a") + text("a b"),
    "numbers": struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3),
    "a list of lists": struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQi", 5, 1, 1),
    "endless texts": struct.pack("<IIQ", 9, 8, 2**60),
    "endless numbers": struct.pack("<IIQ", 9, 6, 2**60),
    "an endless text": struct.pack("<IQ", 8, 2**63),
    "no type": struct.pack("<I", 77),
}
UNREAD = ("llama.vocab_size",)  # the embedding says it


@pytest.fixture(scope="module")
def whole(helpers, untied, tmp_path_factory):
    """A Llama with rotary factors and a sentencepiece tokenizer."""
    tokens = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(240)), "▁", "a", "▁a", "b", "ab"]

    def change(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores([float(-i) for i in range(len(tokens))])
        writer.add_token_types([2, 3, 3, 3, *[6] * 240, *[1] * 5])
        for name, i in (("bos", 1), ("eos", 2), ("pad", 3), ("unk", 0), ("eot", 2)):
            getattr(writer, f"add_{name}_token_id")(i)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(True)
        writer.add_chat_template([{"name": "default", "template": "{{ 1 }}"}, {"name": "tools", "template": "{{ 2 }}"}])
        writer.add_sampling_temp(0.7)
        writer.add_sampling_top_k(20)
        writer.add_rope_dimension_count(8)
        writer.add_rope_scaling_factor(1.0)
        writer.add_uint32("general.alignment", 32)

    def add(state):
        state["rope_freqs.weight"] = np.float32([1.0, 1.5, 2.0, 3.0])

    return helpers.gguf(untied, tmp_path_factory.mktemp("whole") / "toy.gguf", change=change, tensors=add)


def said(path) -> str:
    """The message that refuses the file; "" where it is planned with and carried over."""
    try:
        base = abstract_base(BaseConfig(str(path)))
        carry(path, base.tokenizer)
    except UserError as error:
        message = str(error)
    else:
        return ""
    assert "\n" not in message
    assert len(message) < 1000
    return message


def parts_of(path):
    """(file's first 24 bytes, {key: its bytes}, the tensors' descriptions, their values), by the gguf package."""
    import gguf

    reader, data = gguf.GGUFReader(path), path.read_bytes()

    def raw(field):
        return data[field.offset : field.offset + sum(part.nbytes for part in field.parts)]

    fields = {key: raw(field) for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return data[:24], fields, [raw(tensor.field) for tensor in reader.tensors], data[reader.data_offset :]


def joined(head, fields, tensors, values) -> bytes:
    content = head + b"".join(fields.values()) + b"".join(tensors)
    return content + bytes(-len(content) % 32) + values


def test_every_field_with_every_other_value(whole, tmp_path):
    assert said(whole) == ""
    path = tmp_path / "toy.gguf"
    head, fields, tensors, values = parts_of(whole)
    path.write_bytes(joined(head, fields, tensors, values))
    assert path.read_bytes() == whole.read_bytes()
    taken, refused = 0, 0
    for key, value in fields.items():
        messages = {}
        for name, other in OTHERS.items():
            path.write_bytes(joined(head, {**fields, key: text(key) + other}, tensors, values))
            messages[name] = said(path)
        taken += sum(not one for one in messages.values())
        refused += sum(bool(one) for one in messages.values())
        assert value[8 : 8 + len(key)] == key.encode()
        for name in ("a list of lists", "endless texts", "endless numbers", "an endless text", "no type"):
            assert "is damaged or cut short" in messages[name], (key, name)
        if key not in UNREAD:
            assert messages["numbers"], key
    assert 20 < taken < refused


def test_flipped_bytes(whole, tmp_path):
    content, path = whole.read_bytes(), tmp_path / "toy.gguf"
    end = content.index(b"rope_freqs.weight") + 2000
    refused = 0
    for at in np.random.default_rng(0).integers(4, end, 80):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        refused += bool(said(path))
    assert refused > 10


def test_absurd_headers(whole, tmp_path):
    path = tmp_path / "toy.gguf"
    head, fields, tensors, values = parts_of(whole)
    name = text("blk.0.ffn_up.weight")
    index = next(i for i, one in enumerate(tensors) if one.startswith(name))

    def tensor(*shape, kind=0, offset=0):
        described = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return [*tensors[:index], name + described, *tensors[index + 1 :]]

    key = next(iter(fields))
    cases = {
        "no GGUF": b"GGML" + head[4:],
        "of another version": head[:4] + struct.pack("<I", 1) + head[8:],
        "big-endian": head[:4] + struct.pack(">I", 3) + head[8:],
        "endless tensors": head[:8] + struct.pack("<Q", 2**60) + head[16:],
        "endless fields": head[:16] + struct.pack("<Q", 2**60),
    }
    refused = {what: joined(one, fields, tensors, values) for what, one in cases.items()}
    for what, shape, more in (
        ("seven axes", (1,) * 7, {}),
        ("no axes", (), {}),
        ("endless", (2**62, 2**62), {}),
        ("past the end", (32, 64), {"offset": 2**62}),
        ("half a block", (33, 64), {"kind": 8}),
        ("of an unknown type", (32, 64), {"kind": 999}),
        ("of whole numbers", (32, 64), {"kind": 26}),
    ):
        refused[what] = joined(head, fields, tensor(*shape, **more), values)
    refused["a field twice"] = joined(head, {**fields, key: fields[key] * 2}, tensors[:-1], values)
    refused["a tensor twice"] = joined(head, fields, [*tensors[:-1], tensors[0]], values)
    freqs = next(i for i, one in enumerate(tensors) if one.startswith(text("rope_freqs.weight")))
    for what, shape in (("many factors", (5,)), ("factors of two axes", (2, 2))):
        one = text("rope_freqs.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
        refused[what] = joined(head, fields, [*tensors[:freqs], one, *tensors[freqs + 1 :]], values)
    for what, content in refused.items():
        path.write_bytes(content)
        assert said(path), what
    path.write_bytes(joined(head, fields, tensors, values)[:-40])
    with pytest.raises(UserError, match=r"is damaged or cut short .it needs"):
        open_checkpoint(path)
