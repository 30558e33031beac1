"""The runs of a sweep read each other's compiled programs; a rate and a seed make no other program."""

import contextlib
import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import sweeps

from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.planning import cards
from experiments.session.build import build
from experiments.sweeps import compiled, engine


@pytest.mark.parametrize(
    ("given", "plugin", "found"),
    [
        ({}, True, "HERE"),
        ({}, False, None),
        ({"JAX_PLATFORMS": "cuda,cpu"}, False, "HERE"),
        ({"JAX_PLATFORMS": "tpu"}, False, "HERE"),
        ({"JAX_PLATFORMS": "cpu"}, True, None),
        ({compiled.CACHE: "/mine"}, True, "/mine"),
        ({compiled.CACHE: ""}, True, ""),
    ],
)
def test_where_programs_are_kept(given, plugin, found, monkeypatch, tmp_path):
    monkeypatch.setattr(cards, "has_compiler", lambda: plugin)
    monkeypatch.setattr(compiled, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda _name: None)))
    monkeypatch.chdir(tmp_path)
    environment = compiled.shared(given, "runs")
    here = str(Path(tmp_path).absolute() / "runs" / "jax_cache")
    assert environment.get(compiled.CACHE) == (here if found == "HERE" else found)
    assert (compiled.LIMIT in environment) == (found == "HERE")
    assert given.items() <= environment.items()


def test_a_limit_of_the_user_s_own_and_a_place_that_is_no_folder(monkeypatch):
    monkeypatch.setattr(cards, "has_compiler", lambda: True)
    assert compiled.shared({compiled.LIMIT: "5"}, "runs")[compiled.LIMIT] == "5"
    assert compiled.shared({}, "gs://bucket/runs") == {}


def test_a_sweep_starts_its_runs_so(place, monkeypatch):
    seen = []

    @contextlib.contextmanager
    def started(_command, env, **_options):
        seen.append(env)
        yield SimpleNamespace(wait=lambda *_: 0)

    monkeypatch.setattr(engine, "started", started)
    monkeypatch.delenv(compiled.CACHE)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    _, sweep, _ = sweeps.make(place)
    assert sweep.wait(["a", "program"], []) == 0
    assert seen[0][compiled.CACHE] == str(place / "runs" / "jax_cache")
    assert compiled.CACHE not in os.environ


@pytest.mark.parametrize(("method", "dropout"), [("lora", 0.1), ("mora", 0.0), ("fft", 0.0)])
def test_a_rate_and_a_seed_are_no_part_of_the_step_and_a_length_is(method, dropout):
    """Of the text that jax hands to XLA, whose digest names an entry of the cache."""
    config = complete_file(f"configs/mora_uuid.py:method={method}")
    config.base.name, config.base.random_init = "toy-llama", True
    config.adapter.rank, config.adapter.dropout = 2, dropout
    config = unpack_run(to_plain(config))

    def text(changed):
        one = build(changed)
        return one.step.lower(*one.arguments).as_text()

    other_rate = dataclasses.replace(config.optimizer, learning_rate=3 * config.optimizer.learning_rate)
    longer = dataclasses.replace(config.train, steps=config.train.steps + 10)
    here = text(config)
    assert text(dataclasses.replace(config, optimizer=other_rate, seed=config.seed + 1)) == here
    assert text(dataclasses.replace(config, train=longer)) != here
