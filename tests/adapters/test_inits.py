"""Initial A and B: compared with peft's; starts that decompose the kernel leave base + adapter equal to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from late import torch

from lowrank_jax.adapters import AdapterConfig, attach, create, make_plan, merge, needs_params, residual
from lowrank_jax.adapters.base import AdapterSpec
from lowrank_jax.adapters.leaves import inits
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.ops.quantized import LEVELS

D_IN, D_OUT, RANK, ALPHA = 24, 40, 4, 12.0
SPEC = AdapterSpec(D_IN, D_OUT, RANK, ALPHA)
SCALE = ALPHA / RANK


@pytest.fixture(scope="module")
def kernel():
    return np.random.default_rng(0).normal(size=(D_IN, D_OUT)).astype("float32")


round_nf4 = jax.jit(inits.round_nf4)


def start(init, kernel):
    spec = dataclasses.replace(SPEC, config=AdapterConfig(init=init))
    leaf = inits.start(jax.random.key(0), spec, SCALE, kernel)
    return np.asarray(leaf["a"]), np.asarray(leaf["b"]), np.asarray(inits.residual_kernel(kernel, spec, SCALE))


def peft_start(init, kernel):
    import peft

    model = torch.nn.Sequential(torch.nn.Linear(*kernel.shape, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(kernel.T))
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["0"], init_lora_weights=init)
    layer = peft.get_peft_model(model, config).base_model.model[0]
    return [
        w.detach().numpy().T
        for w in (layer.lora_A.default.weight, layer.lora_B.default.weight, layer.base_layer.weight)
    ]


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_kernel_starts_are_pefts_up_to_signs(kernel, init):
    (a, b, rest), (their_a, their_b, their_rest) = start(init, kernel), peft_start(init, kernel)
    np.testing.assert_allclose(rest, their_rest, atol=2e-4)
    np.testing.assert_allclose(a @ b, their_a @ their_b, atol=2e-4)
    signs = np.sign((a * their_a).sum(0))
    np.testing.assert_allclose(a * signs, their_a, atol=2e-4)
    np.testing.assert_allclose(b * signs[:, None], their_b, atol=2e-4)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_base_and_adapter_make_the_published_kernel(kernel, init):
    a, b, rest = start(init, kernel)
    np.testing.assert_allclose(rest + SCALE * a @ b, kernel, atol=1e-5)
    assert np.linalg.matrix_rank(a @ b, tol=1e-4) == RANK
    assert np.abs(rest - kernel).max() > 0.1


def test_pissa_takes_the_largest_singular_values(kernel):
    a, b, rest = start("pissa", kernel)
    values = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(SCALE * a @ b, compute_uv=False)[:RANK], values[:RANK], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rest), np.linalg.norm(values[RANK:]), rtol=1e-5)


def test_pissa_residuals_differ_by_the_rounding_of_the_decomposition():
    """A folder has no residual, so each reader factorises the kernel again: PEFT's factors are as far off as ours.

    What is frozen and what is trained add up to the kernel far nearer than that: rounding moves a part between them.
    """
    kernel = np.random.default_rng(0).normal(size=(128, 356)).astype(np.float32)
    (a, b, rest), (_, _, their_rest) = start("pissa", kernel), peft_start("pissa", kernel)
    u, s, vt = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
    exact = kernel - (u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    largest = np.abs(kernel).max()
    off, theirs = (np.abs(found - exact).max() / largest for found in (rest, their_rest))
    assert off < 3e-5
    assert theirs < 3e-5
    assert np.abs(rest - their_rest).max() / largest <= off + theirs + 1e-7
    whole = rest.astype(np.float64) + SCALE * a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(whole - kernel).max() / largest < 3e-7 < max(off, theirs)


def test_orthogonal_starts_at_zero_with_pefts_spread():
    spec = AdapterSpec(200, 300, 6, config=AdapterConfig(init="orthogonal"))
    leaf = inits.start(jax.random.key(0), spec, 1.0)
    a, b = np.asarray(leaf["a"]), np.asarray(leaf["b"])
    assert np.abs(a @ b).max() < 1e-6
    assert min(np.linalg.matrix_rank(a), np.linalg.matrix_rank(b)) == 3
    import peft

    model = torch.nn.Sequential(torch.nn.Linear(200, 300, bias=False))
    config = peft.LoraConfig(r=6, target_modules=["0"], init_lora_weights="orthogonal")
    layer = peft.get_peft_model(model, config).base_model.model[0]
    assert a.std() == pytest.approx(layer.lora_A.default.weight.std().item(), rel=0.15)
    assert b.std() == pytest.approx(layer.lora_B.default.weight.std().item(), rel=0.15)


def test_asyloras_a_is_an_orthonormal_basis_of_a_random_subspace():
    """The right singular vectors of the matrix that was drawn span what A spans; B is zero."""
    spec = AdapterSpec(40, 24, 6, config=AdapterConfig(init="asylora"))
    leaf = inits.start(jax.random.key(5), spec, 1.0)
    a = np.asarray(leaf["a"], np.float64)
    drawn = np.asarray(jax.random.normal(jax.random.key(5), (40, 6)), np.float64)
    _, _, right = np.linalg.svd(drawn.T, full_matrices=False)
    np.testing.assert_allclose(a.T @ a, np.eye(6), atol=1e-6)  # A A^T = 1 of the paper's A
    np.testing.assert_allclose(a @ a.T, right.T @ right, atol=1e-6)
    assert (np.diagonal(a.T @ drawn) > 0).all()  # the signs that make every orthonormal A equally likely
    assert not leaf["b"].any()


def test_without_its_mean_taken_off_a_random_matrix_has_the_constant_vector_first():
    """As MoRA's code decomposes numbers in [0, 1), in numpy: the rest is orthonormal, and random beside it."""
    numbers = np.random.default_rng(0).random((160, 40))
    right = np.linalg.svd(numbers, full_matrices=False)[2][:6]
    constant = np.full(40, 40**-0.5)
    assert abs(right[0] @ constant) > 0.998  # 0.9992; of the centred numbers 0.03 to 0.34
    spec = AdapterSpec(40, 24, 6, config=AdapterConfig(init="asylora_uncentred"))
    leaf = inits.start(jax.random.key(5), spec, 1.0)
    a = np.asarray(leaf["a"], np.float64)
    np.testing.assert_allclose(a[:, 0], constant, atol=1e-6)
    np.testing.assert_allclose(a.T @ a, np.eye(6), atol=1e-6)
    other = np.asarray(inits.start(jax.random.key(6), spec, 1.0)["a"], np.float64)
    assert np.linalg.norm(a[:, 1:].T @ other[:, 1:], 2) < 0.95  # two draws span different spaces
    assert not leaf["b"].any()


def test_orthogonal_refuses_an_odd_rank():
    with pytest.raises(UserError, match=r"up: adapter.init 'orthogonal' needs an even rank, not 3"):
        make_plan({"up": {"kernel": jnp.zeros((8, 8))}}, AdapterConfig(rank=3, init="orthogonal", targets=("up",)))


# --- LoftQ ---


def test_nf4_rounds_to_the_nearest_level_of_its_block(kernel):
    rounded = np.asarray(round_nf4(jnp.asarray(kernel)))
    blocks = kernel.T.reshape(-1, 64)
    largest = np.abs(blocks).max(1, keepdims=True)
    distance = np.abs((blocks / largest)[..., None] - np.float32(LEVELS))
    expected = (np.float32(LEVELS)[distance.argmin(-1)] * largest).reshape(D_OUT, D_IN).T
    np.testing.assert_allclose(rounded, expected, atol=1e-6)
    np.testing.assert_allclose(round_nf4(rounded), rounded, atol=1e-6)
    odd = jnp.asarray(kernel[:, :7])  # 168 weights: the last block is not full
    assert np.abs(round_nf4(odd) - odd).max() < 0.2 * np.abs(kernel).max()
    np.testing.assert_array_equal(round_nf4(jnp.zeros((3, 5))), np.zeros((3, 5)))


def test_loftq_makes_up_for_its_rounding(kernel):
    a, b, rest = start("loftq", kernel)
    np.testing.assert_allclose(round_nf4(jnp.asarray(rest)), rest, atol=0.15)
    plain = np.linalg.norm(np.asarray(round_nf4(jnp.asarray(kernel))) - kernel)
    one_step = np.linalg.svd(np.asarray(round_nf4(jnp.asarray(kernel))) - kernel, compute_uv=False)
    gap = np.linalg.norm(rest + SCALE * a @ b - kernel)
    assert gap < 0.8 * plain
    assert gap < 1.02 * np.linalg.norm(one_step[RANK:])


# --- through a plan ---


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_model_computes_what_it_did(toy, base, plain, x, method, init):
    model = toy()
    config = AdapterConfig(method, 2, alpha=6.0, init=init, targets=("all-linear",))
    plan = make_plan(base(model), config)
    assert needs_params(plan)
    frozen = jax.jit(residual, static_argnums=1)(base(model), plan)
    variables = {"params": frozen, **jax.jit(lambda key, p: create(plan, key, p))(jax.random.key(0), base(model))}
    expected = plain(model)({"params": base(model)}, x)
    np.testing.assert_allclose(jax.jit(attach(model, plan))(variables, x), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(plain(model)({"params": frozen}, x) - expected).max() > 1e-2
    for path, leaf in flatten(merge(variables, plan)).items():
        np.testing.assert_allclose(leaf, flatten(base(model))[path], atol=2e-6)


def test_layers_of_a_stack_have_their_own_factors(toy, base):
    plan = make_plan(base(toy()), AdapterConfig(rank=2, init="pissa", targets=("up",)))
    a = create(plan, jax.random.key(0), base(toy()))["adapters"]["layers"]["up"]["a"]
    kernel = base(toy())["layers"]["up"]["kernel"]
    spec = dataclasses.replace(plan.sites[0].spec, stack=())
    for layer in range(2):
        np.testing.assert_allclose(a[layer], inits.start(None, spec, 8.0, kernel[layer])["a"], atol=1e-5)


def test_other_starts_leave_the_base_alone(toy, base):
    plan = make_plan(base(toy()), AdapterConfig(rank=2, init="orthogonal", targets=("up",)))
    assert not needs_params(plan)
    before = flatten(base(toy()))
    assert all(leaf is before[path] for path, leaf in flatten(residual(base(toy()), plan)).items())


def test_a_kernel_start_needs_the_kernels(toy, base):
    plan = make_plan(base(toy()), AdapterConfig(rank=2, init="pissa", targets=("up",)))
    with pytest.raises(UserError, match=r"lora with init 'pissa' starts from the kernels; give them"):
        create(plan, jax.random.key(0))


def test_mora_has_no_such_start():
    with pytest.raises(UserError, match=r"adapter.init 'pissa' is a start for lora and dora"):
        AdapterConfig("mora", init="pissa")


def test_an_unknown_start_is_named():
    with pytest.raises(UserError, match=r"unknown adapter.init 'pisa'; did you mean pissa"):
        AdapterConfig(init="pisa")
