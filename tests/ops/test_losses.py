"""Losses: against torch, chunked against plain in value and gradient, and without gathers on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from late import torch

from lowrank_jax.ops import losses
from lowrank_jax.ops.losses import chunked_next_token_loss, next_token_loss

B, T, D, V = 3, 11, 6, 17
plain_loss = jax.jit(next_token_loss)


def draw(batch=B, length=T, seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(batch, length, D)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    tokens = jnp.asarray(rng.integers(0, V, (batch, length)), jnp.int32)
    weights = jnp.asarray(rng.integers(0, 2, (batch, length)) * rng.uniform(0.5, 2, (batch, length)), jnp.float32)
    return hidden, kernel, tokens, weights


def test_equals_torch_in_value_and_gradient():
    hidden, kernel, tokens, weights = draw()
    logits = np.asarray(hidden @ kernel)
    theirs = torch.tensor(logits, requires_grad=True)
    each = torch.nn.functional.cross_entropy(
        theirs[:, :-1].reshape(-1, V), torch.tensor(np.asarray(tokens[:, 1:])).long().reshape(-1), reduction="none"
    )
    total = (each * torch.tensor(np.asarray(weights[:, 1:])).reshape(-1)).sum()
    total.backward()
    ours, gradient = jax.jit(jax.value_and_grad(lambda x: next_token_loss(x, tokens, weights).loss))(logits)
    np.testing.assert_allclose(ours, total.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=1e-6)


def test_counts_weights_and_correct_tokens_of_positions_after_the_first():
    tokens = jnp.asarray([[3, 1, 2, 0]])
    logits = jnp.asarray(9 * np.eye(5, dtype=np.float32)[[[1, 2, 2, 3]]])  # predicts 1, 2, 2: right, right, wrong
    sums = plain_loss(logits, tokens, jnp.asarray([[7.0, 1.0, 0.5, 1.0]]))
    assert sums.weight == 2.5
    assert sums.correct == 1.5
    assert all(x.dtype == jnp.float32 for x in plain_loss(logits.astype(jnp.bfloat16), tokens, jnp.ones((1, 4), bool)))


def test_uniform_logits_cost_the_log_of_the_vocabulary():
    _, _, tokens, _ = draw()
    sums = plain_loss(jnp.zeros((B, T, V)), tokens, jnp.ones((B, T)))
    np.testing.assert_allclose(sums.loss / sums.weight, np.log(V), rtol=1e-6)


def test_extreme_logits_stay_finite():
    large, masked = np.full((1, 2, 3), -1e30, np.float32), np.zeros((1, 2, 3), np.float32)
    large[0, 0, 1], masked[..., 2] = 1e30, -np.inf  # a masked-out token that is not the target
    sums = plain_loss(large, jnp.asarray([[0, 1]]), jnp.ones((1, 2)))
    assert sums.loss == 0
    np.testing.assert_allclose(plain_loss(masked, jnp.asarray([[0, 1]]), jnp.ones((1, 2))).loss, np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("chunk_tokens", "unroll"), [*((n, 1) for n in (0, 1, 4, 10, 30, 1000)), (3, 4), (1, 20)])
def test_chunks_change_neither_value_nor_gradient(chunk_tokens, unroll):
    hidden, kernel, tokens, weights = draw()

    def plain(hidden, kernel):
        sums = next_token_loss(hidden @ kernel, tokens, weights)
        return sums.loss, sums

    def chunked(hidden, kernel):
        sums = chunked_next_token_loss(hidden, lambda h: h @ kernel, tokens, weights, chunk_tokens, unroll)
        return sums.loss, sums

    (_, expected), gradients = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(hidden, kernel)
    (_, got), ours = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))(hidden, kernel)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    for a, b in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_a_sequence_of_one_token_has_no_targets():
    hidden, kernel, tokens, weights = draw(length=1)
    assert chunked_next_token_loss(hidden, lambda h: h @ kernel, tokens, weights, 4) == (0, 0, 0)


def test_runs_under_vmap_over_trials():
    hidden, kernel, tokens, weights = draw()
    kernels = jnp.stack([kernel, 2 * kernel])
    chunked = jax.vmap(lambda k: chunked_next_token_loss(hidden, lambda h: h @ k, tokens, weights, 6).loss)
    losses = jax.jit(chunked)(kernels)
    expected = [plain_loss(hidden @ k, tokens, weights).loss for k in (kernel, 2 * kernel)]
    np.testing.assert_allclose(losses, np.stack(expected), rtol=1e-5)


def test_a_trained_bias_beside_a_frozen_kernel():
    hidden, kernel, tokens, weights = draw()
    bias = jnp.linspace(-1, 1, V)

    def loss(chunk_tokens, hidden, bias):
        return chunked_next_token_loss(hidden, lambda h: h @ kernel + bias, tokens, weights, chunk_tokens).loss

    @jax.jit
    def gradients(kernel, hidden, bias):  # a frozen kernel is a traced value too
        def loss(hidden, bias):
            return chunked_next_token_loss(hidden, lambda h: h @ kernel + bias, tokens, weights, 6).loss

        return jax.grad(loss, (0, 1))(hidden, bias), jax.grad(loss, 1)(hidden, bias)

    expected = jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)(0, hidden, bias)
    both, of_bias = gradients(kernel, hidden, bias)
    for got, wanted in zip((*both, of_bias), (*expected, expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_what_is_counted_has_no_gradient_in_chunks():
    hidden, kernel, tokens, weights = draw()

    def count(hidden, weights):
        sums = chunked_next_token_loss(hidden, lambda h: h @ kernel, tokens, weights, 6)
        return sums.correct + sums.weight

    for gradient in jax.jit(jax.grad(count, (0, 1)))(hidden, weights):
        assert not np.any(gradient)


def test_a_chunks_logits_are_computed_once():
    hidden, kernel, tokens, weights = draw()

    def loss(hidden):
        return chunked_next_token_loss(hidden, lambda h: h @ kernel, tokens, weights, 6).loss

    program = str(jax.make_jaxpr(jax.grad(loss))(hidden))
    assert program.count("dot_general") == 2  # h W and g W^T, in one loop
    assert program.count(" scan[") == 1


def test_no_sums_are_kept_for_what_the_head_does_not_read():
    hidden, kernel, tokens, weights = draw()
    layer = jnp.linspace(-1, 1, D * 5 * 7).reshape(5, 7, D)

    def loss(layer, kernel, chunk_tokens):
        def head(hidden):
            jnp.stack(list(layer))  # as a model's "logits", which is handed the layers' variables too
            return hidden @ kernel

        return chunked_next_token_loss(hidden * jnp.sum(layer), head, tokens, weights, chunk_tokens).loss

    program = jax.make_jaxpr(jax.grad(loss, (0, 1)), static_argnums=2)(layer, kernel, 6)
    (loop,) = (eqn for eqn in program.eqns if eqn.primitive.name == "scan")
    kept = [x.aval.shape for x in loop.outvars]  # its sums, and rows of chunks, which have an axis more
    assert kernel.shape in kept
    assert layer.shape not in kept
    gradients = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    for got, wanted in zip(*(gradients(layer, kernel, size) for size in (6, 0)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def compiled(chunk_tokens, batch, length, vocab, shardings=None):
    def gradient(hidden, kernel, tokens, weights):
        def loss(hidden):
            return chunked_next_token_loss(hidden, lambda h: h @ kernel, tokens, weights, chunk_tokens).loss

        return jax.value_and_grad(loss)(hidden)

    shapes = [
        jax.ShapeDtypeStruct((batch, length, D), jnp.float32),
        jax.ShapeDtypeStruct((D, vocab), jnp.float32),
        jax.ShapeDtypeStruct((batch, length), jnp.int32),
        jax.ShapeDtypeStruct((batch, length), jnp.float32),
    ]
    out = shardings and (shardings[1], shardings[0])
    return jax.jit(gradient, in_shardings=shardings, out_shardings=out).lower(*shapes).compile()


def test_no_array_of_all_logits_is_formed():
    batch, length, vocab = 4, 65, 1000
    logits = batch * (length - 1) * vocab * 4
    assert compiled(0, batch, length, vocab).memory_analysis().temp_size_in_bytes > logits
    assert compiled(16, batch, length, vocab).memory_analysis().temp_size_in_bytes < logits / 2


def test_batch_shards_are_not_gathered():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    text = compiled(16, 16, 33, 50, (rows, everywhere, rows, rows)).as_text()
    assert "all-reduce" in text  # the sum over devices
    assert not any(op in text for op in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("chunk_tokens", [0, 6])
def test_label_smoothing_equals_torch_in_value_and_gradient(chunk_tokens):
    """(1 - e) nll + e mean over the vocabulary of -log p, as torch and LoRA's script have it."""
    hidden, kernel, tokens, weights = draw()
    theirs = [torch.tensor(np.asarray(x), requires_grad=True) for x in (hidden, kernel)]
    each = torch.nn.functional.cross_entropy(
        (theirs[0] @ theirs[1])[:, :-1].reshape(-1, V), torch.tensor(np.asarray(tokens[:, 1:])).long().reshape(-1),
        reduction="none", label_smoothing=0.1,
    )  # fmt: skip
    total = (each * torch.tensor(np.asarray(weights[:, 1:])).reshape(-1)).sum()
    total.backward()

    def loss(hidden, kernel, smoothing):
        given = (hidden, lambda h: h @ kernel, tokens, weights, chunk_tokens)
        return chunked_next_token_loss(*given, smoothing=smoothing).loss

    ours, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=2)(hidden, kernel, 0.1)
    np.testing.assert_allclose(ours, total.item(), rtol=1e-6)
    for one, other in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(one, other.grad.numpy(), atol=3e-6)
    alone = jax.jit(loss, static_argnums=2)  # as an evaluation has it, without a gradient
    np.testing.assert_allclose(alone(hidden, kernel, 0.1), total.item(), rtol=1e-6)
    assert abs(ours - alone(hidden, kernel, 0.0)) > 0.1


@pytest.mark.parametrize("chunk_tokens", [0, 6])
def test_logits_that_are_read_once_say_the_same(chunk_tokens, monkeypatch):
    """A GPU's form: one reduction has the largest logit and the sum of exponentials, in value, gradient and counts."""
    hidden, kernel, tokens, weights = (jnp.stack(x) for x in zip(draw(), draw(seed=1), strict=True))
    hidden = 9 * hidden.at[0, 0, 0].multiply(1e6)  # one row's logits are too far apart for a sum without a maximum

    def loss(smoothing):
        def each(hidden, kernel, tokens, weights):
            sums = chunked_next_token_loss(
                hidden, lambda h: h @ kernel, tokens, weights, chunk_tokens, smoothing=smoothing
            )
            return sums.loss, sums

        return jax.jit(jax.vmap(jax.value_and_grad(each, (0, 1), has_aux=True)))

    given = (hidden, kernel, tokens, weights)
    apart = [loss(smoothing)(*given) for smoothing in (0.0, 0.1)]
    monkeypatch.setattr(losses, "platform", lambda: "gpu")
    once = [loss(smoothing)(*given) for smoothing in (0.0, 0.1)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-5 * jnp.abs(a).max()), apart, once)
    program = jax.make_jaxpr(lambda *x: losses.next_token_loss(*x, 0.1))(jnp.zeros((B, T, V)), tokens[0], weights[0])
    assert str(program).count("reduce_max") == 0
    masked = jnp.zeros((1, 2, 3)).at[..., 2].set(-jnp.inf)
    np.testing.assert_allclose(next_token_loss(masked, jnp.array([[0, 1]]), jnp.ones((1, 2))).loss, np.log(2), 1e-6)
