"""The layout of decoding against the model with its adapter beside its base: the same logits, from kernels in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax import adapters
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.decoding.weights import ready
from lowrank_jax.models.cache import init_cache
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.ops.two_parts import TwoParts, sum_of_halves, two_parts

TOKENS = np.arange(14, dtype=np.int32).reshape(2, 7) % 11
MASK = np.arange(9) >= np.array([[0], [3]])
# A base, its adapter: query alone of a joined product; MoRA of all, with bytes; biases and learned positions.
CASES = {
    "toy-llama": ("lora", ("query", "down")),
    "pico-llama": ("mora", ("all-linear",)),
    "gpt2": ("lora", ("query", "value")),
}


def adapted(name, dtype, quantize="none"):
    """(model, params, plan, variables) with an update of about 1% of the kernels."""
    if name == "gpt2":
        model = GPT2(GPT2Config(61, 32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=16))
        params = jax.jit(model.init)(jax.random.key(0), TOKENS)["params"]
    else:
        config = BaseConfig(name, dtype=dtype, random_init=name != "pico-llama", quantize=quantize)
        base = load_base(config, key=jax.random.key(0))
        model, params = base.model, base.params
    method, targets = CASES[name]
    plan = adapters.make_plan(params, adapters.AdapterConfig(method, rank=2, targets=targets))
    variables = adapters.create(plan, jax.random.key(1))
    drawn = jax.tree.map(lambda x: 0.02 * jax.random.normal(jax.random.key(2), x.shape), variables["adapters"])
    return model, params, plan, {**variables, "adapters": drawn}


def pieces(apply_fn, variables, cache):
    """Logits of the tokens: five at once, then one, then one."""
    found, step = [], jax.jit(apply_fn)
    for start, stop in ((0, 5), (5, 6), (6, 7)):
        logits, cache = step(variables, TOKENS[:, start:stop], mask=jnp.asarray(MASK), cache=cache)
        found.append(logits)
    return np.concatenate(found, 1)[MASK[:, :7]]


def far(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_base_and_adapter(name):
    model, params, plan, variables = adapted(name, "float32")
    beside = adapters.attach(model, plan)
    empty = init_cache(model.config, 2, 9, jnp.float32)
    want = pieces(beside, {"params": params, **variables}, empty)
    fast = ready(model, params, plan, variables)
    assert far(pieces(fast.apply_fn, fast.variables, fast.empty(2, 9)), want) < 1e-5
    without = ready(model, params)
    assert far(pieces(without.apply_fn, without.variables, without.empty(2, 9)), want) > 1e-3


def test_two_parts_keep_an_update_that_bfloat16_rounds_away():
    """The logits of float32 weights, computed through bfloat16 kernels in parts, and far from those of one part."""
    model, params, plan, variables = adapted("toy-llama", "bfloat16")
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
    assert far(pieces(wide, exact.variables, exact.empty(2, 9)), want) < 1e-3
    assert far(pieces(exact.apply_fn, exact.variables, exact.empty(2, 9)), want) < 5e-2


def test_a_product_with_two_parts():
    x, kernel = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 8), (8, 5)]))
    assert far(sum_of_halves(x @ two_parts(kernel, jnp.bfloat16).parts.astype(jnp.float32)), x @ kernel) < 1e-4
    assert two_parts(kernel, jnp.bfloat16).shape == kernel.shape


def test_a_quantised_base_is_read_as_its_codes_without_an_adapter_and_as_arrays_with_one():
    model, params, plan, variables = adapted("toy-llama", "float32", "int8")
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
    model, params, _, _ = adapted("toy-llama", "float32")
    plan = adapters.make_plan(params, adapters.AdapterConfig("houlsby", rank=2))
    with pytest.raises(Exception, match="cannot be merged"):
        ready(model, params, plan, adapters.create(plan, jax.random.key(0)))
