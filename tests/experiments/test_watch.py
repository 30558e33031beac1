"""tracking.observe_every: speed, waits, memory, and the norm and effective rank of what a run has added."""

import json

import jax
import numpy as np
import pytest

from experiments.bench.training import work
from experiments.config.plain import content_hash
from experiments.session import watch
from lowrank_jax.adapters.analysis.updates import size_and_rank
from lowrank_jax.checkpoints.adapters_only import load_adapter
from lowrank_jax.core.paths import flatten


def effective_rank(matrix):
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    share = s[s > 1e-9 * s.max()] / s.sum()
    return np.exp(-(share * np.log(share)).sum())


def test_the_effective_rank_of_known_spectra():
    """Three equal values: 3. The mean is over the layers of all kernels that changed; 0 where none did."""
    values = {"a": np.array([[2.0, 2.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), "b": np.array([5.0, 0.0])}
    found = size_and_rank(values)
    assert float(found["effective_rank"]) == pytest.approx((3 + 1) / 2, rel=1e-6)
    assert float(found["norm"]) == pytest.approx(np.sqrt(12 + 25), rel=1e-6)
    assert {*map(float, size_and_rank({"a": np.zeros((2, 3))}).values())} == {0.0}


def test_a_run_is_watched(run, monkeypatch):
    """The records of each second step; the update's figures are those of the adapter that the run exports.

    They are also those of merged kernels against the base that is read again, as for runs that train kernels.
    """
    monkeypatch.setitem(work.PEAKS, jax.devices()[0].device_kind, 1e12)
    make, seen = watch._measure, []

    def both(one):
        adapters_alone = make(one)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch, "_trains_kernels", lambda _one: True)
            read_again = make(one)

        def measure(state, frozen):
            found = adapters_alone(state, frozen)
            seen.append((one, found, read_again(state, frozen)))
            return found

        return measure

    monkeypatch.setattr(watch, "_measure", both)
    ended = run(train__steps=4, train__eval_steps="()", tracking__observe_every=2, adapter__method="lora")
    assert ended.status == 0, ended.err
    lines = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line for line in lines if "tokens_per_second" in line]
    watched = [line for line in rates if "data_wait" in line]
    assert [line["step"] for line in watched] == [2, 4]
    for line in watched:
        assert line["tokens_per_second_per_device"] == pytest.approx(line["tokens_per_second"] / 2)
        assert 0 <= line["data_wait"] <= 1
        assert line["mfu"] > 0
        assert line["peak_gib"] > 0
    updates = [line for line in lines if "update/norm" in line]
    assert [line["step"] for line in updates] == [2, 4]
    assert all(1 <= line["update/effective_rank"] <= 4.001 for line in updates)
    assert not any("eval/" in key for line in updates for key in line)
    assert updates[1]["update/norm"] > updates[0]["update/norm"]

    one = seen[0][0]
    for _, found, again in seen:
        assert again == pytest.approx(found, rel=1e-2)  # of differences of float32 weights
    kept, _, _ = load_adapter(ended.folder / "adapter", None)
    leaves = flatten(kept["adapters"])
    deltas = [a @ leaves[path[:-1] + "b"] for path, a in leaves.items() if path.endswith("/a")]
    deltas = [np.asarray(delta, np.float64) for stack in deltas for delta in stack]
    scale = one.config.adapter.alpha / one.config.adapter.rank
    assert updates[1]["update/norm"] == pytest.approx(scale * np.sqrt(sum((d**2).sum() for d in deltas)), rel=1e-4)
    assert updates[1]["update/effective_rank"] == pytest.approx(np.mean([*map(effective_rank, deltas)]), rel=1e-3)


def test_it_is_no_part_of_a_runs_name():
    """Bookkeeping: a run that is watched has the name of one that is not."""
    plain = {"seed": 0, "tracking": {"observe_every": 5}}
    assert content_hash(plain) == content_hash({"seed": 0, "tracking": {}})
