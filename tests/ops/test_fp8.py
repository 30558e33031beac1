"""FP8 kernels and their products: compared with the plain definition in numpy, outliers among the inputs too."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lowrank_jax.models.parts.layers import RMSNorm
from lowrank_jax.ops import fp8
from lowrank_jax.ops.fp8 import Fp8Config
from lowrank_jax.ops.quantized import FP8, dequantize, multiply, quantize

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2


def rounded(values, dtype=E4M3, axis=None):
    """The plain definition: to `dtype` and back, by the power of two at which the largest entry just fits."""
    values = np.asarray(values, np.float32)
    largest = np.abs(values).max(axis, keepdims=axis is not None)
    scale = np.exp2(np.ceil(np.log2(largest / np.float32(ml_dtypes.finfo(dtype).max)))).astype(np.float32)
    return (values / scale).astype(dtype).astype(np.float32) * scale


def normal(seed, *shape, scale=1.0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * np.float32(scale)


def test_codes_are_the_nearest_and_the_scale_is_a_power_of_two():
    weights = normal(0, 2, 48, 20, scale=0.02)
    kernel = quantize(jnp.asarray(weights, jnp.bfloat16), FP8, Fp8Config(transposed="kept"))
    assert (kernel.codes.dtype, kernel.dtype, kernel.shape) == (jnp.uint8, jnp.bfloat16, (2, 48, 20))
    assert kernel.scales.shape == (2, 1, 1)
    for layer in range(2):
        plain = rounded(np.float32(jnp.asarray(weights[layer], jnp.bfloat16)))
        np.testing.assert_array_equal(np.float32(dequantize(kernel)[layer]), plain)  # bfloat16 holds them exactly
        largest = np.abs(np.float32(fp8.numbers(kernel.codes[layer]))).max()
        assert 224 < largest <= 448
    np.testing.assert_array_equal(kernel.turned, kernel.codes.swapaxes(-1, -2))


@pytest.mark.parametrize(
    ("dtype", "transposed", "gradients"),
    [
        ("float32", "kept", "e5m2"),
        ("bfloat16", "step", "e4m3"),
        ("bfloat16", "step", "fixed"),
        ("float16", "step", "e4m3"),
    ],
)
def test_products_are_those_of_the_rounded_operands(dtype, transposed, gradients):
    """Forward and backward, a trial alone and beside one of 1,000 times its size."""
    recipe = Fp8Config(transposed=transposed, gradients=gradients)
    kernel = quantize(jnp.asarray(normal(0, 48, 20, scale=0.02)), FP8, recipe)
    x = jnp.asarray(normal(1, 2, 3, 5, 48) * np.float32([1, 1000]).reshape(2, 1, 1, 1), dtype)
    g = jnp.asarray(normal(2, 2, 3, 5, 20, scale=1e-3), dtype)

    @jax.jit
    def both(x, g):
        y, back = jax.vjp(lambda x: multiply(x, kernel), x)
        return y, back(g)[0]

    def coarse(g):
        if gradients == "fixed":
            return (np.float32(g) * 16).astype(E5M2).astype(np.float32) / 16
        return rounded(g, E4M3 if gradients == "e4m3" else E5M2)

    weights = np.asarray(dequantize(kernel, jnp.float32))
    for trial, (y, dx) in enumerate(zip(*jax.vmap(both)(x, g), strict=True)):
        for ours, alone, plain in (
            (y, both(x[trial], g[trial])[0], rounded(x[trial]) @ weights),
            (dx, both(x[trial], g[trial])[1], coarse(g[trial]) @ weights.T),
        ):
            assert ours.dtype == dtype
            bound = float(jnp.finfo(dtype).eps) * np.abs(plain).max()
            np.testing.assert_allclose(np.float32(ours), plain, atol=bound)
            np.testing.assert_allclose(np.float32(alone), np.float32(ours), atol=bound)


def test_weights_ahead_and_codes_behind():
    """The forward pass is that of the weights, the backward pass that of the codes; parts and joins are too."""
    weights, g = jnp.asarray(normal(0, 48, 20, scale=0.02), jnp.bfloat16), jnp.asarray(normal(2, 5, 20), jnp.bfloat16)
    x = jnp.asarray(normal(1, 5, 48), jnp.bfloat16)
    held, coded = (quantize(weights, FP8, Fp8Config(forward=forward)) for forward in ("weights", "codes"))
    for kernel, like, low in ((held, coded, 0), (held.columns(4, 12).beside([held.columns(4, 12)]), coded, 4)):
        y, back = jax.vjp(lambda x, kernel=kernel: multiply(x, kernel), x)
        whole = weights if not low else jnp.concatenate([weights[:, 4:12]] * 2, -1)
        np.testing.assert_array_equal(y, x @ whole)
        np.testing.assert_array_equal(dequantize(kernel), whole)
        like = like if not low else like.columns(4, 12).beside([like.columns(4, 12)])
        theirs = jax.vjp(lambda x, like=like: multiply(x, like), x)[1](g[:, : whole.shape[1]])[0]
        np.testing.assert_array_equal(back(g[:, : whole.shape[1]])[0], theirs)


def test_outliers_among_the_inputs_cost_no_accuracy():
    """A few channels of 1,000 times the others' size; and by row, a token of any size."""
    weights, x = normal(0, 64, 96, scale=0.02), normal(1, 35, 64)

    def error(x, weights, **recipe):
        kernel = quantize(jnp.asarray(weights), FP8, Fp8Config(**recipe))
        exact = x @ np.asarray(dequantize(kernel))
        off = np.asarray(multiply(jnp.asarray(x), kernel)) - exact
        return np.linalg.norm(off[1:]) / np.linalg.norm(exact[1:])

    ordinary, channels, token = error(x, weights), x.copy(), x.copy()
    assert 0.02 < ordinary < 0.03
    channels[:, [3, 17]] *= 1e3
    small = weights.copy()
    small[[3, 17]] /= 1e3  # otherwise the outliers make the sums alone
    assert error(channels, small) < 1.02 * ordinary
    token[0] *= 1e3
    assert error(token, weights) < 1.02 * ordinary
    token[0] *= 1e3
    assert error(token, weights) > 0.5
    assert error(token, weights, activations="row") < 1.02 * ordinary


def test_a_norm_bounds_what_it_makes():
    """No entry exceeds the bound, however large an outlier; and a scale of the bound costs no accuracy beside it."""
    norm, x = RMSNorm(1e-6, offset=True), normal(1, 33, 64)
    x[0, 5], x[1:, 9] = 1e6, 1e3 * x[1:, 9]
    variables = {"params": {"offset": jnp.asarray(normal(2, 64))}}
    y, bound = norm.apply(variables, jnp.asarray(x)), norm.apply(variables, method="bound")
    largest = float(jnp.abs(y).max())
    assert largest <= float(bound) <= 4 * largest
    weights = normal(0, 64, 96, scale=0.02)
    weights[9] /= 1e3  # otherwise the outliers make the sums alone
    exact = np.asarray(y) @ rounded(weights)

    def error(bound, **recipe):
        off = np.asarray(multiply(y, quantize(jnp.asarray(weights), FP8, Fp8Config(**recipe)), bound)) - exact
        return np.linalg.norm(off[1:]) / np.linalg.norm(exact[1:])

    measured = error(None, activations="bound")
    assert measured == error(bound) == error(None)  # without a bound, or where nobody asks for it
    assert 0.02 < measured < 0.03
    assert error(bound, activations="bound") < 1.02 * measured
    assert error(1e6 * bound, activations="bound") > 0.5  # it is read


def test_nothing_and_what_is_not_finite():
    product = jax.jit(multiply)
    x = jnp.ones((2, 8))
    assert not np.asarray(product(x, quantize(jnp.zeros((8, 4)), FP8))).any()
    kernel = quantize(jnp.ones((8, 4)), FP8)
    assert not np.asarray(product(0 * x, kernel)).any()
    assert np.isnan(np.asarray(product(x.at[1, 2].set(jnp.nan), kernel)[1])).all()
    assert not np.isfinite(np.asarray(product(x.at[1, 2].set(jnp.inf), kernel)[1])).any()
    fixed = quantize(jnp.ones((8, 4)), FP8, Fp8Config(gradients="fixed"))
    g = jnp.zeros((2, 4)).at[0, 0].set(3_584.0).at[1, 0].set(4_100.0)  # the last that its scale holds, and one beyond
    dx = np.asarray(jax.jit(lambda g: jax.vjp(lambda x: multiply(x, fixed), x)[1](g)[0])(g))
    np.testing.assert_array_equal(dx[0], 3_584)
    assert not np.isfinite(dx[1]).any()


def test_kernels_side_by_side_are_the_same_weights():
    """One scale for all, the largest; codes that it makes too small lose what nobody sees."""
    parts = [quantize(jnp.asarray(normal(i, 2, 16, 8, scale=0.02 * 4**i)), FP8, Fp8Config(transposed="kept"))
             for i in range(3)]  # fmt: skip
    whole = parts[0].beside(parts[1:])
    for i, part in enumerate(parts):
        back = whole.columns(8 * i, 8 * i + 8)
        np.testing.assert_array_equal(back.turned, back.codes.swapaxes(-1, -2))
        bound = np.asarray(whole.scales) * 2.0**-10
        assert (np.abs(np.asarray(dequantize(back)) - np.asarray(dequantize(part))) <= bound).all()
    np.testing.assert_array_equal(dequantize(back), dequantize(part))
