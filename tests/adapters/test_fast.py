"""The fast forms equal the equations: value, and gradients by leaf and input, for every family, option and dtype."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec, BottleneckConfig, MoraConfig
from lowrank_jax.adapters.fast import FAST, aligned, get_fast, mora
from lowrank_jax.adapters.prefix import families as prefix
from lowrank_jax.adapters.registry import FAMILIES, TABLES

RAGGED = (19, 27, 2)  # sqrt(92) is 10 half up and 9 by floor: neither divides a side, nor is a multiple of 8
# A square that divides both sides; more than RUN blocks to sum; more than RUN copies, some cut; outputs beyond blocks.
SHAPES = ((16, 16, 2), (300, 18, 1), (19, 300, 1), (40, 20, 1))
COMPRESSIONS = ("truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")


def mora_specs():
    """Every compression: each padding, layout and rounding on a ragged shape, and the defaults on others."""
    for name in COMPRESSIONS:
        if name in ("type1", "type6"):  # sharing and rotation by the official code's names
            yield name, AdapterSpec(*RAGGED, config=AdapterConfig("mora", mora=MoraConfig(name)))
            continue
        options = [("wrap", "half", "half_up"), ("zero", "half", "floor")]
        if name == "rotation":  # every pair of options
            options += [("wrap", "pairs", "floor"), ("zero", "pairs", "half_up")]
        cases = [(RAGGED, MoraConfig(name, *rest)) for rest in options]
        for shape, mora_config in cases + [(shape, MoraConfig(name)) for shape in SHAPES]:
            yield name, AdapterSpec(*shape, config=AdapterConfig("mora", mora=mora_config))


def other_specs():
    """LoRA, DoRA and the bottlenecks on even and ragged widths."""
    for name, (d_in, d_out, rank) in itertools.product(("lora", "dora"), ((16, 16, 2), (19, 23, 3), (40, 10, 1))):
        yield name, AdapterSpec(d_in, d_out, rank, config=AdapterConfig(name))
    methods = [*itertools.product(("houlsby",), ("family", "relu", "swish", "gelu", "tanh"))]
    for name, activation in [*methods, ("pfeiffer", "family"), ("lin", "family")]:
        config = AdapterConfig(name, bottleneck=BottleneckConfig(activation))
        yield name, AdapterSpec(19, 19, 3, config=config)


def mora_spec(d_in, d_out, rank, **options):
    """One site."""
    return AdapterSpec(d_in, d_out, rank, config=AdapterConfig("mora", mora=MoraConfig(**options)))


SPECS = {}
for kind, spec in (*mora_specs(), *other_specs()):
    SPECS.setdefault(kind, []).append(spec)


def draw(family, spec, dtype):
    """(leaf, x [2, 3, d_in], kernel, cotangent), all random."""
    rng, shapes = np.random.default_rng(0), family.shapes(spec)
    leaf = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    others = ((2, 3, spec.d_in), (spec.d_in, spec.d_out), (2, 3, spec.d_out))
    return leaf, *(rng.normal(size=shape).astype(dtype) for shape in others)


def run(form, spec, leaf, x, kernel, g):
    """The update and its gradients by leaf and x; of a family with `apply`, of y = x W + 1 with the update."""

    def update(leaf, x):
        if form.apply is None:
            return form.delta(leaf, x, spec)
        product = x @ kernel
        return form.apply(leaf, {"kernel": kernel, "product": product}, x, product + 1, spec)

    value, pull = jax.vjp(update, leaf, x)
    return value, *pull(g)


def compiled(function, argument):
    """function(argument) as one program, which is made in less time than one for each case, and not optimised."""
    return jax.jit(function).lower(argument).compile({"xla_backend_optimization_level": 0})(argument)


def check(found, expected, dtype, label):
    """Within rounding of the largest entry."""
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype), label
    found, expected = (np.asarray(value, np.float64) for value in (found, expected))
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert apart <= (5e-2 if dtype == jnp.bfloat16 else 1e-5), f"{label}: {apart:.1e}"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", SPECS)
def test_fast_equals_plain(kind, dtype):
    # Other shapes take other ways through the maps, whatever the dtype.
    specs = [spec for spec in SPECS[kind] if dtype == jnp.float32 or (spec.d_in, spec.d_out, spec.rank) not in SHAPES]
    family = FAMILIES[specs[0].config.method]
    forms = (get_fast(family), family)
    cases = [draw(family, spec, dtype) for spec in specs]
    found = compiled(
        lambda cases: [[run(form, spec, *case) for form in forms] for spec, case in zip(specs, cases, strict=True)],
        cases,
    )
    for spec, (fast, plain) in zip(specs, found, strict=True):
        paths = jax.tree_util.tree_flatten_with_path(plain)[0]
        for (path, expected), found in zip(paths, jax.tree.leaves(fast), strict=True):
            check(found, expected, dtype, f"{spec} {jax.tree_util.keystr(path)}")


def test_zeros_up_to_a_gpus_width_change_nothing(monkeypatch):
    """On a GPU a rank of 3 is one of 8: values and gradients of all families with a narrow side stay the same."""
    specs = [SPECS[name][-1] for name in ("lora", "dora", "houlsby", "lin")]
    cases = [draw(FAMILIES[spec.config.method], spec, jnp.float32) for spec in specs]

    def all_of(cases):
        return [run(get_fast(FAMILIES[s.config.method]), s, *case) for s, case in zip(specs, cases, strict=True)]

    narrow = compiled(all_of, cases)
    monkeypatch.setattr(aligned, "platform", lambda: "gpu")
    again = functools.partial(all_of)  # jax does not trace a function twice
    assert "3,8]" in str(jax.make_jaxpr(again)(cases))  # x A
    for found, expected in zip(*(jax.tree.leaves(one) for one in (compiled(again, cases), narrow)), strict=True):
        check(found, expected, jnp.float32, "zeros")


def test_joined_sites_equal_plain_ones():
    """One branch for three sites that read one input: their updates side by side, and their leaves' gradients."""
    lora = AdapterSpec(19, 27, 2), AdapterSpec(19, 20, 3)
    cases = [((lora[0], None, lora[1]), (27, 9, 20)), ((mora_spec(*RAGGED), None, mora_spec(*RAGGED)), (27,) * 3)]
    cases += [((mora_spec(*RAGGED, compression=name),) * 3, (27,) * 3) for name in ("decoupling", "rotation", "type2")]

    def forms(specs, columns, leaves, x, g):
        family = FAMILIES[specs[0].config.method]
        fast = get_fast(family)

        def joined(leaves, x):
            assert fast.joins([spec for spec in specs if spec], columns)
            return fast.delta(fast.join(leaves, columns), x, specs[0])

        def plain(leaves, x):
            parts = zip(leaves, specs, columns, strict=True)
            zeros = [jnp.zeros((*x.shape[:-1], width)) for width in columns]
            return jnp.concatenate(
                [family.delta(leaf, x, spec) if spec else zeros[i] for i, (leaf, spec, _) in enumerate(parts)], -1
            )

        return [(lambda value, pull: (value, *pull(g)))(*jax.vjp(form, leaves, x)) for form in (joined, plain)]

    drawn, rng = [], np.random.default_rng(1)
    for specs, columns in cases:
        shapes = [spec and FAMILIES[spec.config.method].shapes(spec) for spec in specs]
        leaves = [of and {n: rng.normal(size=shape).astype("f4") for n, shape in of.items()} for of in shapes]
        drawn.append((leaves, *(rng.normal(size=(3, width)).astype("f4") for width in (19, sum(columns)))))
    results = compiled(lambda drawn: [forms(*case, *given) for case, given in zip(cases, drawn, strict=True)], drawn)
    for case, (joined, plain) in zip(cases, results, strict=True):
        for found, expected in zip(jax.tree.leaves(joined), jax.tree.leaves(plain), strict=True):
            check(found, expected, jnp.float32, str(case))


def test_every_family_of_the_library_has_a_fast_form():
    """But those of prefix methods, which replace what a module gives: a one-hot product is all there is to compute."""
    assert FAST.keys() == FAMILIES.keys() - {family.name for family in prefix.FAMILIES}
    (table,) = TABLES.values()
    assert get_fast(table).delta is table.delta


@pytest.mark.parametrize("size", [7, 8])
def test_joined_squares_are_products_of_their_own(size):
    rng = np.random.default_rng(0)
    x, *squares = (jnp.asarray(rng.normal(size=(size, size)), jnp.float32) for _ in range(4))
    joined = mora.join([{"m": squares[0]}, None, {"m": squares[2]}], (9, 9, 9))["m"]
    y = jax.jit(mora._product)(x, joined)
    np.testing.assert_allclose(y[:, 0], x @ squares[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(y[:, 1], 0)
    np.testing.assert_allclose(y[:, 2], x @ squares[2], rtol=1e-5, atol=1e-5)


def test_what_can_be_joined():
    wide, narrow = mora_spec(16, 24, 2, compression="sharing"), mora_spec(16, 8, 2, compression="sharing")
    assert mora.joins([wide, wide], (24, 24))
    assert not mora.joins([wide, narrow], (24, 8))
    assert not mora.joins([wide], (24, 8))  # a part of another width without an adapter
    assert not mora.joins([wide, dataclasses.replace(wide, rank=1)], (24, 24))
    assert not mora.joins([wide, mora_spec(16, 24, 2, compression="type3")], (24, 24))
    rotation = mora_spec(16, 24, 2, compression="rotation")
    assert mora.joins([rotation, rotation], (24, 24))
    assert not mora.joins([rotation], (24, 24))  # half of the product would be of zeros
    assert mora.joins([wide], (24, 24))


@pytest.mark.parametrize("size", [7, 8, 12])
def test_products_of_other_sizes_than_eights_are_exact(size):
    """The square is lengthened with zeros for the product, which changes nothing in it or in its gradients."""
    rng = np.random.default_rng(0)
    x, m, g = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((5, 3, size), (size, size), (5, 3, size)))

    def one_square(x, m):
        return mora._product(x, m)[..., 0, :]

    for made, plain in zip(
        jax.jit(lambda: jax.vjp(one_square, x, m)[1](g) + (one_square(x, m),))(),
        jax.jit(lambda: jax.vjp(jnp.matmul, x, m)[1](g) + (x @ m,))(),
        strict=True,
    ):
        np.testing.assert_allclose(made, plain, rtol=1e-5, atol=1e-5)


def test_the_grouping_whose_turn_it_is():
    """ReMoRA's cycle: fast and plain, alone and joined, are the grouping that the leaf's number names."""
    cycle = ("type1", "type2", "type3", "type4")
    spec = dataclasses.replace(mora_spec(*RAGGED), cycle=cycle)
    family, fast = FAMILIES["mora"], get_fast(FAMILIES["mora"])
    leaf, x, _, g = draw(family, spec, np.float32)
    assert fast.joins([spec, spec], (27, 27))
    assert not fast.joins([spec, mora_spec(*RAGGED)], (27, 27))

    def forms(turn, one):
        def pulled(delta, g=g):
            value, pull = jax.vjp(lambda m, x: delta({"m": m, "group": turn}, x), leaf["m"], x)
            return value, *pull(g)

        def joined(leaf, x):
            return fast.delta(fast.join((leaf, None, leaf), (27,) * 3), x, spec)

        whole = [pulled(lambda leaf, x, f=f: f.delta(leaf, x, spec)) for f in (fast, family)]
        alone = pulled(lambda leaf, x: family.delta(leaf, x, one))
        return alone, whole, pulled(joined, jnp.concatenate([g, 0 * g, g], -1))

    ones = [mora_spec(*RAGGED, compression=name) for name in cycle]
    results = compiled(lambda turns: [forms(turn, one) for turn, one in zip(turns, ones, strict=True)], [*range(4)])
    for turn, (alone, whole, joined) in enumerate(results):
        for form in whole:
            for found, expected in zip(form, alone, strict=True):
                check(found, expected, jnp.float32, f"turn {turn}")
        check(joined[0][..., 54:], alone[0], jnp.float32, f"turn {turn}, joined")
        for found, expected in zip(joined[1:], alone[1:], strict=True):
            check(found, 2 * expected, jnp.float32, f"turn {turn}, joined")
