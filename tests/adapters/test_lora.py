"""LoRA against peft and loralib: forward, merged kernel, initialisation, and a hundred steps of AdamW."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads
from late import torch

from lowrank_jax.adapters import lora
from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec
from lowrank_jax.core.errors import UserError

FAMILY = lora.FAMILY
D_IN, D_OUT, RANK, ALPHA = 24, 40, 4, 12.0


def draw(seed=0):
    """x, W [in, out], A [in, r], B [r, out] in float64."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=s) for s in ((5, D_IN), (D_IN, D_OUT), (D_IN, RANK), (RANK, D_OUT)))


def ours(x, w, a, b, spec):
    leaf = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    x = jnp.asarray(x, jnp.float32)
    return x @ jnp.asarray(w, jnp.float32) + branch(leaf, x, spec)


def branch(leaf, x, spec):
    return FAMILY.delta(FAMILY.scale_leaf(leaf, FAMILY.scale(spec)), x, spec)


def peft_model(model, **options):
    import peft

    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, **options)
    return peft.get_peft_model(model, config).base_model.model


def fill(parameter, value):
    with torch.no_grad():
        parameter.copy_(torch.as_tensor(np.ascontiguousarray(value)))


# --- forward ---


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
def test_forward_equals_peft(scaling):
    x, w, a, b = draw()
    model = torch.nn.Sequential(torch.nn.Linear(D_IN, D_OUT, bias=False)).double()
    model = peft_model(model, target_modules=["0"], use_rslora=scaling == "rslora").double()
    layer = model[0]
    for parameter, value in (
        (layer.base_layer.weight, w),
        (layer.lora_A.default.weight, a),
        (layer.lora_B.default.weight, b),
    ):
        fill(parameter, value.T)
    spec = AdapterSpec(D_IN, D_OUT, RANK, ALPHA, config=AdapterConfig(scaling=scaling))
    with torch.no_grad():
        np.testing.assert_allclose(ours(x, w, a, b, spec), model(torch.tensor(x)), rtol=1e-5, atol=1e-5)
        delta = layer.get_delta_weight("default").T
    leaf = {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}
    kernel = FAMILY.delta_kernel(FAMILY.scale_leaf(leaf, FAMILY.scale(spec)), spec)
    np.testing.assert_allclose(kernel, delta, rtol=1e-5, atol=1e-5)


def test_forward_equals_loralib():
    import loralib

    x, w, a, b = draw(1)
    layer = loralib.Linear(D_IN, D_OUT, r=RANK, lora_alpha=ALPHA, bias=False).double()
    for parameter, value in ((layer.weight, w), (layer.lora_A, a), (layer.lora_B, b)):
        fill(parameter, value.T)
    spec = AdapterSpec(D_IN, D_OUT, RANK, ALPHA)
    with torch.no_grad():
        branch = layer(torch.tensor(x))
        layer.eval()  # merges
        merged = layer(torch.tensor(x))
    np.testing.assert_allclose(ours(x, w, a, b, spec), branch, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours(x, w, a, b, spec), merged, rtol=1e-5, atol=1e-5)


def test_scale_formulas():
    def scale(rank, alpha, **options):
        return FAMILY.scale(AdapterSpec(64, 64, rank, alpha, config=AdapterConfig(**options)))

    assert scale(8, 16.0) == 2.0
    assert scale(16, 16.0, scaling="rslora") == 4.0
    assert scale(16, 5.0, scaling="none") == 1.0


def test_the_scale_of_a_bfloat16_branch_is_not_rounded():
    """8/3 in bfloat16 is 0.2% off what a merge adds; the roundings of the entries themselves average out."""
    spec = AdapterSpec(16, 4096, 3, alpha=8.0)
    b = jax.random.uniform(jax.random.key(0), (3, 4096), jnp.float32, 1, 2)
    y = branch({"a": jnp.ones((16, 3)), "b": b}, jnp.ones((1, 16), jnp.bfloat16), spec)
    assert y.dtype == jnp.bfloat16
    assert float(y.astype(jnp.float32).mean() / (16 * 8 / 3 * b.sum(0).mean())) == pytest.approx(1, abs=3e-4)


# --- initialisation ---


def test_kaiming_uniform_is_loralibs():
    import loralib

    spec = AdapterSpec(400, 30, 25)
    leaf = FAMILY.init(jax.random.key(0), spec)
    bound = 1 / math.sqrt(400)
    a = np.asarray(leaf["a"])
    assert (a.shape, leaf["b"].shape, a.dtype) == ((400, 25), (25, 30), np.float32)
    assert np.abs(a).max() <= bound
    assert np.abs(a).max() > 0.999 * bound
    assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(a.mean()) < 0.02 * bound
    assert not leaf["b"].any()
    theirs = loralib.Linear(400, 30, r=25).lora_A.detach().numpy()
    assert np.abs(theirs).max() == pytest.approx(np.abs(a).max(), rel=1e-3)
    assert theirs.std() == pytest.approx(a.std(), rel=0.02)


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_gaussian_has_the_given_deviation(std):
    leaf = FAMILY.init(jax.random.key(0), AdapterSpec(400, 30, 25, config=AdapterConfig(init="gaussian", init_std=std)))
    a = np.asarray(leaf["a"])
    assert a.std() == pytest.approx(std, rel=0.02)
    assert np.abs(a).max() > 3 * std
    assert not leaf["b"].any()


def test_gradients_against_finite_differences():
    x, _, a, b = draw()
    spec = AdapterSpec(D_IN, D_OUT, RANK, ALPHA)
    with jax.enable_x64(True):

        def f(a, b, x):
            return jnp.tanh(FAMILY.delta({"a": a, "b": 0.01 * b}, x, spec))

        check_grads(f, tuple(map(jnp.asarray, (a, b, x))), order=1, modes=("rev",), atol=1e-6, rtol=1e-6)


def test_only_b_has_a_gradient_at_the_start():
    spec = AdapterSpec(D_IN, D_OUT, RANK)
    leaf = FAMILY.init(jax.random.key(0), spec)
    x = jax.random.normal(jax.random.key(1), (5, D_IN))
    grads = jax.grad(lambda leaf: FAMILY.delta(leaf, x, spec).sum())(leaf)
    assert not grads["a"].any()
    assert grads["b"].any()


# --- parameter counts of the papers ---


@pytest.mark.parametrize(
    ("rank", "total"), [(8, 19_988_480), (16, 39_976_960), (32, 79_953_920), (64, 159_907_840), (256, 639_631_360)]
)
def test_counts_of_llama_7b(rank, total):
    shapes = ((4096, 4096),) * 4 + ((4096, 11008),) * 2 + ((11008, 4096),)
    assert 32 * sum(FAMILY.parameters(AdapterSpec(*shape, rank)) for shape in shapes) == total


@pytest.mark.parametrize(
    ("layers", "width", "rank", "total"),
    [(12, 768, 8, 294_912), (24, 1024, 8, 786_432), (48, 1536, 16, 4_718_592), (24, 1024, 4, 393_216)],
)
def test_counts_of_query_and_value(layers, width, rank, total):
    """Hu et al. 5.1: 2 L d r."""
    assert 2 * layers * FAMILY.parameters(AdapterSpec(width, width, rank)) == total


def test_pretraining_counts():
    for width, ffn, total in ((768, 2560, 49.55), (2048, 5461, 119.5)):
        shapes = ((width, width),) * 4 + ((width, ffn),) * 2 + ((ffn, width),)
        count = 24 * sum(FAMILY.parameters(AdapterSpec(*shape, 128)) for shape in shapes)
        assert count / 1e6 == pytest.approx(total, abs=0.05)


# --- bad input ---


def test_a_rank_above_the_smaller_side_is_refused():
    with pytest.raises(UserError, match=r"LoRA rank 17 exceeds the smaller side of a 16 x 64 kernel.*<= 16"):
        FAMILY.shapes(AdapterSpec(16, 64, 17))
    assert FAMILY.shapes(AdapterSpec(16, 64, 16)) == {"a": (16, 16), "b": (16, 64)}


# --- a hundred steps of AdamW beside torch and peft, float64 on both sides ---


def test_adamw_trajectory_equals_torch_and_peft():
    d_in, width, d_out, steps = 6, 16, 3, 100
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(20, d_in)), rng.normal(size=(20, d_out))
    kernels = {"0": rng.normal(size=(d_in, width)), "2": rng.normal(size=(width, d_out))}
    rank = {"0": RANK, "2": 2}
    options = {"lr": 3e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}

    model = torch.nn.Sequential(
        torch.nn.Linear(d_in, width, bias=False), torch.nn.Tanh(), torch.nn.Linear(width, d_out, bias=False)
    ).double()
    model = peft_model(model, target_modules=["0", "2"], rank_pattern={"2": 2}).double()
    start = {}
    for name, kernel in kernels.items():
        layer = model[int(name)]
        fill(layer.base_layer.weight, kernel.T)
        start[name] = {
            "a": rng.normal(size=(kernel.shape[0], rank[name])),
            "b": np.zeros((rank[name], kernel.shape[1])),
        }
        fill(layer.lora_A.default.weight, start[name]["a"].T)
        fill(layer.lora_B.default.weight, start[name]["b"].T)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) == 4
    adamw = torch.optim.AdamW(
        trainable, options["lr"], (options["b1"], options["b2"]), options["eps"], options["weight_decay"]
    )
    their_losses = []
    for _ in range(steps):
        adamw.zero_grad()
        loss = ((model(torch.tensor(inputs)) - torch.tensor(labels)) ** 2).mean()
        loss.backward()
        adamw.step()
        their_losses.append(loss.item())

    with jax.enable_x64(True):
        specs = {name: AdapterSpec(*kernel.shape, rank[name], ALPHA) for name, kernel in kernels.items()}
        tx = optax.adamw(
            options["lr"], *(options[k] for k in ("b1", "b2", "eps")), weight_decay=options["weight_decay"]
        )
        x, y, base = jnp.asarray(inputs), jnp.asarray(labels), jax.tree.map(jnp.asarray, kernels)

        def forward(adapters):
            h = x
            for name in ("0", "2"):
                spec = specs[name]
                h = h @ base[name] + branch(adapters[name], h, spec)
                h = jnp.tanh(h) if name == "0" else h
            return ((h - y) ** 2).mean()

        def step(carry, _):
            adapters, state = carry
            loss, grads = jax.value_and_grad(forward)(adapters)
            updates, state = tx.update(grads, state, adapters)
            return (optax.apply_updates(adapters, updates), state), loss

        adapters = jax.tree.map(jnp.asarray, start)
        (adapters, _), losses = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))((adapters, tx.init(adapters)))
        assert losses.dtype == jnp.float64
        np.testing.assert_allclose(losses, their_losses, rtol=1e-9, atol=1e-9)
        for name in kernels:
            layer = model[int(name)]
            for leaf, theirs in (("a", layer.lora_A.default.weight), ("b", layer.lora_B.default.weight)):
                np.testing.assert_allclose(adapters[name][leaf], theirs.detach().numpy().T, rtol=1e-9, atol=1e-9)
    assert their_losses[-1] < 0.5 * their_losses[0]
