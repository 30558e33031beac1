"""Weights divided along an axis of the batch (mesh.fsdp): what the compiled step moves between devices are weights."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax import adapters
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.models.bert import Bert, BertConfig
from lowrank_jax.models.deberta import Deberta, DebertaConfig
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.ops.placement import rows, rows_stay, with_rows_in_place
from lowrank_jax.sharding.mesh import BATCH_AXES, MeshConfig, batch_sharding, make_mesh
from lowrank_jax.sharding.rules import shard_tree

BATCH, LENGTH = 20, 24
SHAPE = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=32,
)  # fmt: skip
MODELS = {
    "llama": lambda: Llama(LlamaConfig(**SHAPE)),
    "llama unrolled": lambda: Llama(LlamaConfig(**SHAPE, tie_word_embeddings=True), scan_unroll=2, remat="full"),
    "gpt2": lambda: GPT2(GPT2Config(**SHAPE)),
    "bert": lambda: Bert(BertConfig(**SHAPE)),
    "deberta": lambda: Deberta(DebertaConfig(**SHAPE, position_buckets=8, conv_kernel_size=3)),
}
MESH = functools.cache(lambda: make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2]))
MOVED = re.compile(r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def moved(name, in_place=True):
    """[(operation, elements)] of floats that the gradient's program moves between two devices."""
    model, tokens = MODELS[name](), np.zeros((BATCH, LENGTH), np.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig("lora", rank=2, targets=("all-linear",)))
    made = jax.eval_shape(functools.partial(adapters.create, plan), jax.random.key(1), params)
    trees = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), {"params": params, **made}))
    variables = shard_tree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), trees), MESH())
    apply_fn = adapters.attach(model, plan)
    if in_place:
        apply_fn = with_rows_in_place(apply_fn, MESH(), BATCH_AXES)
    learnt, frozen = partition(variables)

    def loss(learnt, frozen, tokens):
        return jnp.sum(jnp.sin(jax.tree.leaves(apply_fn(combine(learnt, frozen), tokens))[0]))

    tokens = jax.device_put(tokens, batch_sharding(MESH()))
    text = jax.jit(jax.grad(loss)).lower(learnt, frozen, tokens).compile().as_text()
    found = []
    for shapes, operation in MOVED.findall(text):
        sizes = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", shapes)
        found += [(operation, math.prod(map(int, size.split(",")))) for size in sizes]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_no_activation_of_the_whole_batch_is_moved(name):
    """Of a value [B, T, 32]: half a batch of tokens is more than any weight has, and is what stays."""
    found = moved(name)
    assert [one for one in found if one[0] == "all-gather"], "no weight was gathered: this test sees nothing"
    # What an embedding's columns give is exchanged: each device has half of the columns for every row.
    exchanged = [size for operation, size in found if operation == "all-to-all"]
    assert sum(exchanged) <= 2 * BATCH * LENGTH * 32
    assert max(size for operation, size in found if operation != "all-to-all") <= 64 * 48


def test_without_the_constraint_it_is():
    """What the constraint is for: seen with jax 0.10 and 0.11, on CPUs and GPUs."""
    assert max(size for operation, size in moved("llama", in_place=False) if operation != "all-to-all") > 64 * 48


def test_rows_stay_on_their_devices_and_cotangents_too():
    mesh = MESH()
    spec = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def doubled(x):
        with rows_stay(mesh, BATCH_AXES):
            return rows(x) * 2

    x = jnp.ones((4, 6))
    assert jax.jit(doubled)(x).sharding.is_equivalent_to(spec, 2)
    assert jax.jit(jax.grad(lambda x: doubled(x).sum()))(x).sharding.is_equivalent_to(spec, 2)
    np.testing.assert_array_equal(jax.jit(doubled)(jnp.ones((3, 2))), 2)  # an odd batch is left where it is
    assert rows(x) is x
