"""The training step: a pure function of (state, frozen, batch), with the gradient of the trainable tree alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Shaped

from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import Array, Objective, Tree
from lowrank_jax.train.state import TrainState

Batch = dict[str, Shaped[Array, "batch ..."]]  # a host's or a device's rows, features by name
Metrics = dict[str, Shaped[Array, ""]]


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, shape: optax.Schedule, accumulate: int = 1
) -> Callable[[TrainState, Tree, Batch], tuple[TrainState, Metrics]]:
    """step(state, frozen, batch) -> (state, metrics).

    theta <- theta - peak * shape(step) * optimizer(grad), grad = d(sum of losses / sum of weights) / d theta.

    Args:
      objective: loss and weight sums of a batch.
      optimizer: updates for a rate of 1 (`optimizer.make_optimizer`).
      shape: step -> multiplier of the peak rate.
      accumulate: number of micro-batches of a batch; the result is the same but for rounding.

    Returns:
      The step. Where loss or gradient is not finite (metrics["finite"]), it changes nothing of the state but the
        counter.
    """

    def step(state: TrainState, frozen: Tree, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(trainable: Tree, micro, index) -> tuple[Float[Array, ""], Metrics]:
            rngs = {"dropout": jax.random.fold_in(key, index)}
            return objective(combine(trainable, frozen), micro, rngs)

        def loss_and_grad(micro, index):
            (loss, sums), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable, micro, index)
            return {"loss": loss, **sums}, grads

        if accumulate == 1:
            sums, grads = loss_and_grad(batch, 0)
        else:
            # Micro-batch i takes rows i, i + A, i + 2A, ...: each device keeps its rows.
            micros = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
            # Without the gradient, which has the shapes of the leaves: it would be traced here too.
            loss, sums = jax.eval_shape(loss_fn, state.trainable, jax.tree.map(lambda x: x[0], micros), 0)
            shapes = {"loss": loss, **sums}, state.trainable
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def body(total, inputs):
                return jax.tree.map(jnp.add, total, loss_and_grad(*inputs)), None

            (sums, grads), _ = jax.lax.scan(body, zeros, (micros, jnp.arange(accumulate)))

        weight = jnp.maximum(sums["weight"], 1.0)
        grads = jax.tree.map(lambda g: g / weight, grads)
        grad_norm = optax.tree.norm(grads)
        rate = state.learning_rate * shape(state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = jax.tree.map(lambda p, u: p - rate * u, state.trainable, updates)
        loss = sums["loss"] / weight
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (trainable, opt_state), (state.trainable, state.opt_state)
        )
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": rate, "finite": finite}
        metrics |= {"accuracy": sums["correct"] / weight, "tokens": sums.get("tokens", sums["weight"])}
        return state._replace(step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics

    return step
