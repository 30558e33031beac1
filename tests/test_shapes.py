"""Signatures' shapes are true of a tiny step and decoding, and a wrong shape raises: adapters, ops, decoding, step."""

import functools
import importlib
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError, install_import_hook

CHECKED = ("lowrank_jax.adapters", "lowrank_jax.ops", "lowrank_jax.decoding", "lowrank_jax.train.step")
USED = {
    "adapters": "adapters",
    "bottleneck": "adapters.bottleneck",
    "maps": "adapters.mora_maps",
    "paths": "core.paths",
    "trees": "core.trees",
    "greedy": "decoding.greedy",
    "next_token": "forms.next_token",
    "llama": "models.llama",
    "cache": "models.parts.cache",
    "registry": "models.registry",
    "losses": "ops.losses",
    "products": "ops.products",
    "quantized": "ops.quantized",
    "saved": "ops.saved",
    "optimizer": "train.optimizer",
    "state": "train.state",
    "step": "train.step",
}
ROWS, LENGTH = 4, 8
TOKENS = np.arange(ROWS * LENGTH, dtype=np.int32).reshape(ROWS, LENGTH)


@pytest.fixture(scope="module")
def checked():
    """The package imported a second time with its signatures checked; other tests' copy is back afterwards."""
    present = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == "lowrank_jax"}
    try:
        with install_import_hook(CHECKED, "beartype.beartype"):
            yield SimpleNamespace(**{key: importlib.import_module(f"lowrank_jax.{name}") for key, name in USED.items()})
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lowrank_jax"]:
            del sys.modules[name]
        sys.modules.update(present)


@pytest.fixture(scope="module")
def model(checked):
    return checked.llama.Llama(checked.registry.get_model("toy-llama"))


def traced(fn):
    """Its result's shapes: what a signature says is checked as the function is traced, without a compilation."""
    return jax.eval_shape(fn)


def start(checked, model, methods, chunk_tokens=0, quantize=None, accumulate=1):
    """(plan, variables, step, state, frozen, batch) of adapters on the toy model."""
    tokens = jnp.asarray(TOKENS)
    params = model.init(jax.random.key(1), tokens)["params"]
    if quantize:
        flat = checked.paths.flatten(params)
        kernels = {path for path in flat if path.startswith("layers/mlp/")}
        codes = {path: checked.quantized.quantize(flat[path], quantize) for path in kernels}
        params = checked.paths.unflatten(flat | codes)
    configs = [
        checked.adapters.AdapterConfig(method, rank=4, targets=(target,), dropout=0.1)
        for method, target in methods.items()
    ]
    plan = checked.adapters.make_plan(params, configs)
    variables = {"params": params, **checked.adapters.create(plan, jax.random.key(2), params)}
    trainable, frozen = checked.trees.partition(variables)
    optimizer = checked.optimizer.make_optimizer(checked.optimizer.OptimizerConfig())
    objective = checked.next_token.next_token_objective(checked.adapters.attach(model, plan), chunk_tokens)
    step = checked.step.make_step(objective, optimizer, optax.constant_schedule(1.0), accumulate)
    state = checked.state.init_state(trainable, optimizer, learning_rate=1e-2, seed=0)
    return plan, variables, step, state, frozen, {"tokens": tokens, "weights": jnp.ones(tokens.shape)}


@pytest.mark.parametrize(
    ("methods", "chunk_tokens", "quantize", "accumulate"),
    [
        ({"lora": "query", "mora": "up", "dora": "value", "houlsby": "mlp"}, 0, None, 1),
        ({"mora": "out"}, ROWS * 3, None, 2),
        ({"lora": "up"}, ROWS * 3, "nf4", 1),
        ({"dora": "up"}, 0, "int8", 1),
    ],
    ids=["families", "chunks-and-micro-batches", "nf4", "int8"],
)
def test_a_step_keeps_the_shapes_of_its_signatures(checked, model, methods, chunk_tokens, quantize, accumulate):
    def run():
        *_, step, state, frozen, batch = start(checked, model, methods, chunk_tokens, quantize, accumulate)
        return step(state, frozen, batch)[1]

    assert {value.shape for value in traced(run).values()} == {()}


def test_trials_see_the_shapes_of_one(checked, model):
    """Under `jax.vmap` a signature is that of one trial."""

    def run():
        *_, step, state, frozen, batch = start(checked, model, {"lora": "query"})
        many = jax.tree.map(lambda x: jnp.stack([x, x]), state)
        return jax.vmap(step, (0, None, None))(many, frozen, batch)[1]

    assert {value.shape for value in traced(run).values()} == {(2,)}


def test_folding_keeps_the_shapes_of_its_signatures(checked, model):
    def run():
        plan, variables, *_ = start(checked, model, {"lora": "query", "mora": "up", "dora": "value"})
        return variables["params"], checked.adapters.fold(variables, plan)

    before, after = traced(run)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)


def test_decoding_keeps_the_shapes_of_its_signatures(checked, model):
    empty = functools.partial(checked.cache.init_cache, model.config, dtype=jnp.float32)
    tokens, mask = map(jnp.asarray, checked.greedy.left_pad([[1, 2, 3], [4]], pad_id=0))

    def run(mask):
        variables = model.init(jax.random.key(1), tokens)
        return checked.greedy.greedy(model.apply, variables, empty, tokens, mask, 3, None, 0)

    assert jax.eval_shape(run, mask).shape == (2, 3)
    with pytest.raises(TypeCheckError):
        jax.eval_shape(run, mask[:, 1:])


def test_a_wrong_shape_raises(checked, model):
    losses, products, quantized = checked.losses, checked.products, checked.quantized
    tokens, logits = jnp.asarray(TOKENS), jnp.zeros((ROWS, LENGTH, 5))

    def stepped(changed):
        *_, step, state, frozen, batch = start(checked, model, {"lora": "query"})
        return step(state, frozen, batch | changed)

    wrong = {
        "a feature without rows": lambda: stepped({"tokens": jnp.zeros((), jnp.int32)}),
        "weights that would broadcast": lambda: stepped({"weights": jnp.ones((ROWS, 1))}),
        "weights of one row": lambda: losses.next_token_loss(logits, tokens, jnp.ones((1, LENGTH))),
        "logits of one row": lambda: losses.next_token_loss(logits[0], tokens, jnp.ones((ROWS, LENGTH))),
        "a vector for a matrix": lambda: products.trained_matmul(jnp.zeros((2, 6)), jnp.zeros(6)),
        "another width": lambda: quantized.multiply(jnp.zeros((2, 5)), quantized.quantize(jnp.zeros((6, 3)), "int8")),
        "no axis": lambda: checked.maps.tile(jnp.zeros(()), 8),
        "a kernel for a scale": lambda: checked.bottleneck.layer_norm(jnp.ones((2, 6)), jnp.ones((6, 6)), jnp.ones(6)),
        "one axis": lambda: quantized.quantize(jnp.zeros(6), "int8"),
    }
    for what, call in wrong.items():
        with pytest.raises(TypeCheckError):
            pytest.fail(f"{what}: {traced(call)}")
