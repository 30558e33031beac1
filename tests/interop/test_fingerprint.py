"""Fingerprints: what they see of values and config, sums by shard and block, and older fingerprints."""

import dataclasses
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from lowrank_jax.bases import leaf_sums
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.fingerprint import fingerprint
from lowrank_jax.checkpoints.adapters_only import load_adapter, save_adapter
from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.fingerprints import same
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.models.bert import BertConfig
from lowrank_jax.models.llama import LlamaConfig
from lowrank_jax.models.parts.rotary import Llama3Scaling


def older_kind(params):
    """Each leaf's path, shape and 16 evenly strided values in bfloat16: all that a fingerprint was."""
    found = hashlib.sha256()
    for path, leaf in flatten(params).items():
        points = np.linspace(0, leaf.size - 1, 16).astype(np.int64)
        found.update(f"{path}{leaf.shape}".encode())
        found.update(np.asarray(leaf).reshape(-1)[points].astype(jnp.bfloat16).tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("toy-llama", random_init=True), jax.random.key(0))


@pytest.fixture(scope="module")
def older(base):
    return older_kind(base.params)


# --- what it sees ---


def test_every_value_counts(base):
    """All other values negated (16 values a leaf saw nothing of it), one value moved by a bit, two exchanged."""
    flat = flatten(base.params)
    path = "layers/mlp/up/kernel"
    leaf = np.asarray(flat[path])
    points = np.linspace(0, leaf.size - 1, 16).astype(int)
    negated, moved, exchanged = leaf.copy(), leaf.copy(), leaf.copy()
    negated.reshape(-1)[np.setdiff1d(np.arange(leaf.size), points)] *= -1
    moved[1, 3, 5] *= 1.01
    exchanged[0, 3, [4, 5]] = exchanged[0, 3, [5, 4]]
    swapped = leaf[::-1]  # whole layers
    found = {fingerprint(unflatten({**flat, path: value})) for value in (leaf, negated, moved, exchanged, swapped)}
    assert len(found) == 5
    assert older_kind(unflatten({**flat, path: negated})) == older_kind(base.params)


CHANGES = [
    {"rope_theta": 5e4},
    {"rms_norm_eps": 1e-5},
    {"num_attention_heads": 8, "head_dim": 4},
    {"rope_scaling": Llama3Scaling(factor=2.0)},
    {"rope_scaling": Llama3Scaling(factor=4.0)},
]


def test_the_config_counts_where_it_changes_the_function(base):
    found = {fingerprint(base.params, base.config), fingerprint(base.params)}
    for change in CHANGES:
        found.add(fingerprint(base.params, dataclasses.replace(base.config, **change)))
    assert len(found) == 2 + len(CHANGES)
    for change in ({"max_position_embeddings": 77}, {"tie_word_embeddings": True}):  # a limit; the leaves tell
        assert fingerprint(base.params, dataclasses.replace(base.config, **change)) == base.fingerprint
    near = float(np.float32(base.config.rms_norm_eps))  # as GGUF has it
    assert near != base.config.rms_norm_eps
    assert fingerprint(base.params, dataclasses.replace(base.config, rms_norm_eps=near)) == base.fingerprint
    bert = BertConfig(259, 32, 48, 2, 4)
    assert fingerprint(base.params, bert) != fingerprint(base.params, dataclasses.replace(bert, layer_norm_eps=1e-5))
    fresh = dataclasses.replace(bert, head="classification", num_labels=5, classifier_dropout=0.3)
    assert fingerprint(base.params, bert) == fingerprint(base.params, fresh)


def test_a_field_that_is_added_later_changes_no_fingerprint(base):
    later = dataclasses.make_dataclass("LlamaConfig", [("new", int, 3)], bases=(LlamaConfig,), frozen=True)
    values = {field.name: getattr(base.config, field.name) for field in dataclasses.fields(base.config)}
    assert fingerprint(base.params, later(**values)) == base.fingerprint
    assert fingerprint(base.params, later(**values, new=4)) != base.fingerprint


# --- sums ---


def sums_of(values):
    """`leaf_sums.sums` in NumPy, one value at a time in Python's integers."""
    found = []
    for first, *others in leaf_sums.FACTORS:
        total = 0
        for place, value in np.ndenumerate(values):
            bits = int(np.asarray(value, jnp.bfloat16).view(np.uint16))
            terms = zip(reversed(place), others, strict=False)
            x = (bits * first + sum(index * factor for index, factor in terms)) % 2**32
            for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
                x = (x ^ (x >> shift)) * factor % 2**32
            total += x ^ (x >> 16)
        found.append(total % 2**32)
    return found


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        *(("float32", shape) for shape in ((), (7,), (5, 6), (3, 14, 8), (2, 3, 4, 5))),
        ("bfloat16", (3, 14, 8)),
        ("float16", (3, 14, 8)),
    ],
)
def test_sums_by_hand_in_blocks_of_any_size(dtype, shape, monkeypatch):
    values = np.random.default_rng(0).normal(size=shape).astype(jnp.dtype(dtype))
    expected = sums_of(values)
    assert leaf_sums.sums_on_host(values).tolist() == expected
    for block in (1, 30, 40, 2**20):  # a row, some rows with and without a rest, everything
        monkeypatch.setattr(leaf_sums, "BLOCK", block)
        # a new function each time: the size of a block is no argument that jit sees
        assert jax.jit(lambda x: leaf_sums.sums(x))(values).tolist() == expected


def test_sums_of_shards_are_those_of_the_whole():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    values = np.random.default_rng(0).normal(size=(3, 8, 12)).astype(np.float32)
    expected = jax.jit(leaf_sums.sums)(values)
    for spec in (P(), P(None, "fsdp"), P(None, ("data", "fsdp"), "tensor"), P(None, None, ("tensor", "data"))):
        sharding = NamedSharding(mesh, spec)
        found = jax.jit(leaf_sums.sums, static_argnums=1)(jax.device_put(values, sharding), sharding)
        np.testing.assert_array_equal(found, expected)


def test_a_leaf_has_one_fingerprint_on_the_host_and_on_a_device(base, monkeypatch):
    leaves = {"a": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7, "b": np.full(5, 0.3, jnp.bfloat16)}
    small = fingerprint(leaves), base.fingerprint
    monkeypatch.setattr("lowrank_jax.core.trees.SMALL", 0)
    monkeypatch.setattr("lowrank_jax.bases.fingerprint.sums_on_host", None)
    assert (fingerprint(leaves), fingerprint(base.params, base.config)) == small


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_make_no_copy(dtype):
    """10 bytes a value of a block: a sixth of a leaf of 16 blocks in bfloat16."""
    leaf = jax.ShapeDtypeStruct((4, 2048, 2048), dtype)
    memory = jax.jit(leaf_sums.sums).lower(leaf).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < 12 * leaf_sums.BLOCK < leaf.size * leaf.dtype.itemsize / 2


# --- older fingerprints ---


def test_the_older_kind_is_within(base, older):
    assert base.fingerprint.endswith(f":{older}")
    assert same(older, base.fingerprint, "here")
    assert same(base.fingerprint, older, "here")
    assert not same(older.replace("e", "f"), base.fingerprint, "here")
    kind, digest, _ = base.fingerprint.split(":")
    assert not same(f"{kind}:{digest[::-1]}:{older}", base.fingerprint, "here")


def test_adapters_of_before_are_compared_as_such_and_said(base, older, tmp_path, capsys):
    def save(fingerprint):
        tree = {"adapters": {"a": np.ones(2, np.float32)}}
        save_adapter(tmp_path / "adapter", tree, {}, {}, {"name": "toy", "fingerprint": fingerprint})

    save(older)
    load_adapter(tmp_path / "adapter", base.fingerprint)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"the adapter in {tmp_path / 'adapter'} has an older fingerprint, of 16 values")
    save(base.fingerprint)
    load_adapter(tmp_path / "adapter", base.fingerprint)
    assert capsys.readouterr().out == ""
    for other in (fingerprint(base.params, dataclasses.replace(base.config, rope_theta=5e4)), older[::-1]):
        save(other)
        with pytest.raises(UserError, match=r"trained on toy .*, not on this base .*weights or config differ"):
            load_adapter(tmp_path / "adapter", base.fingerprint)


def test_checkpoints_of_before_are_resumed(base, older, tmp_path, capsys):
    trained, rest = {"a": jnp.ones(2)}, {"step": jnp.array(3)}
    with Checkpoints(tmp_path, 1, {"base": older, "config": "c"}) as checkpoints:
        checkpoints.save(3, trained, rest, {})
    with Checkpoints(tmp_path, 1, {"base": base.fingerprint, "config": "c"}) as checkpoints:
        assert checkpoints.restore(None, trained, rest)[3] == 3
    assert capsys.readouterr().out.count("has an older fingerprint") == 1
    for identity in ({"base": older[::-1], "config": "c"}, {"base": base.fingerprint, "config": "d"}):
        with Checkpoints(tmp_path, 1, identity) as checkpoints, pytest.raises(UserError, match="are of another run"):
            checkpoints.restore(None, trained, rest)


def test_an_edited_folder_has_another_fingerprint(untied_folder, tmp_path):
    values = json.loads((untied_folder / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(untied_folder / "model.safetensors")
    found = {load_base(BaseConfig(str(untied_folder))).fingerprint}
    for key in ("rope_theta", "rms_norm_eps"):
        changed = json.loads(json.dumps(values))
        holder = changed["rope_parameters"] if key in (changed.get("rope_parameters") or {}) else changed
        holder[key] *= 2
        (tmp_path / "config.json").write_text(json.dumps(changed))
        found.add(load_base(BaseConfig(str(tmp_path))).fingerprint)
    assert len(found) == 3
