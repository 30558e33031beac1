"""Readers: every dtype is read back, and every damaged file gives one clear line."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.gguf.header import GGUF_TYPES
from lowrank_jax.interop.readers import INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE, open_checkpoint, read_json


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_safetensors_dtypes(tmp_path, dtype):
    value = np.arange(6).reshape(2, 3).astype(dtype)
    save_file({"x": value}, tmp_path / "a.safetensors", metadata={"note": "hello"})
    reader = open_checkpoint(tmp_path / "a.safetensors")
    assert reader.keys() == ["x"]
    assert reader.shape("x") == (2, 3)
    assert reader.metadata["note"] == "hello"
    assert reader.read("x").dtype == dtype
    np.testing.assert_array_equal(reader.read("x"), value)
    part = reader.read("x", (slice(0, 2), slice(1, 3)))
    assert part.dtype == dtype
    np.testing.assert_array_equal(part, value[:, 1:])


def test_integer_tensor_is_refused_when_read(tmp_path):
    save_file({"x": np.zeros(2, np.int8)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="x is stored as I8") as error:
        open_checkpoint(tmp_path).read("x")
    one_line(error)


@pytest.mark.parametrize("kept", [0, 4, 20, -1])
def test_truncated_safetensors(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_file({"x": np.ones((50, 3), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="is damaged or cut short") as error:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in one_line(error)


def test_shards_of_an_index(tmp_path):
    for name, keys in (("a.safetensors", "pq"), ("b.safetensors", "r")):
        save_file({key: np.full(2, ord(key), np.float32) for key in keys}, tmp_path / name)
    weight_map = {"p": "a.safetensors", "q": "a.safetensors", "r": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    reader = open_checkpoint(tmp_path)
    assert sorted(reader.keys()) == ["p", "q", "r"]
    assert reader.read("r")[0] == ord("r")

    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**weight_map, "s": "b.safetensors"}}))
    with pytest.raises(UserError, match=r"b.safetensors lacks s"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(UserError, match=r"lacks the shard b.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        open_checkpoint(tmp_path)


def write_tensors(path, keys):
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bin":
        torch.save({key: torch.full((2,), float(ord(key))) for key in keys}, path)
    else:
        save_file({key: np.full(2, ord(key), np.float32) for key in keys}, path)


FORMATS = [(SINGLE, INDEX), (TORCH_SINGLE, TORCH_INDEX)]


@pytest.mark.parametrize(("single", "index"), FORMATS)
def test_a_whole_file_beside_an_index_of_others_is_ambiguous(tmp_path, single, index):
    shard = f"part-1{(tmp_path / single).suffix}"
    write_tensors(tmp_path / single, "ab")
    write_tensors(tmp_path / shard, "a")
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(UserError) as error:
        open_checkpoint(tmp_path)
    assert f"has {single} and {index}, which names other files; delete the one that is stale" in one_line(error)
    assert open_checkpoint(tmp_path / single).keys() == ["a", "b"]  # the remedy that it names
    for home in ({"a": single, "b": single}, {"a": single, "b": f"./{single}"}):  # an index of that file alone
        (tmp_path / index).write_text(json.dumps({"weight_map": home}))
        assert open_checkpoint(tmp_path).keys() == ["a", "b"]
    write_tensors(tmp_path / single, "b")  # or the file is one of its shards
    (tmp_path / index).write_text(json.dumps({"weight_map": {"a": shard, "b": single}}))
    assert sorted(open_checkpoint(tmp_path).keys()) == ["a", "b"]


def test_formats_side_by_side_keep_their_order(tmp_path):
    write_tensors(tmp_path / TORCH_SINGLE, "b")
    write_tensors(tmp_path / SINGLE, "a")
    (tmp_path / TORCH_INDEX).write_text(json.dumps({"weight_map": {"b": "part.bin"}}))  # no matter: not looked at
    assert open_checkpoint(tmp_path).keys() == ["a"]


@pytest.mark.parametrize("name", ["../x", "../../x", "sub/../../x", "/{tmp}/x", "..\\x", "C:\\x", "\\\\host\\x", "C:x"])
@pytest.mark.parametrize(("single", "index"), FORMATS)
def test_an_index_stays_in_its_folder(tmp_path, single, index, name):
    suffix = (tmp_path / single).suffix
    name = name.format(tmp=str(tmp_path).lstrip("/")) + suffix
    for place in (tmp_path / f"x{suffix}", tmp_path / "a" / f"x{suffix}"):
        write_tensors(place, "p")
    (tmp_path / "a" / "b" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "b" / index).write_text(json.dumps({"weight_map": {"p": name}}))
    with pytest.raises(UserError, match="which is outside its folder; download the checkpoint again") as error:
        open_checkpoint(tmp_path / "a" / "b")
    assert repr(name) in one_line(error)


@pytest.mark.parametrize(("single", "index"), FORMATS)
def test_an_index_may_name_folders_and_links(tmp_path, single, index):
    suffix = (tmp_path / single).suffix
    write_tensors(tmp_path / "blobs" / f"x{suffix}", "p")
    write_tensors(tmp_path / "a" / "sub" / f"y{suffix}", "q")
    (tmp_path / "a" / f"link{suffix}").symlink_to(tmp_path / "blobs" / f"x{suffix}")  # as the Hub's cache has them
    home = {"p": f"link{suffix}", "q": f"sub/y{suffix}"}
    (tmp_path / "a" / index).write_text(json.dumps({"weight_map": home}))
    assert sorted(open_checkpoint(tmp_path / "a").keys()) == ["p", "q"]
    (tmp_path / "a" / index).write_text(json.dumps({"weight_map": {**home, "r": f"sub/y{suffix}"}}))
    with pytest.raises(UserError, match=f"y{suffix} lacks r, which {index} expects in it"):
        open_checkpoint(tmp_path / "a")


def test_folders_that_hold_no_single_checkpoint(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(UserError, match="has none of"):
        open_checkpoint(tmp_path)
    (tmp_path / "consolidated.pth").write_bytes(b"x")
    with pytest.raises(UserError, match=r"only torch's consolidated.pth"):
        open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"is none of .safetensors, .gguf, .bin"):
        open_checkpoint(tmp_path / "consolidated.pth")
    for name in "ab":
        save_file({name: np.ones(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="several checkpoints"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "{", "\x00"])
def test_bad_json(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "config.json")
    assert "config.json" in one_line(error)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf_types(helpers, untied, tmp_path, kind):
    reader = open_checkpoint(helpers.gguf(untied, tmp_path / "toy.gguf", kind))
    expected = untied.model.layers[1].mlp.up_proj.weight.detach().numpy()
    assert reader.shape("blk.1.ffn_up.weight") == expected.shape
    # About half a step, over the largest weight: 2^-9 for bfloat16, 1/254 for 8 bits, 1/8 for 4.
    bound = {"F32": 0, "F16": 1e-3, "BF16": 4e-3, "Q8_0": 5e-3, "Q4_0": 0.14, "Q4_1": 0.14}[kind]
    found = reader.read("blk.1.ffn_up.weight")
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
    assert not np.may_share_memory(found, reader._files[0][0])  # no part of the file, which may change later
    part = reader.read("blk.1.ffn_up.weight", (slice(5, 40), slice(3, 30)))
    np.testing.assert_array_equal(part, found[5:40, 3:30])
    assert not np.may_share_memory(part, reader._files[0][0])
    norm = reader.read("output_norm.weight")
    np.testing.assert_array_equal(reader.read("output_norm.weight", (slice(2, 9),)), norm[2:9])
    assert reader.metadata["llama.block_count"] == 3
    assert reader.metadata.get("llama.nothing", 7) == 7


def test_truncated_gguf_is_one_line_wherever_it_is_cut(helpers, untied, tmp_path):
    whole = helpers.gguf(untied, tmp_path / "toy.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for kept in [0, 3, *range(4, 3000, 97), *range(3000, len(whole), len(whole) // 10), len(whole) - 40]:
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"damaged or cut short|not a GGUF file") as error:
            open_checkpoint(path)
        one_line(error)


def test_damaged_gguf_header_never_gives_another_error(helpers, untied, tmp_path):
    whole = helpers.gguf(untied, tmp_path / "toy.gguf").read_bytes()
    path, rng, refused = tmp_path / "spoilt.gguf", np.random.default_rng(0), 0
    for at in rng.integers(4, 2500, 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            open_checkpoint(path)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused > 5


def test_gguf_type_that_is_unknown(helpers, untied, tmp_path):
    import gguf

    def integers(state):
        state["blk.0.ffn_up.weight"] = state["blk.0.ffn_up.weight"].astype(np.float32)

    whole = helpers.gguf(untied, tmp_path / "toy.gguf", tensors=integers).read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8  # after the name: count of axes, two axes, then the type
    for type_, message in ((200, "unknown to gguf"), (int(gguf.GGMLQuantizationType.I32), "has type I32")):
        path = tmp_path / "odd.gguf"
        path.write_bytes(whole[:at] + type_.to_bytes(4, "little") + whole[at + 4 :])
        with pytest.raises(UserError, match=message) as error:
            open_checkpoint(path)
        assert "known: F32" in one_line(error)


def test_every_gguf_type_is_dequantised_as_by_its_own_library(tmp_path):
    """Random codes, whole and in part."""
    import gguf

    rng, codes = np.random.default_rng(0), {}
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    for name in GGUF_TYPES:
        kind = gguf.GGMLQuantizationType[name]
        if name in ("F32", "F16"):
            writer.add_tensor(name, rng.standard_normal((5, 512)).astype({"F32": "f4", "F16": "f2"}[name]))
            continue
        block, size = gguf.GGML_QUANT_SIZES[kind]
        codes[name] = rng.integers(0, 256, (5, 512 // block * size), np.uint8)
        writer.add_tensor(name, codes[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = open_checkpoint(tmp_path / "q.gguf")
    with np.errstate(all="ignore"):  # random scales overflow
        for name, lines in codes.items():
            expected = gguf.quants.dequantize(lines, gguf.GGMLQuantizationType[name])
            found = reader.read(name)
            assert (found.dtype, found.shape) == (np.float32, reader.shape(name)) == (np.float32, (5, 512))
            np.testing.assert_array_equal(found, expected, err_msg=name)
            np.testing.assert_array_equal(reader.read(name, (slice(1, 4), slice(30, 300))), expected[1:4, 30:300])
    dequantised = {kind.name for kind in gguf.quants._type_traits}
    assert {name for name in dequantised if name.endswith("_K")} < set(GGUF_TYPES)
    assert set(GGUF_TYPES) - dequantised == {"F32", "F16"}


def test_gguf_k_quants_by_hand(tmp_path):
    import gguf

    half = np.array([0.5], np.float16).view(np.uint8)
    # Q6_K, 256 weights: 128 low nibbles, 64 high pairs, 16 int8 scales, d. All bits 0 means -32: d * scale * -32 = -48.
    q6 = np.concatenate([np.zeros(192, np.uint8), np.full(16, 3, np.uint8), half])
    # Q4_K: d, dmin, 12 bytes of 6-bit scales and minima, 128 nibble pairs. Scales 1, minima 2, all weights 3:
    # d * 1 * 3 - dmin * 2 = 0.5.
    scales = np.array([1] * 4 + [2] * 4 + [1 | 2 << 4] * 4, np.uint8)
    q4 = np.concatenate([half, half, scales, np.full(128, 0x33, np.uint8)])
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("six", np.tile(q6, (2, 1)), raw_dtype=gguf.GGMLQuantizationType.Q6_K)
    writer.add_tensor("four", np.tile(q4, (2, 2)), raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = open_checkpoint(tmp_path / "k.gguf")
    assert reader.shape("six") == (2, 256)
    assert reader.shape("four") == (2, 512)
    np.testing.assert_array_equal(reader.read("six"), np.full((2, 256), -48.0))
    np.testing.assert_array_equal(reader.read("four"), np.full((2, 512), 0.5))


def torch_state():
    import torch

    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "plain": whole,
        "tied": whole,
        "turned": whole.t(),
        "part": whole[1:3, 2:4],
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "brain": torch.tensor([[0.1], [3.0]], dtype=torch.bfloat16),
        "double": torch.tensor(1.0, dtype=torch.float64),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "empty": torch.zeros(0, 2),
        "position_ids": torch.arange(5),
    }


def test_torch_file(tmp_path):
    import torch

    state = torch_state()
    torch.save(torch.nn.ModuleDict().state_dict() | state, tmp_path / "pytorch_model.bin")
    reader = open_checkpoint(tmp_path)
    assert reader.keys() == list(state)
    for key, value in state.items():
        assert reader.shape(key) == tuple(value.shape)
        if key != "position_ids":
            assert reader.read(key).dtype.name == str(value.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(reader.read(key).astype(np.float64), value.detach().double().numpy())
            if value.ndim == 2:
                inside = (slice(1, 2), slice(0, 2))
                np.testing.assert_array_equal(reader.read(key, inside), reader.read(key)[1:2, :2])
    with pytest.raises(UserError, match="position_ids is stored as int64") as error:
        reader.read("position_ids")
    one_line(error)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    assert open_checkpoint(tmp_path / "wrapped.pt").keys() == list(state)


def test_torch_shards(tmp_path):
    import torch

    for name, keys in (("a.bin", "pq"), ("b.bin", "r")):
        torch.save({key: torch.full((2,), float(ord(key))) for key in keys}, tmp_path / name)
    weight_map = {"p": "a.bin", "q": "a.bin", "r": "b.bin"}
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    reader = open_checkpoint(tmp_path)
    assert sorted(reader.keys()) == ["p", "q", "r"]
    assert reader.read("r")[0] == ord("r")
    index.write_text(json.dumps({"weight_map": {**weight_map, "s": "b.bin"}}))
    with pytest.raises(UserError, match=r"b.bin lacks s, which pytorch_model.bin.index.json expects"):
        open_checkpoint(tmp_path)
    (tmp_path / "b.bin").unlink()
    with pytest.raises(UserError, match=r"lacks the shard b.bin"):
        open_checkpoint(tmp_path)


class Harmful:
    def __reduce__(self):
        return open, ("harm-was-done", "w")


def test_torch_files_code_is_never_run(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harmful()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"contains .*open, more than tensors; its code is not run") as error:
        open_checkpoint(tmp_path)
    one_line(error)
    assert not (tmp_path / "harm-was-done").exists()
    torch.save({"x": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="no state dict"):
        open_checkpoint(tmp_path)
    torch.save({"x": torch.ones(2)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"format before 1.6; save it as safetensors"):
        open_checkpoint(tmp_path)


def test_torch_view_outside_its_storage(tmp_path):
    from lowrank_jax.interop.torch_file import Storage, StoredTensor, read_tensor

    storage = Storage("0", np.dtype(np.float32), 6)
    for view in (StoredTensor(storage, 1, (2, 3), (3, 1)), StoredTensor(storage, 0, (2,), (-1,))):
        with pytest.raises(UserError, match="reaches outside its storage"):
            read_tensor(tmp_path / "absent", "x", view)


def test_damaged_torch_files_never_give_another_error(tmp_path):
    import torch

    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": torch.ones(30, 30)}, path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for kept in (0, 10, 400, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match="is damaged"):
            open_checkpoint(path)
    refused = 0
    for at in rng.integers(0, 500, 80):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            open_checkpoint(path).read("x")
        except UserError as error:
            refused += "\n" not in str(error)
        except KeyError:
            refused += 1  # a name that changed
    assert refused > 5
