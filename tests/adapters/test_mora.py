"""MoRA against golden values of the official code, an independent numpy reference, its merged kernel, and the paper."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from lowrank_jax.adapters import mora
from lowrank_jax.adapters import mora_maps as maps
from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec, MoraConfig
from lowrank_jax.core.errors import UserError

FAMILY = mora.FAMILY
NAMES = ("truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")
BLOCKWISE = ("decoupling", "rotation", "type6")
# (d_in, d_out, rank): divisible square, ragged, wide, tall, and so wide or tall that blocks repeat or fall away.
SHAPES = {"square": (16, 16, 2), "ragged": (19, 23, 2), "wide": (10, 64, 1), "tall": (64, 10, 1), "tiny": (6, 10, 1)}


def spec_of(d_in, d_out, rank, **options):
    return AdapterSpec(d_in, d_out, rank, config=AdapterConfig("mora", mora=MoraConfig(**options)))


def draw(spec, seed=0, batch=(3, 2)):
    """A random square M [out, in], as in the paper, and an input, float64."""
    rng = np.random.default_rng(seed)
    size = mora.square_size(spec)
    return rng.normal(size=(size, size)), rng.normal(size=(*batch, spec.d_in))


@functools.partial(jax.jit, static_argnums=2)
def branch(m, x, spec):
    return FAMILY.delta({"m": m}, x, spec)


@functools.partial(jax.jit, static_argnums=1)
def update(m, spec):
    return FAMILY.delta_kernel({"m": m}, spec)


def run(spec, official, x, dtype=None):
    return branch(jnp.asarray(official.T, dtype), jnp.asarray(x, dtype), spec)


def merged(spec, official):
    return np.array(update(jnp.asarray(official.T, jnp.float32), spec), float)


turn = jax.jit(maps.rotate, static_argnums=1)

# --- golden values of the official code, run in float64 ---

X5 = (1, 2, 4, 8, 16)
GOLDEN = {
    "type1": ((5, 7, 1), X5, 3, (60, 156, 252, 60, 156, 252, 60)),
    "type2": ((5, 7, 1), X5, 3, (75, 75, 75, 168, 168, 261, 261)),
    "type3": ((5, 7, 1), X5, 3, (75, 168, 261, 75, 168, 261, 75)),
    "type4": ((5, 7, 1), X5, 3, (60, 60, 60, 156, 156, 252, 252)),
    "type6": ((5, 7, 1), X5, 2, (5, 11, 10.806047, 17.041535, 20.697576, 33.827506, 5)),
    "type6 long": (
        (6, 10, 1),
        (*X5, 32),
        4,
        (49, 109, 169, 229, 123.051258, 347.473253, 571.895248, 796.317243, 49, 109),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    shape, x, size, expected = GOLDEN[name]
    spec = spec_of(*shape, compression=name.split()[0])
    assert mora.square_size(spec) == size
    square = np.arange(1.0, size * size + 1).reshape(size, size)
    y = run(spec, square, np.array(x, float))
    if name.startswith("type6"):
        np.testing.assert_allclose(y, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(("name", "row"), [("type1", (4, 2, 3, 1, 2)), ("type2", (1, 1, 2, 2, 3))])
def test_golden_first_row_of_the_merged_update(name, row):
    spec = spec_of(5, 7, 1, compression=name)
    np.testing.assert_array_equal(merged(spec, np.arange(1.0, 10).reshape(3, 3))[:, 0], row)


# --- an independent reference: loops over coordinates, from the paper's equations and the official code's words ---


def group_ids(length, size):
    q, m = divmod(length, size)
    return [i for i in range(size) for _ in range(q + 1 if i < m else q)]


def reference(x, square, d_out, name, padding="wrap", layout="half"):
    """y = f_decomp(M f_comp(x)) for one vector x, M [out, in]."""
    name = {"sharing": "type1", "rotation": "type6"}.get(name, name)
    d_in, size = len(x), len(square)
    if name == "truncation":
        return np.concatenate([square @ x[:size], np.zeros(d_out - size)])
    blocks = math.ceil(d_in / size)
    padded = np.array([x[j] if j < d_in else x[j - d_in] * (padding == "wrap") for j in range(blocks * size)])
    if name in BLOCKWISE:
        outputs = []
        for i in range(blocks):
            block = padded[i * size : (i + 1) * size].astype(complex)
            if name == "type6":
                turned = np.empty(size)
                for j in range(size // 2):
                    first, second = (j, j + size // 2) if layout == "half" else (2 * j, 2 * j + 1)
                    z = (block[first] + 1j * block[second]) * np.exp(1j * i * 10000 ** (-2 * j / size))
                    turned[first], turned[second] = z.real, z.imag
                block = turned
            outputs.extend(square @ block.real)
        return np.array([outputs[j % len(outputs)] for j in range(d_out)])
    compressed = np.zeros(size)
    if name in ("type1", "type4"):
        for j, value in enumerate(padded):
            compressed[j % size] += value
    else:
        for j, group in enumerate(group_ids(d_in, size)):
            compressed[group] += x[j]
    y = square @ compressed
    if name in ("type1", "type3"):
        return np.array([y[j % size] for j in range(d_out)])
    return np.array([y[group] for group in group_ids(d_out, size)])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_matches_the_reference_and_the_merged_kernel(name, shape):
    for padding, layout in itertools.product(("wrap", "zero"), ("half", "pairs")):
        if layout == "pairs" and name not in ("rotation", "type6"):
            continue
        spec = spec_of(*shape, compression=name, padding=padding, layout=layout)
        square, x = draw(spec, batch=(3,))
        expected = np.apply_along_axis(reference, -1, x, square, spec.d_out, name, padding, layout)
        exact = 1e-5 if name in ("rotation", "type6") else 1e-12  # float32 angle tables
        with jax.enable_x64(True):
            out = np.asarray(run(spec, square, np.concatenate([x, np.eye(spec.d_in)])))
        y, kernel = out[: len(x)], out[len(x) :]  # the second: delta of the identity
        np.testing.assert_allclose(y, expected, rtol=exact, atol=exact)
        np.testing.assert_allclose(x @ kernel, expected, rtol=exact, atol=exact)


def test_reference_gives_the_golden_values():
    """The yardstick itself."""
    for name, (_, x, size, expected) in GOLDEN.items():
        square = np.arange(1.0, size * size + 1).reshape(size, size)
        y = reference(np.array(x, float), square, len(expected), name.split()[0])
        np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "official"), [("sharing", "type1"), ("rotation", "type6")])
def test_the_papers_names_are_the_official_types(name, official):
    square, x = draw(spec_of(19, 23, 2, compression=name))
    one, other = (run(spec_of(19, 23, 2, compression=c), square, x) for c in (name, official))
    np.testing.assert_array_equal(one, other)


def test_padding_matters_only_where_the_size_does_not_divide():
    for shape, same in (((16, 16, 2), True), ((19, 23, 2), False)):
        specs = [spec_of(*shape, padding=padding) for padding in ("wrap", "zero")]
        square, x = draw(specs[0])
        assert np.allclose(*(run(s, square, x) for s in specs)) == same


# --- structure of the update (paper, section 4.2) ---


def test_decoupling_is_block_diagonal_with_one_square():
    spec = spec_of(16, 16, 2, compression="decoupling")
    square, _ = draw(spec)
    kernel = merged(spec, square)
    np.testing.assert_allclose(kernel, np.kron(np.eye(2), square.T), rtol=1e-6)


def test_truncation_is_the_top_left_corner():
    spec = spec_of(16, 20, 2, compression="truncation")
    square, _ = draw(spec)
    kernel = merged(spec, square)
    size = len(square)
    np.testing.assert_allclose(kernel[:size, :size], square.T, rtol=1e-6)
    kernel[:size, :size] = 0
    assert not kernel.any()


def test_sharing_repeats_entries_by_group():
    """DeltaW[i, j] = M[group'(i), group(j)]."""
    spec = spec_of(16, 24, 2, compression="sharing", padding="zero")
    square, _ = draw(spec)
    size = len(square)
    kernel = merged(spec, square)
    expected = square.T[np.arange(16)[:, None] % size, np.arange(24)[None, :] % size]
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(48, 128, 2), (60, 20, 1)])
@pytest.mark.parametrize("name", NAMES)
def test_rank_of_the_update(name, shape):
    """p for truncation and every sharing; more, up to min(d_in, d_out), where each block has its own output."""
    spec = spec_of(*shape, compression=name)
    square, _ = draw(spec)
    kernel = merged(spec, square)
    rank = np.linalg.matrix_rank(kernel, tol=1e-4)
    full = min(spec.d_in, spec.d_out)
    assert rank == (full if name in BLOCKWISE else len(square))


@pytest.mark.parametrize("layout", ["half", "pairs"])
@pytest.mark.parametrize(("size", "count"), [(2, 1), (2, 5), (6, 3), (16, 4)])
def test_a_rotation_is_its_matrix(layout, size, count):
    """Block i times the block-diagonal matrix of [[cos, sin], [-sin, cos]] at i theta_j (Eq. 9 and 10)."""
    blocks = np.random.default_rng(0).normal(size=(4, count, size)).astype(np.float32)
    first = np.arange(size // 2) if layout == "half" else np.arange(0, size, 2)
    second = first + (size // 2 if layout == "half" else 1)
    matrices = np.zeros((count, size, size))
    for i in range(count):
        angles = i * 10000.0 ** (-2 * np.arange(size // 2) / size)
        matrices[i, first, first] = matrices[i, second, second] = np.cos(angles)
        matrices[i, first, second], matrices[i, second, first] = np.sin(angles), -np.sin(angles)
    np.testing.assert_allclose(turn(blocks, layout), np.einsum("bnp,npq->bnq", blocks, matrices), rtol=1e-5, atol=1e-6)


def test_rotation_keeps_norms_and_the_first_block():
    x = jax.random.normal(jax.random.key(0), (5, 4, 8))
    for layout in ("half", "pairs"):
        turned = turn(x, layout)
        np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
        np.testing.assert_array_equal(turned[:, 0], x[:, 0])
        assert not np.allclose(turned[:, 1], x[:, 1])


def test_the_layouts_differ_by_a_permutation():
    """Half layout on permuted coordinates is the pairs layout: j, j + p/2 <-> 2j, 2j + 1."""
    size, count = 8, 3
    order = np.arange(size).reshape(2, size // 2).T.reshape(-1)  # half coordinate that sits at each pairs position
    x = jax.random.normal(jax.random.key(0), (count, size))
    np.testing.assert_allclose(turn(x[:, order], "pairs"), turn(x, "half")[:, order], rtol=1e-6)


# --- learning ---


@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_finite_differences(name):
    with jax.enable_x64(True):
        for layout in ("half", "pairs"):
            spec = spec_of(19, 23, 2, compression=name, layout=layout)
            square, x = draw(spec, batch=(2,))

            def f(m, x, spec=spec):
                return jnp.tanh(branch(m, x, spec))

            check_grads(f, (jnp.asarray(square) / 10, jnp.asarray(x)), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_starts_at_zero_with_a_gradient(name):
    """Unlike LoRA's A, M has a gradient where it starts: sum D^T g (C x)^T."""
    spec = spec_of(19, 23, 2, compression=name)
    leaf = FAMILY.init(jax.random.key(0), spec)
    _, x = draw(spec)
    x = jnp.asarray(x, jnp.float32)
    assert not branch(leaf["m"], x, spec).any()
    grad = jax.jit(jax.grad(lambda m: FAMILY.delta({"m": m}, x, spec).sum()))(leaf["m"])
    assert (jnp.abs(grad) > 0).mean() > 0.9


def test_the_branch_keeps_the_inputs_dtype_and_batch_axes():
    for name, lead in itertools.product(NAMES, ((), (3,), (2, 1, 4))):
        spec = spec_of(19, 23, 2, compression=name)
        size = mora.square_size(spec)
        m, x = jax.ShapeDtypeStruct((size, size), jnp.float32), jax.ShapeDtypeStruct((*lead, 19), jnp.bfloat16)
        y = jax.eval_shape(lambda m, x, spec=spec: FAMILY.delta({"m": m}, x, spec), m, x)
        assert (y.shape, y.dtype) == ((*lead, 23), jnp.bfloat16)


def test_scale_ignores_alpha():
    assert FAMILY.scale(AdapterSpec(16, 16, 2, alpha=64.0)) == 1.0


# --- sizes (official code's r-hat; the paper's floor) ---

LLAMA = ((4096, 4096),) * 4 + ((4096, 11008),) * 2 + ((11008, 4096),)
# r: sizes on 4096 -> 4096 and 4096 <-> 11008, by the paper's floor, with type 6; totals over 7 linears x 32 layers
TABLE = {
    8: (256, 348, 347, 348, 20_014_592, 20_014_592),
    16: (362, 492, 491, 492, 40_011_776, 40_011_776),
    32: (512, 695, 695, 694, 79_924_832, 79_791_488),
    64: (724, 983, 983, 982, 159_858_272, 159_669_632),
    128: (1024, 1390, 1390, 1390, 319_699_328, 319_699_328),
    256: (1448, 1966, 1966, 1966, 639_433_088, 639_433_088),
}


@pytest.mark.parametrize("rank", TABLE)
def test_sizes_and_counts_of_llama_7b(rank):
    narrow, wide, floored, even, type1, type6 = TABLE[rank]

    def size(d_in, d_out, **options):
        return mora.square_size(spec_of(d_in, d_out, rank, **options))

    assert size(4096, 4096) == narrow
    for shape in ((4096, 11008), (11008, 4096)):
        assert size(*shape) == wide
        assert size(*shape, rounding="floor") == floored
        assert size(*shape, compression="type6") == even
    for name, total in (("type1", type1), ("type6", type6)):
        assert 32 * sum(FAMILY.parameters(spec_of(*shape, rank, compression=name)) for shape in LLAMA) == total


@pytest.mark.parametrize(
    ("width", "ffn", "sizes", "millions"), [(768, 2560, (443, 653), 49.54), (2048, 5461, (724, 980), 119.5)]
)
def test_sizes_and_counts_of_pretraining(width, ffn, sizes, millions):
    shapes = ((width, width),) * 4 + ((width, ffn),) * 2 + ((ffn, width),)
    specs = [spec_of(*shape, 128) for shape in shapes]
    assert (mora.square_size(specs[0]), mora.square_size(specs[-1])) == sizes
    assert 24 * sum(map(FAMILY.parameters, specs)) / 1e6 == pytest.approx(millions, abs=0.05)


def test_rounding_half_up_and_floor():
    for d_in, d_out, rank in itertools.product((40, 41, 57), (40, 44, 58), (1, 2, 3)):
        exact = math.sqrt((d_in + d_out) * rank)
        sizes = {r: mora.square_size(spec_of(d_in, d_out, rank, rounding=r)) for r in ("half_up", "floor")}
        assert sizes == {"half_up": math.floor(exact + 0.5), "floor": math.floor(exact)}
        assert FAMILY.shapes(spec_of(d_in, d_out, rank)) == {"m": (sizes["half_up"],) * 2}


@pytest.mark.parametrize("name", NAMES)
def test_a_square_that_reaches_the_input_is_refused(name):
    """The official code runs up to r-hat = 2 d_in, with at least as many parameters as a d_in x d_in kernel."""
    for rank, size in ((8, 16), (32, 32), (40, 36)):
        message = rf"square of {size}, too large for a 16 x 16 .*below 16 .*lower adapter.rank"
        with pytest.raises(UserError, match=message):
            FAMILY.shapes(spec_of(16, 16, rank, compression=name))
    FAMILY.shapes(spec_of(16, 16, 7, compression=name))


def test_a_square_that_passes_the_output_is_refused():
    with pytest.raises(UserError, match="at most 4"):
        FAMILY.shapes(spec_of(64, 4, 1))


def test_an_empty_square_is_refused():
    with pytest.raises(UserError):
        FAMILY.shapes(spec_of(2, 1, 1, compression="rotation"))
