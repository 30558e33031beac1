"""Counted products: known shapes, loops, branches and programs inside programs."""

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.ops.flops import product_flops

X, W = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((7, 3), jnp.float32)
ONE = 2 * 5 * 7 * 3


def test_a_product_and_its_gradients():
    assert product_flops(jnp.matmul, X, W) == ONE
    assert product_flops(jax.value_and_grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1)), X, W) == 3 * ONE
    assert product_flops(lambda x, w: x.sum() + w.sum(), X, W) == 0


def test_batches_of_products():
    stacked = jax.ShapeDtypeStruct((4, 7, 3), jnp.float32)
    assert product_flops(lambda x, w: jnp.einsum("nd,bdf->bnf", x, w), X, stacked) == 4 * ONE
    assert product_flops(jax.vmap(jnp.matmul, (None, 0)), X, stacked) == 4 * ONE


def test_inside_jit_remat_scan_and_cond():
    def layer(x, w):
        return jax.checkpoint(jax.jit(lambda x: x @ w @ w.T))(x), None

    stacked = jax.ShapeDtypeStruct((6, 7, 3), jnp.float32)
    assert product_flops(lambda x, w: jax.lax.scan(layer, x, w), X, stacked) == 6 * 2 * ONE
    assert product_flops(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x[:, :3]), X, W) == ONE


def test_a_loop_without_a_count_is_refused():
    def loop(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ w @ w.T, x)

    with pytest.raises(ValueError, match="while"):
        product_flops(loop, X, W)
