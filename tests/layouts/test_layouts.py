"""Every layout and their compositions: undone they give what there was, on arrays, shapes, meshes and codes."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.layouts import unstacked
from lowrank_jax.layouts.base import compose
from lowrank_jax.layouts.fused import Fused
from lowrank_jax.layouts.run_time import layout_of
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.layouts.unstacked import Unstacked
from lowrank_jax.ops.fp8 import Fp8Config
from lowrank_jax.ops.quantized import dense, quantize

MESH = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
SPLIT = PartitionSpec(None, "fsdp", "tensor")
WHOLE = {"layers/ab": (("layers/a", 8), ("layers/b", 4))}
PARTS = {f"{top}/ab": ((f"{top}/a", 8), (f"{top}/b", 4)) for top in ("layers_0_1", "layers_2_2")}
LAYOUTS = {
    "none": compose(),
    "segments": Segments((2,)),
    "fused": Fused(WHOLE),
    "unstacked": Unstacked(),
    "fused and unstacked": layout_of(WHOLE, True),
    "all": compose(Segments((2,)), Fused(PARTS), Unstacked()),
}


def tree(sharded=False):
    flat = {
        "embed/embedding": jnp.ones((5, 4), jnp.bfloat16),
        "layers/a/kernel": jnp.arange(96, dtype=jnp.bfloat16).reshape(3, 4, 8),
        "layers/b/kernel": -jnp.arange(48, dtype=jnp.bfloat16).reshape(3, 4, 4),
        "layers/norm/scale": jnp.arange(12.0).reshape(3, 4),
    }
    if sharded:
        spec = {path: SPLIT if "kernel" in path else PartitionSpec() for path in flat}
        flat = {path: jax.device_put(leaf, NamedSharding(MESH, spec[path])) for path, leaf in flat.items()}
    return unflatten(flat)


def shapes(params):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)


@pytest.mark.parametrize("sharded", [False, True], ids=["one device", "mesh"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_undone_it_is_what_it_was(name, sharded):
    layout, params = LAYOUTS[name], tree(sharded)
    applied, abstract = layout.apply(params), layout.apply(shapes(params))
    assert jax.tree.structure(applied) == jax.tree.structure(abstract)
    back = layout.undo(applied)
    assert shapes(applied) == abstract or not sharded
    assert flatten(layout.undo(abstract)) == flatten(shapes(params))
    assert flatten(back).keys() == flatten(params).keys()
    for path, leaf in flatten(params).items():
        ours = flatten(back)[path]
        assert ours.dtype == leaf.dtype
        assert ours.sharding.is_equivalent_to(leaf.sharding, leaf.ndim), path
        np.testing.assert_array_equal(ours, leaf)


@pytest.mark.parametrize("layout", [Segments((1,)), Unstacked(), compose(Segments((1,)), Unstacked())])
def test_codes_come_back(layout):
    params = {"layers": {"up": {"kernel": quantize(jnp.linspace(-1, 1, 3 * 64 * 8).reshape(3, 64, 8), "int8")}}}
    back = layout.undo(layout.apply(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_stacks_go_one_by_one(monkeypatch):
    """A base may not fit twice: of those that were taken apart no stack is left when the next is."""
    params = unflatten({f"layers/{name}/kernel": jnp.ones((2, 4, 8)) for name in "abc"})
    held, left, each = [weakref.ref(leaf) for leaf in jax.tree.leaves(params)], [], unstacked._each

    def watched(leaf):
        left.append(sum(ref() is not None for ref in held))
        return each(leaf)

    monkeypatch.setattr(unstacked, "_each", watched)
    box = [params]
    del params
    compose(Unstacked()).apply(box.pop())
    assert left == [3, 2, 1]


@pytest.mark.parametrize("sharded", [False, True], ids=["one device", "mesh"])
def test_fp8_codes_are_joined_and_taken_apart(sharded):
    """Each part in the sharding that its shape says; what comes back stands for the same weights."""
    params, recipe = tree(sharded), Fp8Config(transposed="kept")

    specs = (PartitionSpec(None, "fsdp"), PartitionSpec(), PartitionSpec(None, None, "fsdp"))

    def codes(kernel):
        made = jax.jit(quantize, static_argnums=(1, 2))(kernel, "fp8", recipe)
        parts, structure = jax.tree.flatten(made)
        if sharded:
            parts = [jax.device_put(x, NamedSharding(MESH, spec)) for x, spec in zip(parts, specs, strict=True)]
        return structure.unflatten(parts)

    flat = {path: codes(leaf) if "kernel" in path else leaf for path, leaf in flatten(params).items()}
    params, layout = unflatten(flat), LAYOUTS["fused and unstacked"]
    abstract = layout.apply(shapes(params))
    applied = layout.apply(params)
    joined = applied["layers"]["ab"]["kernel"].each
    assert [one.shape for one in joined] == [(4, 12)] * 3
    assert shapes(applied) == abstract or not sharded
    back = flatten(layout.undo(applied))
    assert flatten(layout.undo(abstract)).keys() == back.keys()
    for path, leaf in flat.items():
        np.testing.assert_array_equal(dense(back[path]), dense(leaf), err_msg=path)
