"""A base that is quantised while it is read: the kernels of layers alone, by leaf, and the published fingerprint."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax.bases import codes
from lowrank_jax.bases.base import BaseConfig, abstract_base, export_params, load_base, redraw
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import count, is_coded, nbytes
from lowrank_jax.ops.fp8 import RECIPE, Fp8Config
from lowrank_jax.ops.quantized import Quantized, dense_tree, dequantize, quantize
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh
from lowrank_jax.sharding.rules import leaf_spec

PICO = BaseConfig("pico-llama")


@pytest.fixture(scope="module")
def published():
    return load_base(PICO)


def by_rules(mesh):
    return lambda path, shape: NamedSharding(mesh, leaf_spec(f"params/{path}", shape, mesh))


def described(tree):
    return {
        (path, i): (part.shape, part.dtype, part.sharding)
        for path, leaf in flatten(tree).items()
        for i, part in enumerate(jax.tree.leaves(leaf))
    }


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_layers_kernels_are_codes_of_the_published_ones(published, kind):
    base = load_base(BaseConfig("pico-llama", quantize=kind))
    assert base.fingerprint == published.fingerprint
    held = flatten(base.params)
    codes = {path for path, leaf in held.items() if isinstance(leaf, Quantized)}
    assert codes == {path for path in held if path.startswith("layers/") and path.endswith("/kernel")}
    again, whole = jax.jit(lambda leaf: dequantize(quantize(leaf, kind))), jax.jit(dequantize)
    for path, leaf in flatten(published.params).items():
        assert held[path].shape == leaf.shape
        if path in codes:
            np.testing.assert_allclose(whole(held[path]), again(leaf), atol=1e-6)
        else:
            np.testing.assert_array_equal(held[path], leaf)
    assert count(base.params) == count(published.params)
    assert nbytes(base.params) < nbytes(published.params) / (2.5 if kind == "int8" else 3.5)


@pytest.mark.parametrize(("kind", "random"), [("nf4", False), ("fp8", True)])
def test_shapes_without_weights_are_those_with_them(kind, random):
    """On a mesh, where codes and scales are split as the kernel is, as far as they divide."""
    sharding_fn = by_rules(make_mesh(MeshConfig(2, 2, 2)))
    kept = Fp8Config(keep=("down",)) if kind == "fp8" else RECIPE
    name = "toy-llama" if random else "pico-llama"
    config = BaseConfig(name, dtype="bfloat16", quantize=kind, fp8=kept, random_init=random)
    base = load_base(config, jax.random.key(0), sharding_fn)
    assert described(abstract_base(config, sharding_fn).params) == described(base.params)
    query = flatten(base.params)["layers/attention/query/kernel"]
    assert query.codes.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.dtype == jnp.bfloat16
    plain = [path for path, leaf in flatten(base.params).items() if path.endswith("/kernel") and not is_coded(leaf)]
    assert plain == [f"layers/mlp/{name}/kernel" for name in kept.keep]


def test_one_leaf_is_whole_at_a_time(monkeypatch):
    """Each kernel is quantised before the next is read: the published ones are gone by then."""
    whole, most = [], []

    def watched(kernel, kind, recipe):
        if not isinstance(kernel, jax.core.Tracer):
            raise AssertionError("quantised outside of jit")
        return quantize(kernel, kind, recipe)

    def held(path, leaf, *rest, inner=codes.quantize_leaf):
        gc.collect()
        most.append(sum(ref() is not None for ref in whole))
        if "kernel" in path and path.startswith("layers/"):
            whole.append(weakref.ref(leaf))
        return inner(path, leaf, *rest)

    monkeypatch.setattr(codes, "quantize", watched)
    monkeypatch.setattr("lowrank_jax.bases.base.quantize_leaf", held)
    gc.collect()
    gc.freeze()  # a collection then looks at what the load made alone, and takes no 0.3 s a leaf late in the suite
    try:
        load_base(BaseConfig("pico-llama", quantize="int8"))
    finally:
        gc.unfreeze()
    assert len(whole) == 7
    assert max(most) == 0


def test_random_weights_are_codes_of_the_same_draw():
    key = jax.random.key(3)
    plain = load_base(BaseConfig("toy-llama", random_init=True), key)
    base = load_base(BaseConfig("toy-llama", random_init=True, quantize="nf4"), key)
    assert base.fingerprint == plain.fingerprint
    kernel = flatten(plain.params)["layers/mlp/up/kernel"]
    whole = jax.jit(dequantize)(flatten(base.params)["layers/mlp/up/kernel"])
    np.testing.assert_allclose(whole, jax.jit(lambda leaf: dequantize(quantize(leaf, "nf4")))(kernel), atol=1e-6)
    again = redraw(base, key)
    assert jax.tree.structure(again["layers/mlp/up/kernel"]) == jax.tree.structure(
        flatten(base.params)["layers/mlp/up/kernel"]
    )
    np.testing.assert_array_equal(
        again["layers/mlp/up/kernel"].codes, flatten(base.params)["layers/mlp/up/kernel"].codes
    )


def test_files_of_weights_hold_no_codes(tmp_path):
    base = load_base(BaseConfig("pico-llama", quantize="int8"))
    with pytest.raises(UserError, match=r"layers/.* is stored as codes"):
        export_params(base.params, base.config, tmp_path / "model")
    export_params(jax.jit(dense_tree)(base.params), base.config, tmp_path / "model")


def test_an_unknown_kind_is_named_before_anything_is_read():
    for start in (abstract_base, load_base):
        with pytest.raises(UserError, match=r"unknown base\.quantize 'int4'; did you mean int8"):
            start(BaseConfig("no/where", quantize="int4"))
