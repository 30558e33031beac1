"""The fast forms equal the equations: value, and gradients by leaf and input, for every family, option and dtype."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec, BottleneckConfig, MoraConfig
from lowrank_jax.adapters.fast import get_fast
from lowrank_jax.adapters.registry import FAMILIES

# (d_in, d_out, rank): a square that divides both sides, ragged ones, and so wide or tall that blocks repeat or fall
# away; p of "tall" is a multiple of 8 and d_in more than RUN blocks.
SHAPES = {"even": (16, 16, 2), "ragged": (19, 23, 2), "wide": (10, 64, 1), "tall": (40, 10, 1), "runs": (140, 8, 0.44)}
COMPRESSIONS = ("truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")


def mora_specs():
    """Every compression, padding, layout and rounding on every shape."""
    for name, shape in itertools.product(COMPRESSIONS, SHAPES.values()):
        layouts = ("half", "pairs") if name in ("rotation", "type6") else ("half",)
        for padding, layout, rounding in itertools.product(("wrap", "zero"), layouts, ("half_up", "floor")):
            config = AdapterConfig("mora", mora=MoraConfig(name, padding, layout, rounding))
            yield name, AdapterSpec(*shape, config=config)


def other_specs():
    """LoRA, DoRA and the bottlenecks on even and ragged widths."""
    for name, (d_in, d_out, rank) in itertools.product(("lora", "dora"), ((16, 16, 2), (19, 23, 3), (40, 10, 1))):
        yield name, AdapterSpec(d_in, d_out, rank, config=AdapterConfig(name))
    for name, act in itertools.product(("houlsby", "pfeiffer", "lin"), ("family", "relu", "swish", "gelu", "tanh")):
        config = AdapterConfig(name, bottleneck=BottleneckConfig(act))
        yield name, AdapterSpec(19, 19, 3, config=config)


SPECS = {}
for kind, spec in (*mora_specs(), *other_specs()):
    SPECS.setdefault(kind, []).append(spec)


def draw(family, spec, dtype):
    """(leaf, x, frozen, y, cotangent): a leaf with its scale multiplied in, x [2, 3, d_in]."""
    rng = np.random.default_rng(0)
    leaf = {name: rng.normal(size=shape) for name, shape in family.shapes(spec).items()}
    x, kernel, g = (rng.normal(size=s) for s in ((2, 3, spec.d_in), (spec.d_in, spec.d_out), (2, 3, spec.d_out)))
    x, kernel, g = (jnp.asarray(value, dtype) for value in (x, kernel, g))
    product = x @ kernel
    cast = {name: jnp.asarray(value, dtype) for name, value in leaf.items()}
    return cast, x, {"kernel": kernel, "product": product}, product + 1, g


def both(family, spec, dtype):
    """[(value, gradients by leaf and x)] of the fast form and of the equation; by DoRA's x, of its branch alone."""
    fast = get_fast(family)
    leaf, x, frozen, y, g = draw(family, spec, dtype)
    found = []
    for form in (fast, family):

        def update(leaf, x, form=form):
            if form.apply is None:
                return form.delta(leaf, x, spec)
            kept = {**frozen, "product": x @ frozen["kernel"]}
            return form.apply(leaf, kept, x, y, spec)

        value, pull = jax.vjp(update, leaf, x)
        found.append((value, pull(g.astype(value.dtype))))
    return found


def close(fast, plain, dtype, label):
    """Within rounding of the largest entry: of bfloat16's 8 bits a few in a sum."""
    assert (fast.shape, fast.dtype) == (plain.shape, plain.dtype), label
    fast, plain = (np.asarray(value, np.float64) for value in (fast, plain))
    apart = np.abs(fast - plain).max() / max(np.abs(plain).max(), 1e-3)
    assert apart <= (4e-2 if dtype == jnp.bfloat16 else 1e-5), f"{label}: {apart:.1e}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SPECS)
def test_fast_equals_plain(kind, dtype):
    family = FAMILIES[SPECS[kind][0].config.method]
    # One program for all options: what is compiled is small.
    run = jax.jit(lambda: [both(family, spec, dtype) for spec in SPECS[kind]])
    for spec, (fast, plain) in zip(SPECS[kind], run(), strict=True):
        paths = jax.tree_util.tree_flatten_with_path(plain)[0]
        for (path, expected), found in zip(paths, jax.tree.leaves(fast), strict=True):
            close(found, expected, dtype, f"{spec} {jax.tree_util.keystr(path)}")
