"""Rotary positions, masks, the cache, and the choice of kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.models import attention
from lowrank_jax.models.attention import (
    Attention,
    Window,
    attend,
    heads_first_attention,
    pick_implementation,
    windowed,
)
from lowrank_jax.models.cache import allowed_keys
from lowrank_jax.models.rotary import rotary_tables, rotate


def test_rotation_is_the_complex_product():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 2, 7, 300])
    turned = np.asarray(rotate(jnp.asarray(x), *rotary_tables(jnp.asarray(positions), 8, 1e4)))
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, None, None] * 1e4 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(turned, np.concatenate([z.real, z.imag], -1), atol=2e-5)


def test_rotated_products_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def product(i, j):
        left, right = (rotate(x, *rotary_tables(jnp.array([p]), 16, 1e4)) for x, p in ((q, i), (k, j)))
        return jnp.sum(left * right)

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)


def test_rotation_of_bfloat16_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 8), jnp.bfloat16)
    tables = rotary_tables(jnp.array([0, 50, 500, 4000]), 8, 1e4)
    wide = rotate(x.astype(jnp.float32), *tables).astype(jnp.bfloat16)
    assert (rotate(x, *tables) == wide).all()


def layer(implementation="xla", **kwargs):
    module = Attention(heads=4, kv_heads=2, head_dim=8, implementation=implementation, **kwargs)
    x = jax.random.normal(jax.random.key(1), (2, 6, 24))
    rotary = rotary_tables(jnp.arange(6), 8, 1e4)
    variables = jax.jit(module.init)(jax.random.key(0), x, rotary, None, None, None)
    return module, variables, x, rotary


def test_equals_attention_written_out_with_repeated_heads():
    module, variables, x, rotary = layer()
    p = {name: leaf["kernel"] for name, leaf in variables["params"].items()}
    q, k, v = ((x @ p[name]).reshape(2, 6, -1, 8) for name in ("query", "key", "value"))
    q, k, v = rotate(q, *rotary), jnp.repeat(rotate(k, *rotary), 2, 2), jnp.repeat(v, 2, 2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(8)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -jnp.inf))
    want = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(2, 6, 32) @ p["out"]
    got, cache = module.apply(variables, x, rotary, None, None, None)
    assert cache is None
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_fully_masked_row_is_finite_forward_and_backward():
    module, variables, x, rotary = layer()
    allowed = allowed_keys(6, jnp.array([[False] * 3 + [True] * 3, [False] * 6]), None, 6)

    def total(variables):
        return jnp.square(module.apply(variables, x, rotary, allowed, None, None)[0]).sum()

    value, grads = jax.value_and_grad(total)(variables)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_padding_does_not_reach_valid_positions():
    module, variables, x, rotary = layer()
    allowed = allowed_keys(6, jnp.array([[False] * 2 + [True] * 4] * 2), None, 6)
    other = x.at[:, :2].set(100.0)
    one, two = (module.apply(variables, y, rotary, allowed, None, None)[0] for y in (x, other))
    np.testing.assert_array_equal(one[:, 2:], two[:, 2:])
    assert not np.allclose(one[:, :2], two[:, :2])


def test_allowed_keys_in_a_cache():
    assert allowed_keys(3, None, None, 3) is None
    mask = jnp.array([[False, True, True, True, True]])
    want = [[False, True, True, False, False], [False, True, True, True, False]]
    np.testing.assert_array_equal(allowed_keys(2, mask, jnp.int32(2), 5)[0, 0], want)
    np.testing.assert_array_equal(allowed_keys(2, None, jnp.int32(0), 3)[0, 0], [[1, 0, 0], [1, 1, 0]])


def test_cached_pieces_equal_the_whole():
    module, variables, x, _ = layer()
    want, _ = module.apply(variables, x, rotary_tables(jnp.arange(6), 8, 1e4), None, None, None)
    cache = {name: jnp.full((3, 2, 7, 2, 8), jnp.nan) for name in ("key", "value")}
    cache = jax.tree.map(lambda leaf: leaf.at[1].set(0), cache) | {"index": jnp.int32(0)}
    parts = []
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        rotary = rotary_tables(jnp.arange(start, stop), 8, 1e4)
        allowed = allowed_keys(stop - start, None, cache["index"], 7)
        y, cache = jax.jit(module.apply)(variables, x[:, start:stop], rotary, allowed, cache, jnp.int32(1))
        cache["index"] += stop - start
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), want, atol=1e-6)
    assert np.isnan(cache["key"][jnp.array([0, 2])]).all()  # other layers' rows are untouched


@pytest.mark.parametrize(
    ("capability", "name", "dtype", "head_dim", "masked", "cached", "want"),
    [
        (9.0, "auto", jnp.bfloat16, 128, False, False, "cudnn"),
        (9.0, "auto", jnp.float16, 256, False, False, "cudnn"),
        (8.0, "auto", jnp.bfloat16, 256, False, False, "xla"),
        (9.0, "auto", jnp.float32, 128, False, False, "xla"),
        (9.0, "auto", jnp.bfloat16, 12, False, False, "xla"),
        (9.0, "auto", jnp.bfloat16, 128, True, False, "xla"),
        (9.0, "auto", jnp.bfloat16, 128, False, True, "xla"),
        (7.5, "auto", jnp.bfloat16, 128, False, False, "xla"),
        (0.0, "auto", jnp.bfloat16, 128, False, False, "xla"),
        (9.0, "xla", jnp.bfloat16, 128, False, False, "xla"),
        (9.0, "cudnn", jnp.bfloat16, 128, True, False, "cudnn"),
        (9.0, "cudnn", jnp.bfloat16, 128, True, True, "xla"),
        (9.0, "heads_first", jnp.bfloat16, 128, True, False, "heads_first"),
        (9.0, "heads_first", jnp.bfloat16, 128, True, True, "xla"),
    ],
)
def test_choice_of_kernel(monkeypatch, capability, name, dtype, head_dim, masked, cached, want):
    monkeypatch.setattr(attention, "compute_capability", lambda: capability)
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "gpu")
    assert pick_implementation(name, dtype, head_dim, masked=masked, cached=cached) == want


@pytest.mark.parametrize("masked", [False, True])
def test_choice_of_kernel_on_a_cpu(monkeypatch, masked):
    monkeypatch.setattr(attention.jax, "default_backend", lambda: "cpu")
    for name, cached, want in (("auto", False, "heads_first"), ("auto", True, "xla"), ("xla", False, "xla")):
        assert pick_implementation(name, jnp.float32, 64, masked=masked, cached=cached) == want


@pytest.mark.parametrize(
    ("dtype", "kv_heads"), [(jnp.float32, 6), (jnp.float32, 2), (jnp.float32, 1), (jnp.bfloat16, 2)]
)
@pytest.mark.parametrize("allowed", ["causal", "all", "keys", "pairs", "nothing"])
def test_heads_first_equals_jax(dtype, kv_heads, allowed):
    keys = jax.random.split(jax.random.key(3), 3)
    query, key, value = (
        jax.random.normal(k, (2, 5, n, 8), dtype) for k, n in zip(keys, (6, kv_heads, kv_heads), strict=True)
    )
    lengths = jnp.arange(5) < jnp.array([[5], [3]])
    mask = {
        "keys": lengths[:, None, None, :],
        "pairs": lengths[:, None, None, :] & jnp.tri(5, dtype=bool),
        "nothing": jnp.zeros((2, 1, 1, 5), bool),
    }.get(allowed)

    def outputs(kernel):
        def attention_of(*x):
            return attend(*x, mask, causal=allowed == "causal", kernel=kernel)

        def both(*x):
            y, pullback = jax.vjp(attention_of, *x)
            return y, *pullback(jnp.cos(y))

        return jax.jit(both)(query, key, value)

    for ours, jaxs in zip(outputs("heads_first"), outputs("xla"), strict=True):
        assert (ours.dtype, ours.shape) == (dtype, jaxs.shape)
        close = dict(atol=2e-6) if dtype == jnp.float32 else dict(atol=3e-2, rtol=2e-2)  # values of up to 5
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (ours, jaxs)), **close)


def test_cudnn_where_it_cannot_run_is_refused(monkeypatch):
    with pytest.raises(UserError, match="flash"):
        pick_implementation("flash", jnp.bfloat16, 64, masked=False, cached=False)
    for capability, dtype, head_dim, message in (
        (0.0, jnp.bfloat16, 64, "NVIDIA GPU"),
        (9.0, jnp.float32, 64, "not float32"),
        (9.0, jnp.bfloat16, 20, "multiple of 8"),
    ):
        monkeypatch.setattr(attention, "compute_capability", lambda capability=capability: capability)
        with pytest.raises(UserError, match=message):
            pick_implementation("cudnn", dtype, head_dim, masked=False, cached=False)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_equals_xla():
    module, variables, x, rotary = layer("auto", dtype=jnp.bfloat16)
    plain = layer("xla", dtype=jnp.bfloat16)[0]

    def gradient(module):
        return jax.grad(lambda v: jnp.square(module.apply(v, x, rotary, None, None, None)[0]).sum())(variables)

    for one, two in zip(jax.tree.leaves(gradient(module)), jax.tree.leaves(gradient(plain)), strict=True):
        assert np.abs(one - two).max() < 0.03 * np.abs(two).max()


def masked(query, key, value, window, local):
    """The window as a mask over all pairs."""
    distance = jnp.arange(9)[:, None] - jnp.arange(9)
    near = (distance < window) | (not local)
    return heads_first_attention(query, key, value, (distance >= 0) & near)


@pytest.mark.parametrize("local", [None, True, False])
@pytest.mark.parametrize("kernel", ["heads_first", "xla", "a kernel's own window"])
def test_a_window_and_a_layer_without_it(kernel, local):
    """By a mask, and by a kernel that takes the window itself, of which a layer picks one of two."""
    query, key, value = (jax.random.normal(jax.random.key(i), (2, 9, n, 8)) for i, n in enumerate((4, 2, 2)))
    window = Window(3, None if local is None else jnp.bool_(local))

    @jax.jit
    def run(query):
        if kernel == "a kernel's own window":
            library = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
            return windowed(library, query, key, value, window)
        return attend(query, key, value, None, causal=True, kernel=kernel, window=window)

    def want(query):
        return masked(query, key, value, 3, local is not False)

    np.testing.assert_allclose(run(query), want(query), atol=1e-5)
    gradients = [jax.grad(lambda q, f=f: jnp.sin(f(q)).sum())(query) for f in (run, want)]
    np.testing.assert_allclose(*gradients, atol=1e-5)
    assert np.abs(want(query) - masked(query, key, value, 9, True)).max() > 0.1 or local is False


def test_a_window_as_wide_as_the_rows_is_none():
    """No mask, and the kernels that take none: the program is the one without a window."""

    def program(window):
        module, variables, x, rotary = layer("heads_first", window=window)
        return str(jax.make_jaxpr(lambda x: module.apply(variables, x, rotary, None, None, None)[0])(x))

    assert program(6) == program(None) != program(5)


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("softcap", [None, 0.5])
def test_scale_and_softcap(scale, softcap):
    module, variables, x, rotary = layer("auto", scale=scale, softcap=softcap)
    p = {name: leaf["kernel"] for name, leaf in variables["params"].items()}
    q, k, v = ((x @ p[name]).reshape(2, 6, -1, 8) for name in ("query", "key", "value"))
    q, k, v = rotate(q, *rotary), jnp.repeat(rotate(k, *rotary), 2, 2), jnp.repeat(v, 2, 2)
    scores = jnp.einsum("bthd,bshd->bhts", q, k) * (8**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((6, 6), bool)), scores, -jnp.inf))
    want = jnp.einsum("bhts,bshd->bthd", weights, v).reshape(2, 6, 32) @ p["out"]
    np.testing.assert_allclose(module.apply(variables, x, rotary, None, None, None)[0], want, atol=1e-5)
    if softcap:
        with pytest.raises(UserError, match="has no softcap on scores"):
            layer("cudnn", softcap=softcap)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("local", [None, True, False])
def test_cudnns_own_window(local):
    query, key, value = (
        jax.random.normal(jax.random.key(i), (2, 9, n, 64), jnp.bfloat16) for i, n in ((0, 4), (1, 2), (2, 2))
    )
    window = Window(3, None if local is None else jnp.bool_(local))
    got, want = (
        jax.jit(lambda q, kernel=kernel: attend(q, key, value, None, causal=True, kernel=kernel, window=window))(query)
        for kernel in ("cudnn", "xla")
    )
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=2e-2)
