"""The mesh and its path rules, on eight simulated devices: same numbers as on one, and the rules' shardings."""

import functools
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import partition
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.sharding.mesh import AXES, MeshConfig, batch_sharding, batch_share, check_batch, make_mesh
from lowrank_jax.sharding.rules import leaf_spec, shard_tree, state_shardings
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.schedule import ScheduleConfig, make_shape
from lowrank_jax.train.state import init_state, trainable_rules
from lowrank_jax.train.step import make_step

ROOT = Path(__file__).parents[2]
CONFIG = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=False, max_position_embeddings=32,
)  # fmt: skip


TARGETS = ("query", "up", "down")  # divided by columns and by rows, in attention and behind it
TOKENS = np.random.default_rng(0).integers(0, 64, (16, 12)).astype(np.int32)


@functools.cache
def initial():
    return jax.device_get(drawn(Llama(CONFIG), TOKENS)["params"])


@functools.cache
def run(mesh, method, trainable="adapters", steps=3, accumulate=2):
    model, params = Llama(CONFIG), initial()
    configs = [adapters.AdapterConfig(one, rank=2, targets=TARGETS) for one in method.split("+")]
    if "lin" in method:
        configs.append(adapters.AdapterConfig("lora", rank=2, targets=("embed",)))
    plan = adapters.make_plan(params, configs)
    variables = shard_tree(
        {"params": params, **jax.jit(functools.partial(adapters.create, plan))(jax.random.key(2))}, mesh
    )
    learnt, frozen = partition(variables, trainable_rules(trainable))
    tx = make_optimizer(OptimizerConfig(learning_rate=1e-2))
    state = jax.jit(lambda tree: init_state(tree, tx, 1e-2, 0))(learnt)
    layout = state_shardings(state, jax.tree.map(lambda x: x.sharding, learnt), mesh)
    state = jax.device_put(state, layout)
    step = make_step(
        next_token_objective(adapters.attach(model, plan), 48), tx, make_shape(ScheduleConfig(), 10), accumulate
    )
    step = jax.jit(step, donate_argnums=0, out_shardings=(layout, None))
    batch = jax.device_put({"tokens": TOKENS, "weights": np.ones(TOKENS.shape, np.float32)}, batch_sharding(mesh))
    for _ in range(steps):
        state, metrics = step(state, frozen, batch)
        jax.block_until_ready(metrics)  # steps in flight on two processes of four devices can deadlock
    return state, metrics, frozen


def alone(method, trainable):
    return run(make_mesh(devices=jax.devices()[:1]), method, trainable)


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        ("lora", (8, 1, 1)),
        # Adapters of the embedding follow its own axes, tensor first: a mesh with more of fsdp than of tensor.
        ("mora+lin", (1, 4, 2)),
    ],
)
def test_sharded_steps_equal_one_device(method, sizes):
    """A mesh of one axis and one of two; LoRA on (1, 4, 2) and the whole model on (2, 2, 2) are in the next test."""
    reference, metrics_alone, _ = alone(method, "adapters")
    state, metrics, frozen = run(make_mesh(MeshConfig(*sizes)), method)
    np.testing.assert_allclose(metrics["loss"], metrics_alone["loss"], rtol=1e-5)
    for path, leaf in flatten(state.trainable).items():
        np.testing.assert_allclose(leaf, flatten(reference.trainable)[path], atol=2e-4, err_msg=path)
    if sizes == (1, 4, 2):
        query = frozen["params"]["layers"]["attention"]["query"]["kernel"]
        assert query.addressable_shards[0].data.size * 8 == query.size


# Method, trained leaves and mesh, over two processes of four devices; the last takes one device of each. One axis lies
# between the processes: fsdp, data, tensor. Data with one device each is tested in experiments/test_processes.
RUNS = ("lora adapters 1 4 2", "none full 2 2 2", "mora+lin adapters 1 1 2")

STEPS_OF_ONE = """
import sys
folder, address, index, *runs = sys.argv[1:]
import jax
jax.distributed.initialize(address, 2, int(index))
import numpy as np
from lowrank_jax.core.paths import flatten
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh, replicated
from test_sharding import run
found = {}
for method, trainable, *sizes in map(str.split, runs):
    sizes = MeshConfig(*map(int, sizes))
    count = sizes.data * sizes.fsdp * sizes.tensor
    mesh = make_mesh(sizes, devices=jax.devices()[:: 8 // count])
    state, metrics, _ = run(mesh, method, trainable)
    found[f"{method}|loss"] = np.asarray(metrics["loss"])
    whole = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(state.trainable)
    found |= {f"{method}|{path}": np.asarray(leaf) for path, leaf in flatten(whole).items()}
if index == "0":
    np.savez(f"{folder}/found.npz", **found)
"""


def test_two_processes_equal_one_device(tmp_path):
    """On four devices of each or on one; scripts/compare_processes.py has every method on all their meshes."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    kept = [word for word in os.environ["XLA_FLAGS"].split() if "host_platform_device_count" not in word]
    paths = (ROOT, ROOT / "tests", Path(__file__).parent)
    environment = os.environ | {
        "XLA_FLAGS": " ".join([*kept, "--xla_force_host_platform_device_count=4"]),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "NPROC": "16",  # threads: with fewer, transfers between processes can wait for ever
    }
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", STEPS_OF_ONE, tmp_path, address, str(index), *RUNS],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        said = [worker.communicate(timeout=200)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], said
    with np.load(tmp_path / "found.npz") as found:
        for method, trainable, *_ in map(str.split, RUNS):
            reference, metrics, _ = alone(method, trainable)
            np.testing.assert_allclose(found[f"{method}|loss"], metrics["loss"], rtol=1e-5)
            for path, leaf in flatten(reference.trainable).items():
                np.testing.assert_allclose(found[f"{method}|{path}"], leaf, atol=2e-4, err_msg=path)


def test_adapters_inherit_their_kernels_axes():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    assert leaf_spec("params/layers/mlp/up/kernel", (2, 32, 48), mesh) == P(None, "fsdp", "tensor")
    assert leaf_spec("adapters/layers/mlp/up/a", (2, 32, 4), mesh) == P(None, "fsdp", None)
    assert leaf_spec("adapters/layers/mlp/up/b", (2, 4, 48), mesh) == P(None, None, "tensor")
    # Row-parallel kernels are divided along their rows by both axes, or by the first where only that divides them.
    assert leaf_spec("params/layers/mlp/down/kernel", (2, 48, 32), mesh) == P(None, ("tensor", "fsdp"), None)
    assert leaf_spec("params/layers/mlp/down/kernel", (2, 46, 32), mesh) == P(None, ("tensor",), None)
    assert leaf_spec("params/layers/mlp/down/kernel", (2, 33, 32), mesh) == P(None, None, None)
    assert leaf_spec("adapters/layers/mlp/down/a", (2, 48, 4), mesh) == P(None, ("tensor", "fsdp"), None)
    assert leaf_spec("adapters/layers/mlp/up/m", (2, 9, 9), mesh) == P()
    assert leaf_spec("params/layers/mlp_norm/scale", (2, 32), mesh) == P()
    assert leaf_spec("adapters/embed/a", (64, 4), mesh) == P("tensor", None)
    assert leaf_spec("adapters/embed/word/b", (4, 32), mesh) == P(None, "fsdp")
    assert leaf_spec("adapters/layers/mlp/down_kernel", (2, 32, 4), mesh) == P(None, "fsdp", None)
    assert leaf_spec("adapters/layers/attention/up_kernel", (2, 4, 32), mesh) == P(None, None, "fsdp")
    for name in ("down_bias", "up_bias", "norm_scale"):
        assert leaf_spec(f"adapters/layers/mlp/{name}", (2, 32), mesh) == P()
    # 33 does not divide by 2: that axis stays whole, the other is split
    assert leaf_spec("params/layers/mlp/up/kernel", (2, 33, 48), mesh) == P(None, None, "tensor")


def processes(shape, each):
    """A mesh whose devices, in order, belong to processes with `each` devices."""
    devices = np.empty(math.prod(shape), object)
    devices[:] = [SimpleNamespace(process_index=index // each) for index in range(len(devices))]
    return SimpleNamespace(shape=dict(zip(AXES, shape, strict=True)), devices=devices.reshape(shape))


@pytest.mark.parametrize(
    ("shape", "each", "shares"),
    [
        ((2, 1, 1), 1, [(0, 2), (1, 2)]),
        ((1, 1, 2), 1, [(0, 1), (0, 1)]),  # "tensor" divides weights between processes: the same rows
        ((2, 2, 2), 4, [(0, 2), (1, 2)]),
        ((1, 2, 4), 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
        ((1, 1, 8), 4, [(0, 1), (0, 1)]),
    ],
)
def test_processes_that_hold_the_same_rows_read_the_same_share(shape, each, shares, monkeypatch):
    mesh = processes(shape, each)
    for process, (index, count) in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert batch_share(mesh) == {"process_index": index, "process_count": count}


def test_a_mesh_that_gives_processes_unequal_shares():
    with pytest.raises(UserError, match=r"unequal shares.*divides the 2 devices of a process"):
        batch_share(processes((2, 1, 3), 2))


def test_moments_lie_beside_their_leaves():
    state, _, _ = run(make_mesh(MeshConfig(1, 4, 2)), "mora+lin")
    shardings = flatten(jax.tree.map(lambda x: x.sharding.spec, state.trainable))
    moments = state.opt_state[1].mu
    assert flatten(jax.tree.map(lambda x: x.sharding.spec, moments)) == shardings
    assert any(spec != P() for spec in shardings.values())


def test_meshes_and_batches_that_do_not_fit():
    with pytest.raises(UserError, match=r"needs 3 devices, 8 are here"):
        make_mesh(MeshConfig(3, 1, 1))
    with pytest.raises(UserError, match=r"one of them may be -1"):
        make_mesh(MeshConfig(-1, -1, 1))
    mesh = make_mesh(MeshConfig(2, 2, 2))
    check_batch(mesh, 16, 2)
    with pytest.raises(UserError, match=r"batch_size 10 does not divide.*use 8 or 16"):
        check_batch(mesh, 10, 2)
    with pytest.raises(UserError, match=r"no sharding rule matches"):
        leaf_spec("params/odd", (2, 2), mesh, rules=((r"a", ()),))
