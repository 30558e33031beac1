"""The rows of the suite h200 are what their texts say, and the peer's side has the same shapes."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from experiments.bench.suites.rows import OURS, load_suite
from experiments.bench.suites.suite import Record
from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.tables.speed import suite as speed
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import is_coded
from lowrank_jax.models.registry import MODELS

ROOT = Path(__file__).parents[2]
SUITE = load_suite("h200")
SHAPES = {"7b": "llama2-7b", "8b": "llama3-8b", "135m": "smollm2-135m"}  # by the peer's names


def flags_of(words):
    return dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)


def config_of(row):
    """The row's config, from its words as the program takes them."""
    given = flags_of(row.words)
    config = complete_file(given["config"])
    with config.unlocked():
        changes = {key.removeprefix("config."): value for key, value in given.items() if key.startswith("config.")}
        config.update_from_flattened_dict(changes)
    return unpack_run(to_plain(config))


@pytest.fixture
def two_layers(monkeypatch):
    """Models of two layers: what is built is the same, sooner."""
    monkeypatch.chdir(ROOT)
    for name in (*SHAPES.values(), "gemma-3-270m"):
        kinds = dataclasses.replace(MODELS[name].layers, local=MODELS[name].layers.local[:2])
        monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], num_hidden_layers=2, layers=kinds))


def test_rows_are_what_they_say(two_layers):
    """Each is built on shapes: batch and tokens a row, codes, documents; all layers in one program without a loop."""
    built = {}
    for row in SUITE.rows:
        config = config_of(row)
        seq, words = config.labels["seq_len"], tuple(word for word in row.words if word.startswith("--config"))
        if words not in built:
            built[words] = build(config, seq_len=seq, devices=jax.devices()[:1])
        one = built[words]
        size = re.search(r"(\d+) x (\d+)", row.work)
        if size:
            assert (config.train.batch_size, seq) == tuple(map(int, size.groups())), row.name
        kinds = {leaf.kind for leaf in flatten(one.base.params).values() if is_coded(leaf)} or {"bfloat16"}
        assert kinds == {config.base.quantize.replace("none", "bfloat16")}
        for kind, text in (("fp8", "FP8"), ("nf4", "nf4")):
            assert (kind in kinds) == (text in row.work), row.name
        assert one.unrolled == (kinds != {"nf4"} and "a scan" not in row.work), row.name
        assert ("packed" in row.work) == ("documents" in config.labels) == getattr(config.task, "segmented", False)
        assert {*re.findall(r"r=(\d+)", row.work)} <= {str(config.adapter.rank)}, row.name
        if row.published or row.start:
            continue
        tall = config.base.name in ("llama2-7b", "llama3-8b")
        assert row.timings == ((3, 1) if tall else (1, 1, 1)), row.name


def test_the_peer_has_the_same_shapes():
    """Batch, tokens, rank, vocabulary and shape of HF PEFT's rows; MoRA's kind in the authors' layer."""
    beside = [row for row in SUITE.rows if row.peer]
    assert len(beside) >= 11
    for row in beside:
        config, theirs = config_of(row), flags_of(row.peer)
        assert int(theirs["batch"]) == config.train.batch_size
        assert int(theirs["seq"]) == config.labels["seq_len"]
        assert int(theirs["rank"]) == config.adapter.rank
        if row.peer_script:
            assert theirs["kind"] == config.adapter.mora.compression
            continue
        assert SHAPES[theirs["shape"]] == config.base.name
        assert int(theirs.get("vocab", 32_000)) == MODELS[config.base.name].vocab_size


def test_trials_are_compared_with_one_run_as_fast_as_it_is():
    """1, 2, 8, 16 and 64 trials; 64 with rows of 64 tokens alone."""
    counts = {}
    for row in SUITE.rows:
        if row.name.startswith("trials-"):
            kind, _, count = row.name.rpartition("-")
            counts.setdefault(kind, []).append(int(count))
            assert flags_of(row.words).get("trials", "1") == count
            one = next(other for other in SUITE.rows if other.name == f"{kind}-1")
            ours, alone = (flags_of(other.words)["config"] for other in (row, one))
            assert ours.removeprefix(alone) in ("", ",remat=projections,chunk_tokens=48")
            assert "remat=projections" not in alone  # which would make a single run slower, and the ratio larger
            assert {claim["to"] for claim in row.claims} == ({one.name} if int(count) > 1 else set())
    assert counts == {
        "trials-16x64": [1, 2, 8, 16, 64], "trials-4x256": [1, 2, 8, 16], "trials-gemma": [1, 2, 8, 16],
        "trials-7b": [1, 2, 4],
    }  # fmt: skip


def test_a_published_figure_stands_beside_our_own_row(tmp_path):
    """Measured once for both, shown as another card's, and without a ratio."""
    published = {row.name: row for row in SUITE.rows if row.published}
    assert {name: re.findall(r"[\d,]{6}", str(row.published)) for name, row in published.items()} == {
        "8b-nemo": ["12,473"], "8b-lorafusion": ["14,875"], "7b-packed-fp8": ["24,824"],
    }  # fmt: skip
    ours = next(row for row in SUITE.rows if row.name == "8b-lora-16")
    for name in ("8b-nemo", "8b-lorafusion"):
        assert published[name].side(OURS) == ours.side(OURS)
        assert not published[name].claims
        assert published[name].timings == ours.timings

    kept = Record(tmp_path / "h200_suite.json", SUITE)
    found = {"record": {"ms": 500.0, "tokens_per_second": 16_384, "peak_gib": 46.0}, "seconds": 1.0}
    kept.add(*ours.side(OURS), 0, {**found, "record": {**found["record"], "versions": {}}})
    lines = {line.partition("  ")[0]: line for line in speed.shown(kept.data).text().splitlines()}
    line = lines[published["8b-nemo"].work]
    assert "NeMo AutoModel: 12,473 tok/s on one H100; another card" in line
    assert "500.0 ms, 16,384 tok/s" in line
    assert "speed" not in line
    assert "speed 16,384 tok/s (>= 17,500: missed)" in lines[ours.work]
