"""Next-token cross-entropy: sums over targets, over all logits at once, or in chunks of them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jaxtyping import Float, Integer, Shaped

from lowrank_jax.core.types import Array
from lowrank_jax.ops.capability import platform


class LossSums(NamedTuple):
    """Float32 sums over the targets of a batch; mean loss = loss / weight, token accuracy = correct / weight.

    Sums and not means: they add up over chunks, accumulation steps and processes.
    """

    loss: Array  # sum of weight * -log p(target), in nats
    weight: Array  # sum of weights
    correct: Array  # sum of weight where the target is the most likely token


def next_token_loss(
    logits: Float[Array, "B T V"],
    tokens: Integer[Array, "B T"],
    weights: Shaped[Array, "B T"],
    smoothing: float = 0.0,
) -> LossSums:
    """Sum over t >= 1 of weights[t] (logsumexp(logits[t - 1]) - logits[t - 1, tokens[t]]).

    Args:
      logits: [B, T, V]; computed with in float32.
      tokens: int [B, T].
      weights: [B, T]; position 0 is never a target.
      smoothing: e of label smoothing: (1 - e) (-log p(target)) + e mean over the vocabulary of -log p.
    """
    # Targets move, logits do not: cutting the last column off costs a padded copy of the logits' gradient (6.8 of 268
    # ms for SmolLM2-135M at 1,000 x 68 on one H100).
    tokens, weights = (jnp.pad(x[:, 1:], ((0, 0), (0, 1))) for x in (tokens, weights))
    return _sums(logits, tokens, weights, smoothing)


def chunked_next_token_loss(
    hidden: Float[Array, "B T D"],
    logits_fn: Callable[[Float[Array, "B t D"]], Float[Array, "B t V"]],
    tokens: Integer[Array, "B T"],
    weights: Shaped[Array, "B T"],
    chunk_tokens: int,
    unroll: int = 1,
    smoothing: float = 0.0,
) -> LossSums:
    """`next_token_loss(logits_fn(hidden), ...)`, in value and gradient, with one chunk of logits in memory at a time.

    Where gradients are needed, those of a chunk are computed as soon as its logits are,

        d loss / d logits[b, t] = weights[b, t] (softmax(logits[b, t]) - (1 - e) onehot(target[b, t]) - e / V),

    and the backward pass only scales them: no logits are saved or computed twice (sizes: docs/performance_log.md,
    "Figures behind comments in the code").

    Args:
      hidden: [B, T, D], the input of the head.
      logits_fn: [B, t, D] -> logits [B, t, V].
      tokens, weights: as in `next_token_loss`; in chunks no gradient flows to the weights.
      chunk_tokens: about how many tokens a chunk has, over the whole batch; 0 computes all logits at once.
      unroll: chunks an iteration of the compiled loop; see `train.compiled.options.loss_unroll`.
      smoothing: e, as in `next_token_loss`.
    """
    batch, length, _ = hidden.shape
    if not chunk_tokens or chunk_tokens >= batch * (length - 1):
        return next_token_loss(logits_fn(hidden), tokens, weights, smoothing)
    # Chunks are cut along T, never along B: the batch axis is sharded over devices, and a chunk of rows would live on
    # a few of them, so that each scan step would gather it. A cut through T keeps every device at work on its own rows.
    count = -(-(length - 1) // max(1, -(-chunk_tokens // batch)))
    size = -(-(length - 1) // count)  # equal chunks leave less padding than full ones and a short last one
    padding = count * size - (length - 1)

    def chunks(x):  # [B, T - 1, ...] -> [count, B, size, ...]
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))  # weight 0: the padding is no target
        return jnp.moveaxis(x.reshape(batch, count, size, *x.shape[2:]), 1, 0)

    parts = chunks(hidden[:, :-1])
    pure_fn, head = jax.closure_convert(logits_fn, parts[0])
    targets = (chunks(tokens[:, 1:]), chunks(jax.lax.stop_gradient(weights)[:, 1:]))
    read = _read(pure_fn, parts[0], *head)[1:]
    return _loss_in_chunks(pure_fn, read, unroll, smoothing)(parts, tuple(head), targets)


def _read(fn: Callable[..., Array], *arguments: Array) -> list[bool]:
    """Which of the arguments the function's value depends on."""
    return partial_eval.dce_jaxpr(jax.make_jaxpr(fn)(*arguments).jaxpr, True)[1]


def _loss_in_chunks(
    logits_fn: Callable[..., Array], read: list[bool], unroll: int, smoothing: float
) -> Callable[..., LossSums]:
    """(hidden [count, B, size, D], logits_fn's other arguments, (targets, weights) [count, B, size]) -> sums.

    Args:
      read: which of those other arguments the logits depend on.
      unroll, smoothing: as in `chunked_next_token_loss`.
    """
    zero = jnp.zeros((), jnp.float32)
    nothing = LossSums(zero, zero, zero)

    @jax.custom_vjp
    def loss(parts, head, targets):
        def add(sums, chunk):
            hidden, (tokens, weights) = chunk
            return jax.tree.map(jnp.add, sums, _sums(logits_fn(hidden, *head), tokens, weights, smoothing)), None

        return jax.lax.scan(add, nothing, (parts, targets))[0]

    def forward(parts, head, targets):
        # No gradient is computed for a frozen head, nor zeros for what is trained in the layers below: a model's
        # "logits" takes all of its variables, and the loop would carry a sum for each.
        trained = [x.perturbed and is_read for x, is_read in zip(head, read, strict=True)]
        parts, head, targets = jax.tree.map(lambda x: x.value, (parts, head, targets))
        fixed = [x for x, moves in zip(head, trained, strict=True) if not moves]

        def logits_of(hidden, moving):
            sources = {True: iter(moving), False: iter(fixed)}
            return logits_fn(hidden, *(next(sources[moves]) for moves in trained))

        def add(carry, chunk):
            # With barriers, chunks of one iteration run in order: the next one's logits wait for this one's gradient.
            (sums, of_head), (hidden, (tokens, weights)) = jax.lax.optimization_barrier((carry, chunk))
            logits, pull = jax.vjp(logits_of, hidden, moving)
            chunk_sums, of_logits = _sums_and_gradient(logits, tokens, weights, smoothing)
            of_hidden, of_chunk = pull(of_logits)
            sums = jax.tree.map(jnp.add, sums, chunk_sums)
            return jax.lax.optimization_barrier(((sums, jax.tree.map(jnp.add, of_head, of_chunk)), of_hidden))

        moving = [x for x, moves in zip(head, trained, strict=True) if moves]
        start = (nothing, jax.tree.map(jnp.zeros_like, moving))
        (sums, of_head), of_parts = jax.lax.scan(add, start, (parts, targets), unroll=unroll)
        of_head = iter(of_head)
        return sums, (of_parts, tuple(next(of_head) if moves else None for moves in trained))

    def backward(gradients, given):
        if isinstance(given.loss, jax.custom_derivatives.SymbolicZero):
            return None, None, None
        return *jax.tree.map(lambda x: (given.loss * x).astype(x.dtype), gradients), None

    loss.defvjp(forward, backward, symbolic_zeros=True)
    return loss


def _sums_and_gradient(
    logits: Float[Array, "B t V"], targets: Integer[Array, "B t"], weights: Shaped[Array, "B t"], smoothing: float
) -> tuple[LossSums, Float[Array, "B t V"]]:
    """`_sums`, and the gradient of their loss by the logits, in the logits' dtype."""
    logits32, weights32 = logits.astype(jnp.float32), weights.astype(jnp.float32)
    if platform() == "gpu":
        each, (_, _, logsumexp) = _one_pass_forward(logits32, targets, smoothing)
        sums, probabilities = _weighted(each, weights32), jnp.exp(logits32 - logsumexp[..., None])
    else:
        sums, probabilities = _sums(logits, targets, weights, smoothing), jax.nn.softmax(logits32)
    return sums, _gradient(probabilities, targets, weights32, smoothing).astype(logits.dtype)


def _gradient(probabilities: Array, targets: Array, weights: Array, smoothing: float) -> Array:
    """weights (probabilities - (1 - e) onehot(targets) - e / V): the loss's gradient by the logits, [B, t, V]."""
    wanted = _is_target(probabilities, targets)
    if smoothing:
        wanted = (1 - smoothing) * wanted + smoothing / probabilities.shape[-1]
    return weights[..., None] * (probabilities - wanted)


def _sums(
    logits: Float[Array, "B t V"], targets: Integer[Array, "B t"], weights: Shaped[Array, "B t"], smoothing: float
) -> LossSums:
    logits, weights = logits.astype(jnp.float32), weights.astype(jnp.float32)
    if platform() == "gpu":
        return _weighted(one_pass_losses(logits, targets, smoothing), weights)
    target_logits = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
    wanted = target_logits
    if smoothing:
        wanted = (1 - smoothing) * target_logits + smoothing * jnp.mean(logits, axis=-1)
    losses = jax.nn.logsumexp(logits, axis=-1) - wanted
    # The maximum is logsumexp's own; an argmax would be one more pass over the logits.
    return _weighted((losses, target_logits >= jnp.max(jax.lax.stop_gradient(logits), axis=-1)), weights)


def _weighted(each: tuple[Array, Array], weights: Array) -> LossSums:
    losses, correct = each
    return LossSums(jnp.sum(losses * weights), jnp.sum(weights), jnp.sum(correct * weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def one_pass_losses(
    logits: Float[Array, "B t V"], targets: Integer[Array, "B t"], smoothing: float
) -> tuple[Float[Array, "B t"], Shaped[Array, "B t"]]:
    """(-log p of each target, smoothed; whether it is the most likely token), by one pass over float32 logits.

    Each sum of exponentials is kept relative to the largest logit of its part:

        (top, sum) + (top', sum') = (m, sum e^(top - m) + sum' e^(top' - m)), m = max(top, top')

    XLA's GPU backend would otherwise read the logits three or four times, as each reduction that waits for another, or
    that has another shape, is a kernel of its own. The gradient is one more pass. Bytes: docs/performance_log.md,
    "Figures behind comments in the code".
    """
    return _one_pass_forward(logits, targets, smoothing)[0]


def _one_pass_forward(logits, targets, smoothing):
    def add(one, other):
        (top, total, *sums), (top_, total_, *sums_) = one, other
        most = jnp.maximum(top, top_)
        scaled = total * jnp.exp(top - most) + total_ * jnp.exp(top_ - most)
        return most, scaled, *(a + b for a, b in zip(sums, sums_, strict=True))

    # The maximum starts at the smallest finite number and not at -inf, as -inf - (-inf) would be NaN.
    lowest, zero = jnp.float32(jnp.finfo(jnp.float32).min), jnp.float32(0)
    read = [logits, jnp.ones_like(logits), jnp.where(_is_target(logits, targets), logits, 0.0)]
    read += [logits] if smoothing else []
    starts = [lowest] + [zero] * (len(read) - 1)
    top, total, target, *summed = jax.lax.reduce(read, starts, add, (logits.ndim - 1,))
    logsumexp, wanted = top + jnp.log(total), target
    if smoothing:
        wanted = (1 - smoothing) * target + smoothing * summed[0] / logits.shape[-1]
    return (logsumexp - wanted, target >= top), (logits, targets, logsumexp)


def _one_pass_backward(smoothing, residuals, g):
    logits, targets, logsumexp = residuals
    return _gradient(jnp.exp(logits - logsumexp[..., None]), targets, g[0], smoothing), None


one_pass_losses.defvjp(_one_pass_forward, _one_pass_backward)


def _is_target(logits: Array, targets: Array) -> Array:
    # Compared with an iota and not gathered: the gather's gradient is a scatter into a second [B, T, V] array, this one
    # fuses with the softmax, and it needs no gather where the vocabulary is sharded.
    return jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
