"""Scalings of rotary positions against transformers' functions, and what depends on the length of the rows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.llama import config_from_hf, config_to_hf
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.rotary import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    YarnScaling,
    query_scale,
    rotary_tables,
    rotate,
    rotate_whole,
)
from lowrank_jax.models.registry import get_model

DIM, THETA = 16, 5e3
FACTORS = tuple(1 + j / 3 for j in range(8)), tuple(2.0 + j for j in range(8))
SCALINGS = {
    "linear": (LinearScaling(3.0), 40),
    "within the old context": (DynamicScaling(4.0, 64), 40),
    "past it": (DynamicScaling(4.0, 32), 100),
    "yarn": (YarnScaling(8.0, 64), 40),
    "yarn, whole": (YarnScaling(8.0, 64, None, 16.0, 2.0, 1.0, 0.7, False), 40),
    "yarn, given": (YarnScaling(8.0, 1024, 1.5), 40),
    "short": (LongRopeScaling(*FACTORS, 64, 4.0), 64),
    "long": (LongRopeScaling(*FACTORS, 64, 4.0), 65),
    "long, given": (LongRopeScaling(*FACTORS, 64, 4.0, 1.7), 65),
    "llama3": (Llama3Scaling(8.0, 1.0, 4.0, 64), 40),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, length = SCALINGS[name]
    fields = {key: value for key, value in dataclasses.asdict(scaling).items() if value is not None}
    fields |= {key: list(value) for key, value in fields.items() if isinstance(value, tuple)}
    old = fields.get("original_max_position_embeddings", 64)
    if scaling.rope_type == "dynamic":
        del fields["original_max_position_embeddings"]
    config = transformers.LlamaConfig(
        hidden_size=4 * DIM, num_attention_heads=4, max_position_embeddings=old,
        rope_parameters={"rope_type": scaling.rope_type, "rope_theta": THETA, **fields},
    )  # fmt: skip
    frequency, amplitude = ROPE_INIT_FUNCTIONS[scaling.rope_type](config, "cpu", seq_len=length)
    assert scaling.amplitude == pytest.approx(amplitude, rel=1e-6)
    base = THETA ** (-jnp.arange(0, DIM, 2, dtype=jnp.float32) / DIM)
    np.testing.assert_allclose(scaling.apply(base, THETA, jnp.int32(length)), frequency.numpy(), rtol=2e-6)
    assert np.abs(scaling.apply(base, THETA, jnp.int32(length)) / base - 1).max() > 0.1 or "within" in name
    cos, sin = rotary_tables(jnp.arange(3), DIM, THETA, scaling, length)
    np.testing.assert_allclose(cos[2, 0], amplitude * np.cos(2 * frequency.numpy()), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sin[2, 0], amplitude * np.sin(2 * frequency.numpy()), rtol=1e-4, atol=1e-6)


def test_a_part_of_a_head_is_rotated():
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 12))
    tables = rotary_tables(jnp.arange(5), 8, 1e4)
    turned = rotate(x, *tables)
    np.testing.assert_array_equal(turned[..., 8:], x[..., 8:])
    np.testing.assert_array_equal(turned[..., :8], rotate(x[..., :8], *tables))


def test_whole_heads_rotated_at_once_are_the_same_numbers():
    """A GPU's form equals the other one in value and gradient; each row has its own positions, one head or three."""
    positions = jnp.array([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    for heads in (1, 3):
        x = jax.random.normal(jax.random.key(0), (2, 5, heads, 12), jnp.bfloat16)
        tables = rotary_tables(positions, 12, 1e4)
        plain, back = jax.vjp(functools.partial(rotate, cos=tables[0], sin=tables[1]), x)
        once, back_once = jax.vjp(functools.partial(rotate_whole, cos=tables[0], sin=tables[1]), x)
        np.testing.assert_array_equal(plain, once)
        np.testing.assert_array_equal(back(plain)[0], back_once(plain)[0])


def test_query_scale_grows_by_whole_periods():
    want = 1 + 0.5 * np.log([1, 1, 2, 2, 3])
    np.testing.assert_allclose(query_scale(jnp.arange(5), 0.5, 2)[:, 0, 0], want, rtol=1e-6)


TOY = dataclasses.replace(get_model("toy-llama"), vocab_size=61)


@pytest.mark.parametrize("scaling", [DynamicScaling(4.0, 8), LongRopeScaling((1.0,) * 4, (4.0,) * 4, 8, 4.0)])
def test_the_length_of_the_longest_row_decides(scaling):
    """Of its valid tokens where rows are padded; of a cache its slots, as its keys stay as they were rotated."""
    model = Llama(dataclasses.replace(TOY, rope_scaling=scaling, max_position_embeddings=32))
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 1, 61)
    params, apply = drawn(model, tokens), jax.jit(model.apply)
    short, long = apply(params, tokens[:, :8]), apply(params, tokens)
    assert np.abs(short - long[:, :8]).max() > 1e-3
    mask = jnp.arange(12) >= jnp.array([[4], [4]])
    padded = apply(params, jnp.roll(tokens, 4, 1), mask=mask)
    np.testing.assert_allclose(padded[:, 4:], short, atol=1e-5)
    from lowrank_jax.models.parts.cache import init_cache

    for slots, want in ((8, short), (12, long[:, :8])):
        got, _ = apply(params, tokens[:, :8], cache=init_cache(model.config, 2, slots, jnp.float32))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_dynamic_context_is_longer_than_the_files():
    """HF's max_position_embeddings is the context before the scaling; it comes back on the way out."""
    values = config_to_hf(TOY, "float32") | {"max_position_embeddings": 8}
    config = config_from_hf({**values, "rope_scaling": {"type": "dynamic", "factor": 4.0}})
    assert config.max_position_embeddings == 32
    assert config.rope_scaling == DynamicScaling(4.0, 8)
    assert config_to_hf(config, "float32")["max_position_embeddings"] == 8
    assert config_from_hf(config_to_hf(config, "float32")) == config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.5), "linear rope scaling has factor 0.5"),
        (lambda: DynamicScaling(2.0, 0), "dynamic rope scaling has original_max_position_embeddings 0"),
        (lambda: YarnScaling(float("nan"), 8), "yarn rope scaling has factor nan"),
        (lambda: YarnScaling(2.0, 8, beta_fast=0.5), "beta_fast 0.5 >= beta_slow 1.0"),
        (lambda: LongRopeScaling((1.0, 0.0), (1.0, 1.0), 8, 1.0), "numbers above 0"),
        (lambda: LongRopeScaling((), (), 8, 1.0), "numbers above 0"),
        (lambda: dataclasses.replace(TOY, rope_scaling=LongRopeScaling((1.0,), (1.0,), 8, 1.0)), "4 numbers each"),
        (lambda: dataclasses.replace(TOY, partial_rotary_factor=0.4), "does not suit a head of 8"),
        (lambda: dataclasses.replace(TOY, head_dim=2, rope_scaling=DynamicScaling(2.0, 8)), "at least 4 rotated"),
    ],
)
def test_impossible_scalings_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
