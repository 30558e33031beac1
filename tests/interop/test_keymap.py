"""The key table: transforms and their inverses, strictness, and streaming into stacked, sharded leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop import keymap
from lowrank_jax.interop.causal.names import gguf_table
from lowrank_jax.interop.gguf.config import config_from_gguf
from lowrank_jax.interop.gpt2 import third
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, check, load, unload, unpermute
from lowrank_jax.interop.readers import SafetensorsReader, open_checkpoint

ROWS = (
    Row("embed", "embed/table", (5, 4)),
    Row("block.{layer}.w", "layers/w/kernel", (6, 4), TRANSPOSE),
    Row("block.{layer}.g", "layers/norm/scale", (4,)),
)


def weights(layers=3):
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=row.shape).astype(np.float32) for row in ROWS for key in row.sources(layers)}


def reader_of(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize("transform", [IDENTITY, TRANSPOSE, unpermute(1), unpermute(3)])
def test_backward_undoes_forward(transform):
    x = np.random.default_rng(0).normal(size=(12, 5))
    assert transform.forward(x).shape == transform.shape(x.shape)
    np.testing.assert_array_equal(transform.backward(transform.forward(x)), x)


def test_unpermute_by_hand():
    # One head of four rows: llama.cpp stores (0, 2, 1, 3) of HF's order, neighbours rotating together.
    stored = np.array([[0.0], [2.0], [1.0], [3.0]])
    np.testing.assert_array_equal(unpermute(1).forward(stored), [[0.0, 1.0, 2.0, 3.0]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_load_stacks_casts_and_unload_inverts(tmp_path, dtype):
    tensors = weights()
    params = load(reader_of(tmp_path, tensors), ROWS, 3, dtype)
    kernel = params["layers"]["w"]["kernel"]
    assert kernel.shape == (3, 4, 6)
    assert kernel.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(kernel[1], tensors["block.1.w"].T.astype(dtype))
    back = dict(unload(params, ROWS, 3))
    assert back.keys() == tensors.keys()
    for key, value in back.items():
        np.testing.assert_array_equal(value, tensors[key].astype(dtype))


def test_every_fault_is_listed_in_one_line(tmp_path):
    tensors = weights()
    del tensors["block.1.w"], tensors["embed"]
    tensors["extra.bias"] = np.ones(2, np.float32)
    tensors["block.3.g"] = np.ones(4, np.float32)
    tensors["block.2.g"] = np.ones(7, np.float32)
    with pytest.raises(UserError) as error:
        load(reader_of(tmp_path, tensors), ROWS, 3)
    message = str(error.value)
    assert "missing: embed, block.1.w;" in message
    assert "unknown: block.3.g, extra.bias;" in message
    assert "misshapen: block.2.g [7] instead of [4]" in message
    assert "\n" not in message


def test_a_key_in_two_shards(tmp_path):
    tensors = weights()
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({"embed": tensors["embed"]}, tmp_path / "b.safetensors")
    reader = SafetensorsReader(tmp_path, [tmp_path / "a.safetensors", tmp_path / "b.safetensors"])
    with pytest.raises(UserError, match="in two shards: embed"):
        check(reader, ROWS, 3)


def test_ignored_keys_are_whole_matches(tmp_path):
    reader = reader_of(tmp_path, {**weights(), "buffer.0": np.ones(2, np.float32)})
    assert check(reader, ROWS, 3, [r"buffer\.\d+"]) == ["buffer.0"]
    with pytest.raises(UserError, match=r"unknown: buffer.0"):
        check(reader, ROWS, 3, [r"buffer"])


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e5, "float16")])
def test_values_that_are_not_finite(tmp_path, value, dtype):
    tensors = weights()
    tensors["block.2.w"][1, 1] = value
    with pytest.raises(UserError, match=rf"block.2.w is not finite in {dtype}"):
        load(reader_of(tmp_path, tensors), ROWS, 3, dtype)


def test_leaves_land_in_their_sharding(tmp_path):
    tensors = {**weights(), "embed": np.ones((5, 4), np.float32)}
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    asked = {}

    def sharding_fn(path, shape):
        asked[path] = shape
        spec = jax.sharding.PartitionSpec(None, "fsdp") if path == "layers/w/kernel" else jax.sharding.PartitionSpec()
        return jax.sharding.NamedSharding(mesh, spec)

    params = load(reader_of(tmp_path, tensors), ROWS, 3, "float32", sharding_fn)
    assert asked == {row.target: row.target_shape(3) for row in ROWS}
    kernel = params["layers"]["w"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (3, 1, 6)
    np.testing.assert_array_equal(kernel[2], tensors["block.2.w"].T)


def test_a_leaf_split_along_its_layers(tmp_path):
    tensors = weights(4)
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = load(reader_of(tmp_path, tensors), ROWS, 4, "float32", lambda p, _: whole if p == "embed/table" else split)
    kernel = params["layers"]["w"]["kernel"]
    assert kernel.sharding == split
    for layer in range(4):
        np.testing.assert_array_equal(kernel[layer], tensors[f"block.{layer}.w"].T)


WIDE = (
    Row("embed", "embed/table", (64, 8)),
    Row("head", "head/kernel", (64, 8), TRANSPOSE),
    Row("conv", "conv/filters", (8, 4, 3), TRANSPOSE),
    *(Row("qkv", f"fused/{name}", (16, 24), third(i)) for i, name in enumerate("qkv")),
    Row("block.{layer}.w", "layers/w/kernel", (8, 40), TRANSPOSE),
    Row("block.{layer}.p", "layers/p/kernel", (8, 16), unpermute(2)),
    Row("block.{layer}.f", "layers/f/kernel", (16, 24), third(1)),
    Row("block.{layer}.g", "layers/norm/scale", (6,)),
)
MESHES = {"fsdp": (1, 4, 1), "both": (1, 2, 2), "some hold the same": (2, 2, 1)}


@pytest.mark.parametrize(
    ("mesh", "axis", "dtype"),
    [
        *(("fsdp", axis, "float32") for axis in (0, 1, -1, None)),
        *(("some hold the same", axis, "float32") for axis in (0, 1)),
        *(("both", axis, "bfloat16") for axis in (0, 1)),
    ],
)
def test_any_sharding_reads_blocks_and_holds_the_same(tmp_path, monkeypatch, mesh, axis, dtype):
    """No reading of a tensor that can be cut is larger than a block, and what devices share is read once."""
    monkeypatch.setattr(keymap, "BLOCK", 96)
    rng, layers = np.random.default_rng(0), 4
    tensors = {k: rng.normal(size=row.shape).astype(np.float32) for row in WIDE for k in row.sources(layers)}
    reader, reads = reader_of(tmp_path, tensors), []
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda key, part=None: (reads.append((key, part)), read(key, part))[1])
    mesh = jax.make_mesh(MESHES[mesh], ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)

    def sharding_fn(path, shape):
        spec = [None] * len(shape)
        if axis is not None and axis < len(shape) and shape[axis] % 4 == 0:
            spec[axis] = ("fsdp", "tensor") if axis == 0 else "fsdp"
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    params = load(reader, WIDE, layers, dtype, sharding_fn)
    for row in WIDE:
        leaf = params
        for name in row.target.split("/"):
            leaf = leaf[name]
        parts = [row.transform.forward(tensors[key]).astype(dtype) for key in row.sources(layers)]
        expected = np.stack(parts) if "{layer}" in row.source else parts[0]
        assert leaf.sharding == sharding_fn(row.target, leaf.shape)
        np.testing.assert_array_equal(np.asarray(leaf), expected, err_msg=row.target)
    sizes = {"embed": 0, "head": 0, "block.1.w": 0}
    for key, part in reads:
        size = read(key, part).size
        assert size <= 96 or ".p" in key  # whose rows are in another order
        if key in sizes:
            sizes[key] += size
    for key, size in sizes.items():
        assert tensors[key].size <= size < 1.5 * tensors[key].size, key  # a last block goes over rows again


def test_blocks_without_a_mesh(tmp_path, monkeypatch):
    tensors = weights()
    expected = load(reader_of(tmp_path, tensors), ROWS, 3, "bfloat16")
    monkeypatch.setattr(keymap, "BLOCK", 7)
    found = load(reader_of(tmp_path, tensors), ROWS, 3, "bfloat16")
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    kinds = [jax.tree.map(lambda x: (x.sharding, x.dtype), params) for params in (found, expected)]
    assert kinds[0] == kinds[1]
    tensors["block.2.w"][5, 1] = np.inf
    with pytest.raises(UserError, match=r"block.2.w is not finite"):
        load(reader_of(tmp_path, tensors), ROWS, 3)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q4_1"])
def test_blocks_of_gguf(helpers, untied, tmp_path, monkeypatch, kind):
    reader = open_checkpoint(helpers.gguf(untied, tmp_path / "toy.gguf", kind))
    config = config_from_gguf(reader)
    expected = load(reader, gguf_table(config), 3)
    monkeypatch.setattr(keymap, "BLOCK", 300)
    jax.tree.map(np.testing.assert_array_equal, load(reader, gguf_table(config), 3), expected)


def test_unload_refuses_another_tree(tmp_path):
    params = load(reader_of(tmp_path, weights()), ROWS, 3)
    with pytest.raises(ValueError, match="layers/w/kernel"):
        list(unload({**params, "layers": {**params["layers"], "w": {}}}, ROWS, 3))
