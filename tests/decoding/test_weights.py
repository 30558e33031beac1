"""The layout for decoding gives the logits of the model with its adapter beside its base, for each kind of leaf."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax import adapters
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.decoding.greedy import greedy
from lowrank_jax.decoding.weights import SMALL, ready
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.cache import init_cache
from lowrank_jax.models.registry import MODELS
from lowrank_jax.ops.quantized import dense_tree
from lowrank_jax.ops.two_parts import TwoParts, two_parts
from lowrank_jax.ops.widened import ALIGNED, LARGEST_RANK, Update, Widened, widened

TOKENS = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
MASK = np.arange(9) >= np.array([[0], [3]])
# A base, its adapter: query alone of a joined product; MoRA of all; biases and learned positions.
CASES = {
    "lora": ("toy-llama", ("query", "down")),
    "mora": ("toy-llama", ("all-linear",)),
    "lora, gpt2": ("gpt2", ("query", "value")),
}


@functools.cache
def a_base(name, dtype, quantize="none"):
    """(model, params) of a name in LEAVES or CASES."""
    if name == "toy-llama":
        base = load_base(BaseConfig(name, dtype=dtype, random_init=True, quantize=quantize), key=jax.random.key(0))
        return base.model, base.params
    dtype = jnp.dtype(dtype)
    if name == "gpt2":
        shape = GPT2Config(61, 32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16)
        model = GPT2(shape, dtype=dtype, param_dtype=dtype)
    else:  # "biased": biases of a joined product, and a head of its own
        biased = dataclasses.replace(MODELS["toy-llama"].attention, qkv_bias=True)
        shape = dataclasses.replace(MODELS["toy-llama"], attention=biased, tie_word_embeddings=False)
        model = Llama(shape, dtype=dtype, param_dtype=dtype)
    flat = flatten(drawn(model, TOKENS)["params"])
    return model, unflatten({path: leaf + 0.1 if path.endswith("/bias") else leaf for path, leaf in flat.items()})


@functools.cache
def adapted(case, dtype, quantize="none"):
    """(model, params, plan, variables) with an update of about 1% of the kernels."""
    name, targets = CASES[case]
    model, params = a_base(name, dtype, quantize)
    plan = adapters.make_plan(params, adapters.AdapterConfig(case.split(",")[0], rank=2, targets=targets))
    return model, params, plan, moved(plan, 0.02)


def pieces(apply_fn, variables, cache, first=1):
    """Logits of the tokens: the first at once, then one by one."""
    found, step = [], jax.jit(apply_fn)
    for start, stop in ((0, first), *((i, i + 1) for i in range(first, 7))):
        logits, cache = step(variables, TOKENS[:, start:stop], mask=MASK, cache=cache)
        found.append(logits)
    return np.concatenate(found, 1)[MASK[:, :7]]


def far(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_base_and_adapter(case):
    model, params, plan, variables = adapted(case, "float32")
    beside = adapters.attach(model, plan)
    empty = init_cache(model.config, 2, 9, jnp.float32)
    want = pieces(beside, {"params": params, **variables}, empty, 5)
    fast = ready(model, params, plan, variables)
    assert far(pieces(fast.apply_fn, fast.variables, fast.empty(2, 9), 5), want) < 1e-5
    assert far(pieces(model.apply, {"params": params}, empty), want) > 1e-3


# A base, its quantisation, its adapters, and the kind of each leaf that they change.
LORA = functools.partial(adapters.AdapterConfig, "lora", rank=2)  # alpha / r is a power of two in all: B stays exact
LEAVES = {
    "parts of a joined product, of two ranks, with biases; a head; two families": (
        ("biased", "none"),
        (
            LORA(targets=("query", "value", "down", "head"), rank_pattern=(("value", 4),)),
            adapters.AdapterConfig("mora", rank=2, targets=("gate",)),
        ),
        {
            "head": Widened,
            "layers_1_1/attention/qkv": Widened,
            "layers_1_1/attention/out": jax.Array,
            "layers_1_1/mlp/down": Widened,
            "layers_1_1/mlp/gate_up": TwoParts,
        },
    ),
    "a quantised base; a joined product of two families": (
        ("toy-llama", "int8"),
        (LORA(targets=("query", "up")), adapters.AdapterConfig("mora", rank=2, targets=("key",))),
        {"layers_1_1/attention/qkv": TwoParts, "layers_1_1/mlp/gate_up": Widened, "layers_1_1/mlp/down": jax.Array},
    ),
    "biases, and a large rank": (
        ("gpt2", "none"),
        (
            LORA(targets=("query", "up", "down")),
            LORA(targets=("out",), rank=LARGEST_RANK, alpha=LARGEST_RANK),
            LORA(targets=("key",), rank=2 * LARGEST_RANK, alpha=LARGEST_RANK),
        ),
        {
            "layers_1_1/attention/query": Widened,
            "layers_1_1/attention/key": TwoParts,
            "layers_1_1/attention/out": Widened,
            "layers_1_1/mlp/down": Widened,
        },
    ),
}


@functools.cache
def laid_out(case):
    """(model, adapter beside its base in float32, its variables, what `ready` makes in bfloat16).

    Both read the same numbers W, A and B, in bfloat16; computed in float32, they differ by the rounding of sums alone.
    """
    (name, quantize), configs, _ = LEAVES[case]
    model, params = a_base(name, "bfloat16", quantize)
    plan = adapters.make_plan(params, configs)
    variables = moved(plan, 0.1)
    variables["adapters"] = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), variables["adapters"])
    beside = adapters.attach(model.clone(dtype=jnp.float32), plan)
    return model, beside, {"params": dense_tree(params), **variables}, ready(model, params, plan, variables, small=0)


def without(variables):
    return {**variables, "adapters": jax.tree.map(jnp.zeros_like, variables["adapters"])}


@pytest.mark.parametrize("case", LEAVES)
def test_each_kind_of_leaf_computes_what_the_adapter_beside_its_kernel_does(case):
    model, beside, variables, fast = laid_out(case)
    leaves, kinds = flatten(fast.variables["params"]), LEAVES[case][2]
    for path, kind in kinds.items():
        assert isinstance(leaves[f"{path}/kernel"], kind), path
    empty = init_cache(model.config, 2, 9, "f")
    want = pieces(beside, variables, empty)
    wide = fast.apply_fn.__self__.clone(dtype=jnp.float32).apply
    got = pieces(wide, fast.variables, init_cache(model.config, 2, 9, "f", (1,)))
    assert far(got, want) < (1e-4 if TwoParts in kinds.values() else 1e-5)
    rounded = pieces(fast.apply_fn, fast.variables, fast.empty(2, 9))
    assert far(rounded, want) < 3e-2
    assert far(pieces(beside, without(variables), empty), want) > 0.1


def test_a_small_product_is_kept_in_two_parts():
    """Of Llama's projections those up to the bound, a joined one by all its columns."""
    model, params = a_base("toy-llama", "bfloat16", "none")
    plan = adapters.make_plan(params, LORA(targets=("query", "up", "down")))
    sizes = {path: 2 * leaf.shape[-2] * leaf.shape[-1] for path, leaf in flatten(params).items() if leaf.ndim == 3}
    qkv = sum(sizes[f"layers/attention/{name}/kernel"] for name in ("query", "key", "value"))
    gate_up, down = 2 * sizes["layers/mlp/up/kernel"], sizes["layers/mlp/down/kernel"]
    for small in (0, qkv - 1, qkv, down, gate_up, 2**22):
        leaves = flatten(ready(model, params, plan, moved(plan, 0.1), small=small).variables["params"])
        for path, size in {"attention/qkv": qkv, "mlp/gate_up": gate_up, "mlp/down": down}.items():
            kind = Widened if size > small else TwoParts
            assert isinstance(leaves[f"layers_1_1/{path}/kernel"], kind), (path, small)


def test_greedy_texts_are_the_same():
    model, beside, variables, fast = laid_out(next(iter(LEAVES)))
    write = jax.jit(greedy, static_argnums=(0, 2, 5, 6, 7))

    def texts(apply_fn, variables, cuts=()):
        empty = functools.partial(init_cache, model.config, dtype="f", cuts=cuts)
        return np.asarray(write(apply_fn, variables, empty, TOKENS, MASK[:, :7], 8, None, 0))

    want = texts(beside, variables)
    np.testing.assert_array_equal(
        texts(fast.apply_fn.__self__.clone(dtype=jnp.float32).apply, fast.variables, (1,)), want
    )
    assert (texts(beside, without(variables)) != want).any(1).all()


def test_a_widened_product():
    """Updates of different ranks at their own columns, in float32, give the sum of products; the width is aligned."""
    draw = np.random.default_rng(0)
    x, kernel, *factors = (
        draw.normal(size=shape).astype("f") for shape in [(3, 8), (8, 7), (8, 2), (2, 3), (8, 1), (1, 2)]
    )
    want = x @ kernel
    want[:, 4:7] += x @ factors[0] @ factors[1]
    want[:, 1:3] += x @ factors[2] @ factors[3]
    made = widened(jnp.asarray(kernel), [Update(4, *factors[:2]), Update(1, *factors[2:])], jnp.float32)
    assert made.shape == kernel.shape
    assert made.parts.shape[-1] % ALIGNED == 0
    assert far(np.asarray(made.result(x @ made.parts)), want) < 1e-6


def test_an_update_that_is_not_finite_is_refused():
    model, params, plan, variables = adapted("lora", "bfloat16")
    bad = jax.tree.map(lambda x: x.at[0, 0, 0].set(jnp.nan), variables["adapters"])
    for small in (0, SMALL):  # beside its kernel, and in two parts
        with pytest.raises(UserError, match=r"query (with its update )?holds NaN or infinity"):
            ready(model, params, plan, {**variables, "adapters": bad}, small=small)


def test_two_parts_keep_an_update_that_bfloat16_rounds_away():
    """The logits of float32 weights, computed through bfloat16 kernels in parts, and far from those of one part."""
    model, params, plan, variables = adapted("mora", "bfloat16")
    exact, rounded = (ready(model, params, plan, variables, exact=exact) for exact in (True, False))
    kernel = exact.variables["params"]["layers_0_0"]["attention"]["qkv"]["kernel"]
    assert isinstance(kernel, TwoParts)
    assert kernel.parts.dtype == jnp.bfloat16
    assert not isinstance(rounded.variables["params"]["layers_0_0"]["attention"]["qkv"]["kernel"], TwoParts)
    merged = adapters.merge({"params": jax.tree.map(lambda x: x.astype(jnp.float32), params), **variables}, plan)
    whole = np.asarray(merged["layers"]["attention"]["query"]["kernel"][0])
    both = np.asarray(kernel.parts[0], np.float32)
    first, second = (half[:, : whole.shape[1]] for half in np.split(both, 2, axis=1))
    assert far(first + second, whole) < 2**-17
    assert far(first, whole) > 2**-11
    precise = model.clone(dtype=jnp.float32)
    want = pieces(precise.apply, {"params": merged}, init_cache(model.config, 2, 9, jnp.float32))
    wide = exact.apply_fn.__self__.clone(
        dtype=jnp.float32
    ).apply  # activations in float32: what is left is the kernels'
    assert far(pieces(wide, exact.variables, init_cache(model.config, 2, 9, "f", (1,))), want) < 1e-3
    assert far(pieces(exact.apply_fn, exact.variables, exact.empty(2, 9)), want) < 5e-2


def test_a_product_with_two_parts():
    x, kernel = (np.random.default_rng(i).normal(size=shape).astype("f") for i, shape in enumerate([(3, 8), (8, 5)]))
    parts = np.asarray(two_parts(jnp.asarray(kernel), jnp.bfloat16).parts, np.float32)
    assert far(TwoParts(parts).result(jnp.asarray(x @ parts)), x @ kernel) < 1e-4
    assert two_parts(jnp.asarray(kernel), jnp.bfloat16).shape == kernel.shape


def test_a_quantised_base_is_read_as_its_codes_without_an_adapter_and_as_arrays_with_one():
    model, params, plan, variables = adapted("lora", "float32", "int8")
    want = pieces(
        adapters.attach(model, plan), {"params": params, **variables}, init_cache(model.config, 2, 9, jnp.float32)
    )
    fast = ready(model, params, plan, variables)
    assert far(pieces(fast.apply_fn, fast.variables, fast.empty(2, 9)), want) < 1e-4
    alone = ready(model, params)
    assert any(
        hasattr(leaf, "codes") for leaf in jax.tree.leaves(alone.variables, is_leaf=lambda x: hasattr(x, "codes"))
    )
    want = pieces(model.apply, {"params": params}, init_cache(model.config, 2, 9, jnp.float32))
    assert far(pieces(alone.apply_fn, alone.variables, alone.empty(2, 9)), want) < 1e-5


def test_a_family_without_merge_is_refused():
    model, params, _, _ = adapted("lora", "float32")
    plan = adapters.make_plan(params, adapters.AdapterConfig("houlsby", rank=2))
    with pytest.raises(Exception, match="cannot be merged"):
        ready(model, params, plan, moved(plan))
