"""A tiny Linen model, scanned or in a plain loop, and one configuration of every adapter family and option."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax.adapters import AdapterConfig, MoraConfig, attach, create, make_plan
from lowrank_jax.adapters.plan import Plan

WIDTH, FFN, LAYERS, CLASSES = 12, 20, 2, 5


class Attention(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        query = nn.Dense(WIDTH, use_bias=False, dtype=self.dtype, name="query")(x)
        value = nn.Dense(WIDTH, dtype=self.dtype, name="value")(inputs=x)  # by keyword, as some models do
        return jnp.tanh(query) * value


class Block(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, _=None):
        x = x + Attention(self.dtype, name="attention")(x)
        return x + nn.Dense(WIDTH, dtype=self.dtype, name="down")(
            nn.gelu(nn.Dense(FFN, dtype=self.dtype, name="up")(x))
        ), None


class Toy(nn.Module):
    scanned: bool = True
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        block = nn.remat(Block) if self.remat else Block
        if self.scanned:
            self.layers = nn.scan(
                block,
                variable_axes={"params": 0, "adapters": 0, "scales": 0},
                split_rngs={"params": True, "dropout": True, "adapters": True},
                length=LAYERS,
            )(self.dtype)
        else:
            self.layers = [block(self.dtype) for _ in range(LAYERS)]
        self.head = nn.Dense(CLASSES, dtype=self.dtype)

    def hidden(self, x):
        for layer in [self.layers] if self.scanned else self.layers:
            x, _ = layer(x, None)
        return x

    def __call__(self, x):
        return self.head(self.hidden(x))


CONFIGS = {
    "lora": AdapterConfig("lora", 2, alpha=6.0, targets=("all-linear",)),
    "lora-rslora": AdapterConfig("lora", 3, alpha=6.0, scaling="rslora", init="gaussian", targets=("all-linear",)),
    **{
        f"mora-{name}-{padding}-{layout}": AdapterConfig(
            "mora", 1, targets=("all-linear",), mora=MoraConfig(name, padding, layout)
        )
        for name, padding, layout in (
            ("truncation", "wrap", "half"),
            ("sharing", "wrap", "half"),
            ("decoupling", "zero", "half"),
            ("rotation", "wrap", "half"),
            ("rotation", "zero", "pairs"),
            ("type2", "wrap", "half"),
            ("type3", "wrap", "half"),
            ("type4", "zero", "half"),
        )
    },
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request) -> AdapterConfig:
    """Every family and option, one after the other."""
    return request.param


@pytest.fixture(params=("lora", "mora-rotation-wrap-half"))
def main_config(request) -> AdapterConfig:
    """One config of LoRA and one of MoRA, for tests in which MoRA's maps make no difference."""
    return CONFIGS[request.param]


@pytest.fixture(params=("lora-rslora", "mora-sharing-wrap-half", "mora-rotation-zero-pairs", "mora-type3-wrap-half"))
def model_config(request) -> AdapterConfig:
    """Each kind of branch within a model; other tests compare the other maps with the official code and their merge."""
    return CONFIGS[request.param]


@pytest.fixture(scope="session")
def toy() -> type[nn.Module]:
    """The model's class."""
    return Toy


@pytest.fixture(scope="session")
def x() -> jax.Array:
    """One input of the toy model."""
    return jnp.asarray(np.random.default_rng(7).normal(size=(4, WIDTH)), jnp.float32)


@pytest.fixture(scope="session")
def base(x):
    """model -> its params, drawn once."""
    return functools.cache(lambda model: drawn(model, x)["params"])


@pytest.fixture(scope="session")
def adapted(base):
    """(model, config, randomise=True) -> (plan, variables), every adapter leaf randomised or as created."""
    make = jax.jit(create, static_argnums=0)

    @functools.cache
    def build(model: nn.Module, config: AdapterConfig, randomise: bool = True) -> tuple[Plan, dict]:
        plan = make_plan(base(model), config)
        return plan, {"params": base(model), **(moved(plan) if randomise else make(plan, jax.random.key(1)))}

    return lambda *args: (lambda plan, variables: (plan, dict(variables)))(*build(*args))


@pytest.fixture(scope="session")
def plain():
    """model -> its jitted apply, without adapters, one for all tests."""
    return functools.cache(lambda model: jax.jit(model.apply))


@pytest.fixture(scope="session")
def compiled(base):
    """(model, config) -> the jitted apply_fn, one for all tests."""
    return functools.cache(lambda model, config: jax.jit(attach(model, make_plan(base(model), config))))
