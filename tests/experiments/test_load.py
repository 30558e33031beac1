"""`experiments.load` measures a base model's loading, and the loading keeps to its bound."""

import ctypes
import functools
import gc
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.bench.load import ResidentPeak
from lowrank_jax.interop import keymap
from lowrank_jax.interop.keymap import IDENTITY, TRANSPOSE, Row, load
from lowrank_jax.interop.readers import open_checkpoint


@pytest.fixture(scope="module", autouse=True)
def settled():
    """A collection then looks at what a test made alone, and takes no 0.9 s late in the suite."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def optimised(monkeypatch):
    """Programs are compiled with optimisations, as a user's are; without them, a test takes 18 s with jax 0.11."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=options))
    keymap._updater.cache_clear()
    yield
    keymap._updater.cache_clear()


def forget(params):
    """Gives the leaves and what earlier tests have freed back to the system: none may go during a measurement."""
    for leaf in jax.tree.leaves(params):
        leaf.block_until_ready().delete()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def test_load_prints_what_it_measured(program):
    ended = program("load", "--base=pico-llama", "--dtype=float32")
    assert ended.status == 0, ended.err
    record = json.loads(ended.out)
    assert record["params_gib"] == round(3_304_448 * 4 / 2**30, 3)
    assert record["parameters"] == 3_304_448
    assert record["seconds"] > 0
    assert 0 < record["largest_shard_gib"] <= record["params_gib"]


def test_load_of_a_mesh_adds_to_a_file(program, tmp_path):
    shards = []
    for words in ((), ("--fsdp=2", "--dtype=bfloat16")):
        assert program("load", "--base=pico-llama", f"--out={tmp_path}/deep/load.json", *words).status == 0
        shards.append(json.loads((tmp_path / "deep" / "load.json").read_text())["records"][-1]["largest_shard_gib"])
    assert shards[1] == pytest.approx(shards[0] / 2, abs=1e-3)


@pytest.mark.parametrize(("dtype", "devices", "layers"), [("bfloat16", 1, 40), ("float32", 2, 40)])
@pytest.mark.usefixtures("optimised")
def test_the_host_holds_no_second_copy_of_a_leaf(tmp_path, dtype, devices, layers):
    """Shards of 80 MiB: more than malloc ever keeps for later (32), so each copy shows in resident pages."""
    row = Row("{layer}.w", "layers/w/kernel", (1024, 1024), TRANSPOSE)
    save_file({key: np.ones(row.shape, np.float32) for key in row.sources(layers)}, tmp_path / "model.safetensors")
    reader = open_checkpoint(tmp_path)
    mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "fsdp"))
    sharding_fn = (lambda path, shape: spec) if devices > 1 else None
    forget(load(reader, [row], layers, dtype, sharding_fn))  # what is compiled stays
    with ResidentPeak() as peak:
        leaf = load(reader, [row], layers, dtype, sharding_fn)["layers"]["w"]["kernel"]
    assert leaf.nbytes == layers * 2**20 * leaf.dtype.itemsize
    # Beside the leaf there is room for 6 (bfloat16) or 12 (float32) of the file's 40 tensors.
    assert 0.9 * leaf.nbytes < peak.bytes < 1.3 * leaf.nbytes


@pytest.mark.parametrize("transform", [IDENTITY, TRANSPOSE], ids=["embedding", "head"])
@pytest.mark.usefixtures("optimised")
def test_the_host_holds_less_than_a_shard_of_an_unstacked_leaf(tmp_path, transform):
    """Shards of 80 MiB, cut across the file's rows and along them."""
    row = Row("w", "w/kernel", (40 * 1024, 1024), transform)
    save_file({"w": np.ones(row.shape, np.float32)}, tmp_path / "model.safetensors")
    reader = open_checkpoint(tmp_path)
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    forget(load(reader, [row], 1, "float32", lambda path, shape: spec))  # what is compiled stays
    with ResidentPeak() as peak:
        leaf = load(reader, [row], 1, "float32", lambda path, shape: spec)["w"]["kernel"]
    shard = leaf.nbytes // 2
    assert leaf.addressable_shards[0].data.nbytes == shard == 80 * 2**20
    assert 1.8 * shard < peak.bytes < (2 + 0.9) * shard


def test_load_wants_a_base(program):
    ended = program("load")
    assert ended.status == 2
    assert "--base=FOLDER" in ended.err
