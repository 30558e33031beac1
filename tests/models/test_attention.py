"""Rotary positions, masks, the cache, and the choice of kernel."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from experiments.planning import topology
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.parts import attention_kernel
from lowrank_jax.models.parts.attend import Window, attend, heads_first_attention, windowed
from lowrank_jax.models.parts.attention import Attention
from lowrank_jax.models.parts.attention_kernel import pick_implementation
from lowrank_jax.models.parts.cache import allowed_keys
from lowrank_jax.models.parts.rotary import rotary_tables, rotate


@jax.jit
def rotated(x, positions):
    return rotate(x, *rotary_tables(positions, x.shape[-1], 1e4))


def test_rotation_is_the_complex_product():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 2, 7, 300])
    turned = np.asarray(rotated(x, positions))
    z = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * positions[:, None, None] * 1e4 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(turned, np.concatenate([z.real, z.imag], -1), atol=2e-5)


def test_rotated_products_depend_on_distance_alone():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 16)).astype(np.float32)

    def product(i, j):
        left, right = (np.asarray(rotated(x, np.array([p]))) for x, p in ((q, i), (k, j)))
        return (left * right).sum()

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)


def test_rotation_of_bfloat16_is_computed_in_float32():
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 8)).astype("bfloat16")
    positions = np.array([0, 50, 500, 4000])
    wide = np.asarray(rotated(x.astype(np.float32), positions)).astype("bfloat16")
    assert (np.asarray(rotated(x, positions)) == wide).all()


@functools.cache
def layer(implementation="xla", **kwargs):
    """(module, variables, x, rotary tables, the jitted apply) of four heads on two of keys."""
    module = Attention(heads=4, kv_heads=2, head_dim=8, implementation=implementation, **kwargs)
    x = np.random.default_rng(1).normal(size=(2, 6, 24)).astype(np.float32)
    rotary = rotary_tables(jnp.arange(6), 8, 1e4)
    return module, drawn(module, x, rotary, None, None, None), x, rotary, jax.jit(module.apply)


def turned(x):
    """x [B, 6, H, 8] rotated by hand: pairs of halves are complex numbers."""
    half = x.shape[-1] // 2
    angle = np.arange(6)[:, None, None] * 1e4 ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag], -1)


@pytest.mark.parametrize(
    ("kernel", "scale", "softcap"), [("xla", None, None), ("auto", 0.1, None), ("auto", None, 0.5), ("auto", 0.1, 0.5)]
)
def test_equals_attention_written_out_with_repeated_heads(kernel, scale, softcap):
    _, variables, x, rotary, apply = layer(kernel, scale=scale, softcap=softcap)
    p = {name: np.asarray(leaf["kernel"]) for name, leaf in variables["params"].items()}
    q, k, v = ((x @ p[name]).reshape(2, 6, -1, 8) for name in ("query", "key", "value"))
    q, k, v = turned(q), np.repeat(turned(k), 2, 2), np.repeat(v, 2, 2)
    scores = np.einsum("bthd,bshd->bhts", q, k) * (8**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
    weights = np.exp(np.where(np.tril(np.ones((6, 6), bool)), scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    want = np.einsum("bhts,bshd->bthd", weights, v).reshape(2, 6, 32) @ p["out"]
    got, cache = apply(variables, x, rotary, None, None, None)
    assert cache is None
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_softcap_needs_a_kernel_that_has_it():
    with pytest.raises(UserError, match="has no softcap on scores"):
        layer("cudnn", softcap=0.5)


def test_a_fully_masked_row_is_finite_forward_and_backward():
    module, variables, x, rotary, _ = layer()
    allowed = allowed_keys(6, jnp.array([[False] * 3 + [True] * 3, [False] * 6]), None, 6)

    @jax.jit
    @jax.value_and_grad
    def total(variables):
        return jnp.square(module.apply(variables, x, rotary, allowed, None, None)[0]).sum()

    value, grads = total(variables)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_padding_does_not_reach_valid_positions():
    _, variables, x, rotary, apply = layer()
    allowed = allowed_keys(6, jnp.array([[False] * 2 + [True] * 4] * 2), None, 6)
    other = x.copy()
    other[:, :2] = 100
    one, two = (apply(variables, y, rotary, allowed, None, None)[0] for y in (x, other))
    np.testing.assert_array_equal(one[:, 2:], two[:, 2:])
    assert not np.allclose(one[:, :2], two[:, :2])


def test_allowed_keys_in_a_cache():
    assert allowed_keys(3, None, None, 3) is None
    mask = jnp.array([[False, True, True, True, True]])
    want = [[False, True, True, False, False], [False, True, True, True, False]]
    np.testing.assert_array_equal(allowed_keys(2, mask, jnp.int32(2), 5)[0, 0], want)
    np.testing.assert_array_equal(allowed_keys(2, None, jnp.int32(0), 3)[0, 0], [[1, 0, 0], [1, 1, 0]])


def test_cached_pieces_equal_the_whole():
    _, variables, x, rotary, apply = layer()
    want, _ = apply(variables, x, rotary, None, None, None)
    cache = {name: np.full((3, 2, 7, 2, 8), np.nan, np.float32) for name in ("key", "value")}
    for leaf in cache.values():
        leaf[1] = 0
    cache["index"], parts = np.int32(0), []
    for start, stop in ((0, 2), (2, 3), (3, 4), (4, 6)):
        tables = jax.tree.map(lambda leaf, part=slice(start, stop): np.asarray(leaf)[part], rotary)
        allowed = allowed_keys(stop - start, None, cache["index"], 7)
        y, cache = apply(variables, x[:, start:stop], tables, allowed, cache, np.int32(1))
        cache["index"] += stop - start
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), want, atol=1e-6)
    assert np.isnan(np.asarray(cache["key"])[[0, 2]]).all()  # other layers' rows are untouched


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
    monkeypatch.setattr(attention_kernel, "compute_capability", lambda: capability)
    monkeypatch.setattr(attention_kernel, "platform", lambda: "gpu")
    assert pick_implementation(name, dtype, head_dim, masked=masked, cached=cached) == want


@pytest.mark.parametrize("masked", [False, True])
def test_choice_of_kernel_on_a_cpu(monkeypatch, masked):
    monkeypatch.setattr(attention_kernel, "platform", lambda: "cpu")
    for name, cached, want in (("auto", False, "heads_first"), ("auto", True, "xla"), ("xla", False, "xla")):
        assert pick_implementation(name, jnp.float32, 64, masked=masked, cached=cached) == want


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "allowed"),
    [
        ("float32", 6, "causal"),
        ("float32", 2, "all"),
        ("float32", 1, "keys"),
        ("float32", 2, "pairs"),
        ("float32", 6, "nothing"),
        ("bfloat16", 2, "causal"),
        ("bfloat16", 1, "pairs"),
    ],
)
def test_heads_first_equals_jax(dtype, kv_heads, allowed):
    rng = np.random.default_rng(3)
    query, key, value = (rng.normal(size=(2, 5, n, 8)).astype(dtype) for n in (6, kv_heads, kv_heads))
    lengths = np.arange(5) < np.array([[5], [3]])
    mask = {
        "keys": lengths[:, None, None, :],
        "pairs": lengths[:, None, None, :] & np.tri(5, dtype=bool),
        "nothing": np.zeros((2, 1, 1, 5), bool),
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
        close = dict(atol=2e-6) if dtype == "float32" else dict(atol=3e-2, rtol=2e-2)  # values of up to 5
        np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (ours, jaxs)), **close)


def test_cudnn_where_it_cannot_run_is_refused(monkeypatch):
    with pytest.raises(UserError, match="flash"):
        pick_implementation("flash", jnp.bfloat16, 64, masked=False, cached=False)
    for capability, dtype, head_dim, length, message in (
        (0.0, jnp.bfloat16, 64, 8, "NVIDIA GPU"),
        (9.0, jnp.float32, 64, 8, "not float32"),
        (9.0, jnp.bfloat16, 20, 8, "multiple of 8"),
        (9.0, jnp.bfloat16, 64, 7, "an even length, not 7"),
    ):
        monkeypatch.setattr(attention_kernel, "compute_capability", lambda capability=capability: capability)
        with pytest.raises(UserError, match=message):
            pick_implementation("cudnn", dtype, head_dim, length, masked=False, cached=False)


@pytest.mark.parametrize(("length", "cudnn"), [(8, True), (7, False)])
def test_gradients_on_a_gpu_of_rows_of_any_length(length, cudnn):
    """Traced for a card that is not here: auto takes cuDNN's kernel where jax has its gradient, for even lengths."""
    module = layer("auto", dtype=jnp.bfloat16)[0]
    card = topology.Target([SimpleNamespace(platform="gpu", compute_capability="9.0")], True, "", absent=True)
    with topology.planning_for(topology.parse("h200:1"), card):
        x = jax.ShapeDtypeStruct((2, length, 24), jnp.bfloat16)
        rotary = rotary_tables(jnp.arange(length), 8, 1e4)
        variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, rotary, None, None, None), x)
        traced = jax.make_jaxpr(jax.grad(lambda v, x: module.apply(v, x, rotary, None, None, None)[0].sum()))
        assert ("dot_product_attention_bwd" in str(traced(variables, x))) == cudnn


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
def test_cudnn_equals_xla():
    module, variables, x, rotary, _ = layer("auto", dtype=jnp.bfloat16)
    plain = layer("xla", dtype=jnp.bfloat16)[0]

    def gradient(module):
        return jax.grad(lambda v: jnp.square(module.apply(v, x, rotary, None, None, None)[0]).sum())(variables)

    for one, two in zip(jax.tree.leaves(gradient(module)), jax.tree.leaves(gradient(plain)), strict=True):
        assert np.abs(one - two).max() < 0.03 * np.abs(two).max()


@pytest.fixture(scope="module")
def by_mask():
    """(query, key, value, window, local) -> output and query's gradient, the window a mask over all pairs."""

    def output(query, key, value, window, local):
        distance = jnp.arange(9)[:, None] - jnp.arange(9)
        near = (distance < window) | ~local
        out = heads_first_attention(query, key, value, (distance >= 0) & near)
        return jnp.sin(out).sum(), out

    run = jax.jit(jax.value_and_grad(output, has_aux=True))
    return lambda *args: (lambda value, gradient: (value[1], gradient))(*run(*args))


@pytest.mark.parametrize("kernel", ["heads_first", "xla", "a kernel's own window"])
def test_a_window_and_a_layer_without_it(kernel, by_mask):
    """By a mask, and by a kernel that takes the window itself, of which a layer picks one of two."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, 9, n, 8)).astype(np.float32) for n in (4, 2, 2))

    @jax.jit
    def run(query, local):
        def output(query):
            window = Window(3, local)
            if kernel == "a kernel's own window":
                library = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")
                out = windowed(library, query, key, value, window)
            else:
                out = attend(query, key, value, None, causal=True, kernel=kernel, window=window)
            return jnp.sin(out).sum(), out

        (_, out), gradient = jax.value_and_grad(output, has_aux=True)(query)
        return out, gradient

    whole = by_mask(query, key, value, 9, True)[0]
    for local in (None, np.bool_(True), np.bool_(False)):
        want = by_mask(query, key, value, 3, np.bool_(local is None or local))
        for ours, theirs in zip(run(query, local), want, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert (np.abs(want[0] - whole).max() > 0.1) == (local is None or bool(local))


def test_a_window_as_wide_as_the_rows_is_none():
    """No mask, and the kernels that take none: the program is the one without a window."""

    def program(window):
        module, variables, x, rotary, _ = layer("heads_first", window=window)
        return str(jax.make_jaxpr(lambda x: module.apply(variables, x, rotary, None, None, None)[0])(x))

    assert program(6) == program(None) != program(5)


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
