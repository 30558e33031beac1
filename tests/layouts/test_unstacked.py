"""Layers as separate arrays: unstacked and restacked, on shapes and meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowrank_jax.core.paths import unflatten
from lowrank_jax.layouts.unstacked import Layers, Unstacked, compile_unstack
from lowrank_jax.ops.quantized import Quantized, quantize

MESH = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def tree(layers=3):
    stack = jnp.arange(layers * 4 * 8, dtype=jnp.float32).reshape(layers, 4, 8)
    return {
        "embed": {"embedding": jnp.ones((5, 4))},
        "layers": {"mlp": {"up": {"kernel": stack}}, "norm": {"scale": jnp.arange(layers * 4.0).reshape(layers, 4)}},
    }


def test_there_and_back():
    apart = Unstacked().apply(tree())
    kernel = apart["layers"]["mlp"]["up"]["kernel"]
    assert isinstance(kernel, Layers)
    assert [x.shape for x in kernel.each] == [(4, 8)] * 3
    assert apart["embed"]["embedding"].shape == (5, 4)
    jax.tree.map(np.testing.assert_array_equal, Unstacked().undo(apart), tree())


def test_segments_are_stacks_too_and_codes_stay():
    apart = Unstacked().apply(
        unflatten({"layers_0_1/up/kernel": jnp.ones((2, 4, 8)), "layers_2_2/up/kernel": jnp.ones((1, 4, 8))})
    )
    assert [len(node["up"]["kernel"].each) for node in apart.values()] == [2, 1]
    codes = Unstacked().apply(unflatten({"layers/up/kernel": quantize(jnp.ones((2, 64, 8)), "int8")}))
    assert isinstance(codes["layers"]["up"]["kernel"], Quantized)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec(None, "fsdp", None)])
def test_shards_stay_where_they_are(spec):
    sharding = NamedSharding(MESH, spec)
    stacked = jax.device_put(jnp.arange(96.0).reshape(3, 4, 8), sharding)
    shapes = Unstacked().apply(
        unflatten({"layers/up/kernel": jax.ShapeDtypeStruct(stacked.shape, stacked.dtype, sharding=sharding)})
    )
    compile_unstack(shapes)
    got = Unstacked().apply(unflatten({"layers/up/kernel": stacked}))["layers"]["up"]["kernel"].each
    for i, (ours, shape) in enumerate(zip(got, shapes["layers"]["up"]["kernel"].each, strict=True)):
        assert ours.sharding == shape.sharding == NamedSharding(MESH, PartitionSpec(*spec[1:]))
        np.testing.assert_array_equal(ours, stacked[i])
