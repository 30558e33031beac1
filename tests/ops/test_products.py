"""The product with a trained matrix: plain x W in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.ops.products import materialize_gradient, materialize_product, trained_matmul


@pytest.mark.parametrize("lead", [(), (5,), (2, 5), (2, 3, 5)])
def test_equals_the_plain_product(lead):
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=shape).astype(np.float32) for shape in ((*lead, 7), (7, 3), (*lead, 3)))

    def both(product, x, w, g):
        value, pull = jax.vjp(product, x, w)
        return value, pull(g)

    run = jax.jit(both, static_argnums=0)
    (got, gradients), (want, plain) = run(trained_matmul, x, w, g), run(jnp.matmul, x, w, g)
    np.testing.assert_array_equal(got, want)
    for ours, theirs in zip(gradients, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_under_vmap_over_trials_and_in_bfloat16():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in ((4, 2, 5, 7), (4, 7, 3)))

    def gradient(product):
        return jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.sin(product(x, w)).astype(jnp.float32))))(w, x)

    ours, theirs = (jax.jit(gradient, static_argnums=0)(product) for product in (trained_matmul, jnp.matmul))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=0.1)


def test_a_materialized_gradient_is_the_gradient():
    x = jnp.arange(6.0).reshape(2, 3)

    def loss(x, form):
        return jnp.sum(jnp.sin(form(x)) ** 2)

    np.testing.assert_array_equal(jax.grad(loss)(x, materialize_gradient), jax.grad(loss)(x, lambda y: y))
    many = jax.vmap(jax.grad(lambda x: loss(x, materialize_gradient)))(jnp.stack([x, -x]))  # trials
    np.testing.assert_allclose(many[1], jax.grad(loss)(-x, lambda y: y), rtol=1e-6)


def test_what_is_materialized_is_the_sum():
    x = jnp.arange(6.0).reshape(2, 3)

    def loss(x, call):
        return jnp.sum(jnp.sin(call(jnp.tanh, x) + jnp.sum(x)) ** 2)

    def plain(fn, x):
        return fn(x)

    assert loss(x, materialize_product) == loss(x, plain)
    np.testing.assert_allclose(jax.grad(loss)(x, materialize_product), jax.grad(loss)(x, plain), rtol=1e-6)
    many = jax.vmap(jax.grad(lambda x: loss(x, materialize_product)))(jnp.stack([x, -x]))  # trials
    np.testing.assert_allclose(many[1], jax.grad(loss)(-x, plain), rtol=1e-6)
