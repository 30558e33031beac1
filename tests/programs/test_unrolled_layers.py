"""Programs of unrolled layers: no stack of weights is formed, and none waits behind a barrier."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.core.paths import flatten
from lowrank_jax.layouts.unstacked import Unstacked, reading
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model

CONFIG = dataclasses.replace(get_model("toy-llama"), head_dim=10, num_hidden_layers=3)
TOKENS = np.random.default_rng(1).integers(0, 259, (2, 7), np.int32)
VARIABLES = jax.eval_shape(Llama(CONFIG).init, jax.random.key(0), TOKENS)


def loss(variables, **fields):
    logits = Llama(CONFIG, **fields).apply(variables, TOKENS)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), TOKENS[:, 1:, None], -1).mean()


def test_a_compiled_step_never_forms_the_stack():
    def apply_fn(variables, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(layer, x, variables["params"]["layers"]["kernel"], unroll=3)[0]

    kernel, x = jnp.ones((3, 64, 64)), jnp.ones((8, 64))
    apart = Unstacked().apply({"layers": {"kernel": kernel}})
    gradient = jax.jit(jax.grad(lambda x, params: reading(apply_fn)({"params": params}, x).sum()))
    program = gradient.lower(x, apart).compile()
    assert not re.search(r"f32\[3,64,64\]", program.as_text())
    want = jax.grad(lambda x: apply_fn({"params": {"layers": {"kernel": kernel}}}, x).sum())(x)
    np.testing.assert_allclose(program(x, apart), want, rtol=1e-6)


def test_no_weights_behind_the_barriers_of_unrolled_layers():
    step = jax.jit(jax.grad(lambda v: loss(v, remat="projections", scan_unroll=3)))
    text = step.lower(VARIABLES).as_text()
    barriers = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert any("2x7x32x" in line for line in barriers)  # the block's input: without, nothing would be recomputed
    kernels = [leaf.shape[1:] for path, leaf in flatten(VARIABLES).items() if path.endswith("kernel")]
    assert (32, 48) in kernels
    for line in barriers:
        for shape in kernels:
            assert f"tensor<{'x'.join(map(str, shape))}xf32>" not in line
