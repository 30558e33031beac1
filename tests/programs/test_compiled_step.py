"""The compiled step behind the speed tables: the base is an argument once, is not copied, and logits come in chunks.

Equality of fast and plain forms is tested elsewhere: remat and unroll in models/test_stack.py, chunked losses in
ops/test_losses.py, trials in test_trials.py and experiments/test_trials.py, products in ops/test_products.py, fast
adapters in adapters/test_fast.py, the settings of the suites as whole steps in experiments/test_bench.py.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from lowrank_jax import adapters
from lowrank_jax.core.trees import nbytes, partition
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.train import trials
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.state import init_state, trainable_rules
from lowrank_jax.train.step import make_step

# A vocabulary and layers that no other array of the step is as large as.
CONFIG = LlamaConfig(512, 96, 256, 3, 4, tie_word_embeddings=True, max_position_embeddings=64)
BATCH, LENGTH = 2, 17
NO_BYTES = {"parameter", "get-tuple-element", "bitcast", "while", "tuple"}  # instructions that only name some


def abstract(method="lora", trainable="adapters", chunk_tokens=0, **fields):
    """(objective, optimizer, state, frozen, batch), shapes alone."""
    model = Llama(CONFIG, **fields)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig(method, rank=2, targets=("all-linear",)))
    created = jax.eval_shape(lambda key: adapters.create(plan, key), jax.random.key(0)) if plan.sites else {}
    learnt, frozen = partition({"params": params, **created}, trainable_rules(trainable))
    optimizer = make_optimizer(OptimizerConfig())
    state = jax.eval_shape(lambda tree: init_state(tree, optimizer, 1e-3, seed=0), learnt)
    batch = {"tokens": tokens, "weights": jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.float32)}
    return next_token_objective(adapters.attach(model, plan), chunk_tokens), optimizer, state, frozen, batch


@functools.cache
def compile_step(**how):
    objective, optimizer, state, frozen, batch = abstract(**how)
    step = make_step(objective, optimizer, optax.constant_schedule(1.0))
    compiled = jax.jit(step, donate_argnums=0).lower(state, frozen, batch).compile()
    return compiled, state, frozen


def made(text):
    """(opcode, elements) of every float32 array that an instruction of the program makes."""
    for dims, opcode in re.findall(r"= f32\[([\d,]*)\]\S* ([\w-]+)\(", text):
        if opcode not in NO_BYTES:
            yield opcode, math.prod(int(n) for n in dims.split(",") if n)


def largest(text):
    return max(size for _, size in made(text))


def test_no_logits_of_all_tokens_in_a_chunked_step():
    """Nor their gradient; the plain step has both, or the test sees nothing."""
    rows = {BATCH * LENGTH, BATCH * (LENGTH - 1)}

    def whole(chunk_tokens):
        text = compile_step(**({"chunk_tokens": chunk_tokens} if chunk_tokens else {}))[0].as_text()
        shapes = [[int(n) for n in dims.split(",")] for dims in re.findall(r"f32\[([\d,]+)\]", text)]
        return [shape for shape in shapes if shape[-1] == CONFIG.vocab_size and math.prod(shape[:-1]) in rows]

    assert whole(0)
    assert not whole(8)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scan_unroll": 3},
        {"remat": "projections"},
        {"remat": "full", "scan_unroll": 3},
        {"method": "mora", "remat": "projections"},
    ],
    ids=str,
)
def test_one_base_among_the_arguments_and_no_stack_of_kernels_made(how):
    """Kernels of all layers, [3, 96, 256], are read in place: not copied, cast, transposed or added to."""
    compiled, state, frozen = compile_step(**how)
    memory, base = compiled.memory_analysis(), nbytes(frozen["params"])
    given = base + nbytes(state)
    assert given <= memory.argument_size_in_bytes < given * 1.02 + 4096
    assert memory.output_size_in_bytes < nbytes(state) * 1.01 + 4096
    assert largest(compiled.as_text()) < CONFIG.num_hidden_layers * CONFIG.hidden_size * CONFIG.intermediate_size


def test_full_fine_tuning_makes_them():
    """What the test above looks for is there where kernels are trained."""
    text = compile_step(method="none", trainable="full")[0].as_text()
    assert largest(text) >= CONFIG.num_hidden_layers * CONFIG.hidden_size * CONFIG.intermediate_size


def test_one_base_among_the_arguments_of_many_trials():
    """States and activations grow with the trials, the base does not."""
    count = 3
    objective, optimizer, state, frozen, batch = abstract()
    axes = trials.frozen_axes(frozen)
    step = trials.together(
        trials.make_trial_step(objective, optimizer), axes, trials.trial_mesh(count, jax.devices()[:1])
    )

    def stacked(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), tree)

    states, shared = stacked(state), {n: t if axes[n] is None else stacked(t) for n, t in frozen.items()}
    tables, lasts = jax.ShapeDtypeStruct((count, 3), jnp.float32), jax.ShapeDtypeStruct((count,), jnp.int32)
    compiled = step.lower(states, shared, stacked(batch), tables, lasts).compile()
    memory, base = compiled.memory_analysis(), nbytes(frozen["params"])
    given = base + nbytes(states)
    assert given <= memory.argument_size_in_bytes < given * 1.02 + 4096 * count
    assert memory.output_size_in_bytes < nbytes(states) * 1.01 + 4096 * count
    alone = compile_step()[0].memory_analysis().temp_size_in_bytes
    assert memory.temp_size_in_bytes < count * alone + base / 4
