"""The step on a quantised base: its memory, and the same numbers on a mesh."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine, count, nbytes, partition
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.layouts.run_time import layout_of
from lowrank_jax.layouts.unstacked import reading
from lowrank_jax.models.llama import Llama, LlamaConfig
from lowrank_jax.ops.fp8 import RECIPE, Fp8Config
from lowrank_jax.ops.quantized import Quantized, quantize
from lowrank_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from lowrank_jax.sharding.rules import shard_tree
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.schedule import ScheduleConfig, make_shape
from lowrank_jax.train.state import init_state
from lowrank_jax.train.step import make_step

# 19 million weights, 98% of them in kernels of 24 layers, under 16 tokens.
WIDE = LlamaConfig(256, 256, 704, 24, 4, tie_word_embeddings=True, max_position_embeddings=64)
SMALL = LlamaConfig(64, 128, 256, 2, 4, tie_word_embeddings=True, max_position_embeddings=32)

TOKENS = np.random.default_rng(0).integers(0, 64, (8, 8)).astype(np.int32)


def shapes_of(make):
    """What `make` returns, as shapes."""
    return functools.partial(jax.eval_shape, make)


def held(params, kind, recipe=RECIPE):
    """Parameters with quantised kernels."""
    flat = flatten(params)
    codes = jax.jit(lambda w: quantize(w, kind, recipe))
    return unflatten({p: codes(x) if p.endswith("/kernel") else x for p, x in flat.items()})


def setup(params, shape, remat, dtype, mesh=None, method="lora", make=jax.jit):
    """The jitted step, its state, frozen leaves and a batch; `make` is jax.jit, or `shapes_of` for a base of shapes."""
    model = Llama(shape, remat=remat, dtype=dtype, param_dtype=dtype)
    plan = adapters.make_plan(params, adapters.AdapterConfig(method, rank=2, targets=("query", "down")))
    variables = {"params": params, **make(functools.partial(adapters.create, plan))(jax.random.key(2), params)}
    batch = {"tokens": TOKENS, "weights": np.ones(TOKENS.shape, np.float32)}
    if mesh is not None:
        variables, batch = shard_tree(variables, mesh), jax.device_put(batch, batch_sharding(mesh))
    learnt, frozen = partition(variables)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2))
    step = make_step(next_token_objective(adapters.attach(model, plan)), optimizer, make_shape(ScheduleConfig(), 10))
    state = make(lambda tree: init_state(tree, optimizer, 1e-2, 0))(learnt)
    return jax.jit(step, donate_argnums=0), state, frozen, batch


@pytest.mark.parametrize(("kind", "remat", "method"), [
    ("nf4", "none", "lora"), ("int8", "none", "mora"), ("nf4", "projections", "dora"), ("fp8", "none", "lora"),
])  # fmt: skip
def test_no_buffer_holds_more_than_a_layer_of_weights(kind, remat, method):
    """Neither dequantised weights kept for the backward pass, nor a copy of the codes, nor a gradient of either."""
    whole = jax.eval_shape(Llama(WIDE).init, jax.random.key(0), TOKENS)["params"]
    params = jax.eval_shape(lambda tree: held(tree, kind), whole)
    step, state, frozen, batch = setup(params, WIDE, remat, jnp.float32, method=method, make=shapes_of)
    batch = jax.tree.map(lambda x: x[:2], batch)
    compiled = step.lower(state, frozen, batch).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes < 4 * count(params) / 3
    assert memory.temp_size_in_bytes < 4 * count(params) / 3  # activations, and a few kernels of one layer
    assert memory.output_size_in_bytes <= nbytes(state) * 1.01 + 4096
    # Arguments, and what the loops pass through, are all that is as large as the codes of one kernel of all layers.
    smallest = min(leaf.codes.size for leaf in flatten(params["layers"]).values() if isinstance(leaf, Quantized))
    results = re.findall(r" = \w+\[(24,[\d,]+)\]\S* ([\w-]+)\(", compiled.as_text())
    large = {made for shape, made in results if math.prod(map(int, shape.split(","))) >= smallest}
    assert large == {"parameter", "get-tuple-element"}


def test_a_mesh_gives_the_same_step():
    params = held(drawn(Llama(SMALL), TOKENS)["params"], "nf4")
    losses = []
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))):
        step, state, frozen, batch = setup(params, SMALL, "none", jnp.float32, mesh)
        _, metrics = step(state, frozen, batch)
        losses.append([float(metrics[name]) for name in ("loss", "grad_norm")])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert frozen["params"]["layers"]["attention"]["query"]["kernel"].codes.sharding.spec[1:] == ("fsdp", "tensor")


def test_what_is_read_for_its_largest_entry():
    """By default each product's input and gradient; with bounds and a fixed scale, what no norm has made."""
    params = drawn(Llama(SMALL), TOKENS)["params"]
    plan = adapters.make_plan(params, adapters.AdapterConfig(rank=2, targets=("all-linear",)))
    made = adapters.create(plan, jax.random.key(2))
    model, seen = Llama(SMALL, fused=True), []
    groups = model.fused_groups()

    def reductions(jaxpr):
        for equation in jaxpr.eqns:
            shape = equation.invars[0].aval.shape if equation.invars else ()
            if (
                equation.primitive.name == "reduce_max"
                and shape[:2] == TOKENS.shape
                and shape[2:] > (SMALL.vocab_size,)
            ):
                seen.append(shape[2])
            for part in jaxprs_in_params(equation.params):
                reductions(part)

    def read(**recipe):
        coded = jax.eval_shape(lambda tree: held(tree, "fp8", Fp8Config(**recipe)), params)
        variables = {"params": jax.eval_shape(layout_of(groups, False).apply, coded), **made}
        objective = next_token_objective(adapters.attach(model, plan, groups))
        batch = {"tokens": TOKENS, "weights": np.ones(TOKENS.shape, np.float32)}
        learnt, frozen = partition(variables)
        seen.clear()
        reductions(
            jax.make_jaxpr(jax.grad(lambda *two: objective(combine(*two), batch, None)[0]))(learnt, frozen).jaxpr
        )
        return sorted(seen)

    assert read() == sorted([128, 128, 128, 256] + [384, 128, 512, 128])  # inputs and gradients of four products
    assert read(activations="bound") == sorted([128, 256] + [384, 128, 512, 128])
    assert read(activations="bound", gradients="fixed") == [128, 256]  # what `out` and `down` read


def test_fp8_gives_the_same_gradients_fused_unrolled_and_on_two_devices():
    """Joined kernels have one scale, and layers are apart; what the codes cost: tests/experiments/test_gradients.py."""
    params = held(drawn(Llama(SMALL), TOKENS)["params"], "fp8")
    plan = adapters.make_plan(params, adapters.AdapterConfig(rank=2, targets=("query", "down")))
    made = adapters.create(plan, jax.random.key(2))
    made["adapters"] = jax.tree.map(lambda x: 0.1 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), made["adapters"])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (8, 8)), jnp.int32)

    def gradients(divided):
        model = Llama(SMALL, fused=divided, scan_unroll=2 if divided else 1)
        groups = model.fused_groups() if divided else {}
        objective = next_token_objective(reading(adapters.attach(model, plan, groups)))
        variables = {"params": params, **made}
        if divided:
            variables = shard_tree(variables, make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2]))
            variables["params"] = layout_of(groups, True).apply(variables["params"])
        batch = {"tokens": tokens, "weights": jnp.ones(tokens.shape)}
        learnt, frozen = partition(variables)
        loss = lambda learnt: objective(combine(learnt, frozen), batch, None)[0]  # noqa: E731
        value, found = jax.jit(jax.value_and_grad(loss))(learnt)
        return float(value), np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    (value, grads), (divided, found) = gradients(False), gradients(True)
    np.testing.assert_allclose(divided, value, rtol=1e-4)
    # Where a sum's last bit differs, a code next to it may: 1.4% of the gradient on a processor without AVX-512.
    assert np.linalg.norm(found - grads) < 4e-2 * np.linalg.norm(grads) > 0
