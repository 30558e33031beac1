"""Singular values of updates: those of numpy's decomposition of what a merge adds, for every family."""

import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax import adapters
from lowrank_jax.adapters import AdapterConfig
from lowrank_jax.adapters.analysis.updates import by_kind, counts
from lowrank_jax.adapters.leaves.merge import site_delta
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.checkpoints.adapters_only import save_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unflatten
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model

GUIDE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def check(variables, plan):
    """Each site's values, and how many of them are not 0: {path: [layers]}."""
    found, ranks = adapters.spectrum(variables, plan), {}
    assert list(found) == [site.path for site in plan.sites]
    for site in plan.sites:
        deltas, values = np.asarray(site_delta(variables, plan, site), np.float64), found[site.path]
        expected = np.linalg.svd(deltas, compute_uv=False)
        largest = expected.max()
        assert largest > 0.01
        assert values.shape == (*site.spec.stack, min(site.spec.d_in, site.spec.d_out))
        np.testing.assert_allclose(values, expected, atol=2e-6 * largest)
        ranks[site.path] = (values > 1e-5 * largest).sum(-1)
    return ranks


def test_values_are_those_of_the_merged_difference(toy, adapted, model_config):
    plan, variables = adapted(toy(), model_config)
    ranks = check(variables, plan)
    if model_config.method == "lora":
        assert all((rank == model_config.rank).all() for rank in ranks.values())


def test_mora_of_the_same_size_has_a_higher_rank(toy, adapted):
    """The papers' difference: r against the size of the square, sqrt((12 + 20) 2) = 8."""
    lora, mora = (
        check(*reversed(adapted(toy(), AdapterConfig(method, 2, targets=("down",))))) for method in ("lora", "mora")
    )
    assert (lora["layers/down"] == 2).all()
    assert (mora["layers/down"] == 8).all()


def llama_params():
    return drawn(Llama(get_model("toy-llama")), np.zeros((1, 4), np.int32))["params"]


def trained(params, config):
    """(plan, variables) of fresh adapters, each leaf moved from its start."""
    plan = adapters.make_plan(params, config)
    made = jax.jit(functools.partial(adapters.create, plan))(jax.random.key(1), params)
    variables = {"params": params, **made}
    moved = jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.1), variables["adapters"])
    return plan, {**variables, "adapters": moved}


def test_dora_a_table_and_a_site_outside_a_stack(toy, base):
    plan, variables = trained(base(toy()), AdapterConfig("dora", 2, targets=("down", "head")))
    assert check(variables, plan)["head"].shape == ()
    plan, variables = trained(llama_params(), AdapterConfig("lora", 3, targets=("embed",)))
    assert plan.sites[0].table
    check(variables, plan)


def test_a_bottleneck_has_none():
    plan, variables = trained(llama_params(), AdapterConfig("houlsby", 4))
    with pytest.raises(UserError, match="houlsby changes no weight"):
        adapters.spectrum(variables, plan)


def test_the_guides_example(tmp_path, monkeypatch, capsys):
    """As printed in docs/checkpoints.md, on a run's saved adapter."""
    base = load_base(BaseConfig("pico-llama"))
    plan = adapters.make_plan(base.params, AdapterConfig("lora", 2, targets=("query", "down")))
    made = moved(plan)["adapters"]
    scales = {f"{site.path}/scale": [1.0] * site.spec.stack[0] for site in plan.sites}
    about = {"name": "pico-llama", "fingerprint": base.fingerprint}
    save_adapter(tmp_path / "runs/NAME/adapter", {"adapters": made}, adapters.describe(plan), scales, about)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.S)
    exec(code, {})
    layers = plan.sites[0].spec.stack[0]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{site.path} [{' '.join(['2'] * layers)}]" for site in plan.sites]


def test_large_singular_values_of_a_total_update():
    """Fig. 5's count, of final minus initial kernels by kind of matrix, against NumPy's decomposition."""
    rng = np.random.default_rng(0)
    shapes = {"attention/query": (3, 6, 5), "mlp/down": (3, 4, 6)}
    initial = {path: rng.normal(size=shape).astype("f4") for path, shape in shapes.items()}
    updates = {path: rng.normal(0, 0.05, shape).astype("f4") for path, shape in shapes.items()}
    trees = [
        {"head": {"kernel": np.ones((2, 2))}, **unflatten({f"layers/{p}/kernel": x for p, x in kernels.items()})}
        for kernels in (initial, {path: initial[path] + updates[path] for path in shapes})
    ]
    found = counts(*trees)
    wanted = {path: (np.linalg.svd(x, compute_uv=False) > 0.1).sum(-1) for path, x in updates.items()}
    assert {path.removeprefix("layers/"): value.tolist() for path, value in found.items()} == {
        path: value.tolist() for path, value in wanted.items()
    }
    assert 0 < sum(map(np.sum, wanted.values())) < 3 * (5 + 4)  # some of them, not all
    assert by_kind(found) == {path.rpartition("/")[2]: pytest.approx(value.mean()) for path, value in wanted.items()}
