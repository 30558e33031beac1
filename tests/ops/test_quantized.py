"""Quantised kernels: compared with brute force, qwix and the published levels; their product, its gradient and size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import count, nbytes, partition
from lowrank_jax.ops import quantized
from lowrank_jax.ops.quantized import BLOCK, GROUP, INT8, NF4, block_scales, dense_tree, dequantize, multiply, quantize

encode, decode = jax.jit(quantize, static_argnums=1), jax.jit(dequantize, static_argnums=1)

# bitsandbytes' create_normal_map and QLoRA's appendix E.
PUBLISHED = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
SHAPES = [(3, 128, 512), (2, 100, 300), (64, 8), (1, 5, 3)]  # whole blocks and groups, and broken ones


def weights(shape, scale=0.02):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32) * scale
    values.reshape(-1)[7] *= 30  # an outlier
    return values


def unpack(kernel):
    """Codes [*stack, padded d_in, d_out] as documented: row 2i in the low half of row i, row 2i + 1 in the high."""
    packed = np.asarray(kernel.codes)
    out = np.empty((*packed.shape[:-2], 2 * packed.shape[-2], packed.shape[-1]), np.uint8)
    out[..., 0::2, :], out[..., 1::2, :] = packed & 15, packed >> 4
    return out


def in_blocks(values):
    """[*stack, blocks, BLOCK, d_out], zeros behind the last row."""
    rows = -values.shape[-2] % BLOCK
    padded = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, rows), (0, 0)])
    return padded.reshape(*values.shape[:-2], -1, BLOCK, values.shape[-1])


def test_levels_are_the_published_ones():
    np.testing.assert_array_equal(np.float32(quantized.LEVELS), np.float32(PUBLISHED))


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_codes_are_the_nearest_levels(shape):
    values = weights(shape)
    kernel = encode(values, NF4)
    blocks = in_blocks(values)
    largest = np.abs(blocks).max(-2, keepdims=True)
    distance = np.abs((blocks / largest)[..., None] - np.float32(PUBLISHED))
    # A padded column of zeros has no largest; all its levels are the exact zero, number 7.
    expected = np.where(largest > 0, distance.argmin(-1), 7)
    np.testing.assert_array_equal(in_blocks(unpack(kernel)), expected)
    assert kernel.shape == shape
    assert kernel.ndim == len(shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_scales_are_eight_bit_codes_of_groups(shape):
    """Their fourth roots are off by half a step at most, an even 255th from a group's smallest to its largest."""
    values = weights(shape)
    kernel = encode(values, NF4)
    roots = np.abs(in_blocks(values)).max(-2) ** 0.25
    padded = np.pad(roots, [(0, 0)] * (roots.ndim - 1) + [(0, -shape[-1] % GROUP)], mode="edge")
    groups = padded.reshape(*roots.shape[:-1], -1, GROUP)
    step = (groups.max(-1) - groups.min(-1)) / 255
    np.testing.assert_allclose(kernel.least, groups.min(-1), rtol=1e-5)
    np.testing.assert_allclose(kernel.steps, step, atol=1e-6)
    error = np.abs(np.asarray(block_scales(kernel)) ** 0.25 - roots)
    assert (error <= np.repeat(step, GROUP, -1)[..., : shape[-1]] * 0.5001 + 1e-6).all()
    assert kernel.scales.dtype == jnp.uint8


@pytest.mark.parametrize("outlier", [0.0, 1e-30, 10.0, 50.0, 250.0, 1000.0])
def test_nf4_keeps_the_neighbours_of_an_extreme_weight(outlier):
    """Of a group with one weight of so many deviations, the others are as near as without it.

    0.092 is what bitsandbytes' dynamic map leaves at 250; even steps of the scales left 0.2.
    """
    values = np.random.default_rng(0).normal(size=(64, GROUP)).astype(np.float32)
    ordinary = np.asarray(decode(encode(values, NF4))) - values
    if outlier > 1:
        values[3, 5] = outlier
    else:
        values[:, 5] = outlier  # the other end: a whole block of next to nothing
    off = np.asarray(decode(encode(values, NF4))) - values
    error, before = (np.sqrt(np.mean(np.delete(found, 5, 1) ** 2)) for found in (off, ordinary))
    assert error < 0.0935
    assert error < 1.015 * before
    assert outlier > 1 or np.abs(off[:, 5]).max() <= outlier


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_codes_are_the_nearest_integers(shape):
    values = weights(shape)
    kernel = encode(values, INT8)
    steps = np.abs(values).max(-2, keepdims=True) / 127
    assert np.abs(np.asarray(decode(kernel)) - values).max() <= steps.max() * 0.5001
    exact = values / steps
    off = np.asarray(kernel.codes, int) != np.rint(exact)
    distance = np.abs(exact - np.asarray(kernel.codes, int))
    assert (distance[off] < 0.501).all()  # a tie, which float32 may break either way
    assert off.mean() < 1e-3


@pytest.mark.parametrize(("kind", "options"), [(NF4, {"tiled_axes": {1: BLOCK}}), (INT8, {})])
def test_qwix_has_the_same_codes(kind, options):
    """Its int8 stretches to 127.5 steps, ours to 127."""
    qwix = pytest.importorskip("qwix")
    values = jnp.asarray(weights((3, 128, 96)))
    theirs = qwix.quantize(values, kind, channelwise_axes=[0, 2], **options)
    ours = encode(values, kind)
    if kind == NF4:
        np.testing.assert_array_equal(unpack(ours), np.asarray(theirs.qvalue.astype(jnp.uint8)))
        error = np.abs(np.asarray(block_scales(ours)) - np.asarray(theirs.scale))
        assert error.max() < 0.01 * np.asarray(theirs.scale).max()
    else:
        codes = np.asarray(theirs.qvalue, np.float32) * np.asarray(theirs.scale)
        assert np.abs(codes - np.asarray(decode(ours))).max() < 1.01 * np.asarray(ours.scales).max()


@pytest.mark.parametrize(("kind", "bits", "error"), [(INT8, 8.13, 0.012), (NF4, 4.14, 0.11)])
def test_bits_and_error_of_normal_weights(kind, bits, error):
    """4 + 8/64 + 64/(64 * 256) bits, and nf4's error of 9% of a normal weight's deviation: QLoRA's section 3."""
    values = np.random.default_rng(1).normal(size=(2, 512, 1024)).astype(np.float32)
    kernel = encode(values, kind)
    assert nbytes({"w": kernel}) * 8 / values.size < bits
    assert count({"w": kernel}) == values.size
    off = np.asarray(decode(kernel)) - values
    assert error / 2 < np.sqrt(np.mean(off**2)) < error


@pytest.mark.parametrize("kind", [INT8, NF4])
def test_a_stack_is_its_layers(kind):
    values = jnp.asarray(weights((3, 70, 20)))
    stack = encode(values, kind)
    for i in range(3):
        one = encode(values[i], kind)
        for ours, whole in zip(jax.tree.leaves(one), jax.tree.leaves(stack), strict=True):
            np.testing.assert_allclose(ours, whole[i], rtol=1e-6)
    _, layers = jax.lax.scan(lambda carry, layer: (carry, dequantize(layer)), 0, stack)
    np.testing.assert_allclose(layers, decode(stack), rtol=1e-6)


@pytest.mark.parametrize("kind", [INT8, NF4])
def test_zeros_stay_zeros_and_types_come_back(kind):
    values = jnp.zeros((2, 64, 8), jnp.bfloat16).at[1, :, 1].set(0.5)
    tree = dense_tree({"a": {"kernel": encode(values, kind)}, "b": values})
    assert tree["a"]["kernel"].dtype == jnp.bfloat16
    assert tree["b"] is values
    np.testing.assert_allclose(np.float32(tree["a"]["kernel"]), np.float32(values), atol=0.003)
    assert not np.asarray(tree["a"]["kernel"][..., 2:]).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [INT8, NF4])
def test_products_and_their_gradients_are_those_of_the_weights(kind, dtype):
    kernel = encode(jnp.asarray(weights((100, 30))), kind)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 100)), dtype)
    whole = decode(kernel, dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-2

    @jax.jit
    def run(x, kernel, whole):
        ours = jax.grad(lambda x: jnp.sum(jnp.sin(multiply(x, kernel))))
        theirs = jax.grad(lambda x: jnp.sum(jnp.sin(x @ whole)))
        return (multiply(x, kernel), x @ whole), (ours(x), theirs(x)), (jax.vmap(ours)(x), theirs(x))

    for found, wanted in run(x, kernel, whole):
        np.testing.assert_allclose(np.float32(found), np.float32(wanted), atol=tolerance)


def test_a_quantised_kernel_is_never_trained():
    tree = {"params": {"kernel": encode(jnp.ones((64, 8)), NF4), "bias": jnp.ones(8)}}
    with pytest.raises(UserError, match=r"params/kernel is stored as nf4 codes .* base.quantize=none"):
        partition(tree, ((".*", True),))
    learnt, frozen = partition(tree, ((".*bias", True), (".*", False)))
    assert "kernel" not in learnt["params"]
    assert frozen["params"]["kernel"] is tree["params"]["kernel"]
    with pytest.raises(UserError, match=r"unknown base.quantize 'nf5'; did you mean nf4"):
        quantized.check_kind("nf5")
