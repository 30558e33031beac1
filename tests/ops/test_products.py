"""The product with a trained matrix: plain x W in value and gradient, without transposed copies of its cotangent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.ops.products import materialize_gradient, materialize_product, trained_matmul


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (2, 3, 5)])
def test_equals_the_plain_product(lead):
    keys = jax.random.split(jax.random.key(0), 3)
    x, w = jax.random.normal(keys[0], (*lead, 7)), jax.random.normal(keys[1], (7, 3))
    g = jax.random.normal(keys[2], (*lead, 3))
    got, pull = jax.vjp(trained_matmul, x, w)
    want, plain = jax.vjp(jnp.matmul, x, w)
    np.testing.assert_array_equal(got, want)
    for ours, theirs in zip(pull(g), plain(g), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_under_vmap_over_trials_and_in_bfloat16():
    x = jax.random.normal(jax.random.key(0), (4, 2, 5, 7), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (4, 7, 3), jnp.bfloat16)

    def gradient(product):
        return jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w)).astype(jnp.float32))))(w, x)

    ours, theirs = gradient(trained_matmul), gradient(jnp.matmul)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.1)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU backend")
def test_the_cotangent_is_not_transposed():
    """[48, 8 x 16] of dL/dy [8, 16, 48]: there for the plain product, or the test sees nothing."""
    x, w = jax.ShapeDtypeStruct((8, 16, 32), jnp.float32), jax.ShapeDtypeStruct((32, 48), jnp.float32)

    def compiled(product):
        return jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w))))).lower(w, x).compile().as_text()

    assert "f32[48,128]" in compiled(jnp.matmul)
    assert "f32[48,128]" not in compiled(trained_matmul)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU backend")
@pytest.mark.parametrize(("shape", "made"), [((32, 8), (8, 32)), ((8, 32), (8, 32))])
def test_the_gradient_of_a_tall_weight_is_made_wide(shape, made):
    x, w = jax.ShapeDtypeStruct((128, shape[0]), jnp.float32), jax.ShapeDtypeStruct(shape, jnp.float32)

    def products(product):
        step = jax.jit(jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w)))))
        return re.findall(
            r"= (f32\[\S+\])\{\S+ dot\(.*lhs_contracting_dims=\{0\}", step.lower(w, x).compile().as_text()
        )

    assert products(trained_matmul) == [f"f32[{made[0]},{made[1]}]"]
    assert products(jnp.matmul) == [f"f32[{shape[0]},{shape[1]}]"]  # or there is nothing to do by hand any more


def test_other_platforms_keep_the_plain_product_of_a_tall_weight(monkeypatch):
    x, w = jnp.ones((16, 6)), jnp.ones((6, 2))

    def traced():
        return str(jax.make_jaxpr(lambda w, x: jax.vjp(trained_matmul, x, w)[1](x[:, :2]))(w, x))

    barriers = {}
    for platform in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        barriers[platform] = traced().count("optimization_barrier")
    assert barriers == {"cpu": 2, "gpu": 1, "tpu": 1}


def test_a_materialize_gradient_is_the_gradient_and_stands_before_its_readers():
    x = jnp.arange(6.0).reshape(2, 3)

    def loss(x, form):
        return jnp.sum(jnp.sin(form(x)) ** 2)

    np.testing.assert_array_equal(jax.grad(loss)(x, materialize_gradient), jax.grad(loss)(x, lambda y: y))
    assert "optimization_barrier" in str(jax.make_jaxpr(lambda x: jax.grad(loss)(x, materialize_gradient))(x))
    many = jax.vmap(jax.grad(lambda x: loss(x, materialize_gradient)))(jnp.stack([x, -x]))  # trials
    np.testing.assert_allclose(many[1], jax.grad(loss)(-x, lambda y: y), rtol=1e-6)


def test_what_is_materialize_product_is_the_sum_and_stands_before_it_in_both_directions():
    x = jnp.arange(6.0).reshape(2, 3)

    def loss(x, call):
        return jnp.sum(jnp.sin(call(jnp.tanh, x) + jnp.sum(x)) ** 2)

    def plain(fn, x):
        return fn(x)

    assert loss(x, materialize_product) == loss(x, plain)
    np.testing.assert_allclose(jax.grad(loss)(x, materialize_product), jax.grad(loss)(x, plain), rtol=1e-6)
    for fn, barriers in ((loss, 1), (jax.grad(loss), 3)):  # the value; its gradient; the gradient by x
        program = jax.jit(fn, static_argnums=1).lower(x, materialize_product).as_text()
        assert program.count("optimization_barrier") == barriers
    many = jax.vmap(jax.grad(lambda x: loss(x, materialize_product)))(jnp.stack([x, -x]))  # trials
    np.testing.assert_allclose(many[1], jax.grad(loss)(-x, plain), rtol=1e-6)
