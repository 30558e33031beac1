"""Programs of the products with hand-written backward passes: no transposed cotangent, barriers where they belong."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.ops.capability import meant_for
from lowrank_jax.ops.products import materialize_gradient, materialize_product, trained_matmul
from lowrank_jax.ops.saved import saved_product


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


def test_other_platforms_keep_the_plain_product_of_a_tall_weight():
    """Also where the program is made for a device that is not here."""
    x, w = jnp.ones((16, 6)), jnp.ones((6, 2))

    def traced():
        return str(jax.make_jaxpr(lambda w, x: jax.vjp(trained_matmul, x, w)[1](x[:, :2]))(w, x))

    barriers = {}
    for platform in ("cpu", "gpu", "tpu"):
        with meant_for(SimpleNamespace(platform=platform)):
            barriers[platform] = traced().count("optimization_barrier")
    assert barriers == {"cpu": 2, "gpu": 1, "tpu": 1}


def test_a_materialize_gradient_stands_before_its_readers():
    def loss(x):
        return jnp.sum(jnp.sin(materialize_gradient(x)) ** 2)

    assert "optimization_barrier" in str(jax.make_jaxpr(jax.grad(loss))(jnp.arange(6.0).reshape(2, 3)))


def test_what_is_materialize_product_stands_before_the_sum_in_both_directions():
    def loss(x):
        return jnp.sum(jnp.sin(materialize_product(jnp.tanh, x) + jnp.sum(x)) ** 2)

    for fn, barriers in ((loss, 1), (jax.grad(loss), 3)):  # the value; its gradient; the gradient by x
        program = jax.jit(fn).lower(jnp.arange(6.0).reshape(2, 3)).as_text()
        assert program.count("optimization_barrier") == barriers


def test_a_saved_product_is_behind_a_barrier_only_where_gradients_are_taken():
    """One barrier for the value and one for its cotangent; without gradients, as in decoding, there is none."""

    def value(x):
        return jnp.sin(saved_product(x @ x, "up"))

    for fn, barriers in ((value, 0), (jax.grad(lambda x: jnp.sum(value(x))), 2)):
        assert str(jax.make_jaxpr(fn)(jnp.eye(2))).count("optimization_barrier") == barriers
