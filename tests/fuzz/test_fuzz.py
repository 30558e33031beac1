"""A few mutated inputs of every kind; `python -m tests.fuzz --minutes=60` tries thousands."""

import json
import random
import sys

import hypothesis
import pytest
from hypothesis import HealthCheck, strategies

from fuzz import doors, mutations, targets
from lowrank_jax.bases.base import BaseConfig, abstract_base
from lowrank_jax.core.errors import UserError

SEED, CASES = 0, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The workspace of all cases; the first use trains a toy run in it."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(autouse=True)
def here(monkeypatch, two_devices):
    """The cases work in the checkout on two devices, and draw no figures."""
    monkeypatch.chdir(targets.ROOT)
    monkeypatch.setattr(targets, "REAL", 0.0)
    monkeypatch.setattr("experiments.tables.figures.draw_run", lambda result, path: path)


@pytest.mark.parametrize("target", targets.TARGETS)
@hypothesis.given(rng=strategies.randoms(use_true_random=False))
@hypothesis.settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
def test_a_mutated_input_is_one_line_or_a_success(folder, target, rng):
    """hypothesis makes the choices of a mutation, the same each time, and of a failing one the simplest that fails."""
    wrong, ended = targets.tried(target, rng, folder)
    assert not wrong, ended.fault[-500:]


def test_a_run_of_a_mutated_config_is_read_back(folder, monkeypatch):
    """The one case here that trains: its records are finite, and its config.json gives the same run again."""
    monkeypatch.setattr(targets, "REAL", 1.0)
    monkeypatch.setattr(mutations, "mutate", lambda rng, node: {**node, "seed": 3})
    monkeypatch.setattr(mutations, "text_of", lambda rng, node: json.dumps(node))
    wrong, ended = targets.attempt("config", SEED, 0, folder)
    assert not wrong, ended.fault
    assert ended.status == 0, ended.err
    assert "finished" in ended.out


def test_what_the_oracle_takes_for_wrong(folder):
    def ended(main):
        return doors.verdict(doors.call("", main=main, seconds=1))

    def traceback():
        raise ValueError("ours")

    def two_lines():
        print("error: a", file=sys.stderr)
        print("error: b", file=sys.stderr)
        return 2

    def never():
        while True:
            pass

    assert ended(lambda: 0) == ""
    assert ended(traceback) == "traceback: ValueError: ours"
    assert ended(two_lines).startswith("not one line")
    assert ended(lambda: 1).startswith("status 1")
    assert "Hang" in ended(never)

    def write(rng, kept, case):
        kept.data.write_text("x")
        return lambda: doors.call("", main=lambda: 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(targets.TARGETS, "write", write)
        before = targets.workspace(str(folder)).data.read_text()
        assert "files outside the case changed" in targets.attempt("write", 0, 0, folder)[0]
        targets.workspace(str(folder)).data.write_text(before)


def test_a_case_is_the_same_each_time():
    node = {"a": [1, 2.5, "x", None, {"b": True}], "c": {"d": "e"}}
    for seed in range(50):
        texts = {
            mutations.text_of(rng, mutations.mutate(rng, node)) for rng in (random.Random(seed), random.Random(seed))
        }
        assert len(texts) == 1
        flips = {mutations.flip(rng, b"some bytes") for rng in (random.Random(seed), random.Random(seed))}
        assert len(flips) == 1


@pytest.mark.parametrize("kind", ["gemma3", "phi3", "smollm3", "qwen2"])
def test_no_number_of_a_family_is_more_than_a_refusal(tmp_path, kind):
    """Every number, those of the rotation included, replaced: the config is taken or refused, and both do happen."""
    whole, messages = targets.SHAPES[kind], []

    def said(section, field, value):
        changed = json.loads(json.dumps(whole))
        (changed[section] if section else changed)[field] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            abstract_base(BaseConfig(str(tmp_path)))
        except UserError as error:
            return str(error)
        return ""

    for section in (None, *(name for name, value in whole.items() if isinstance(value, dict))):
        for field, value in (whole[section] if section else whole).items():
            if not isinstance(value, bool | str | dict):
                wrong = (0, -1, 1, 1.0, 10**400, 1e308, float("nan"), "8", None, [], [0, 0])
                messages += [said(section, field, one) for one in wrong]
    assert not any("\n" in one for one in messages)
    assert 0 < messages.count("") < len(messages) / 2


def test_a_program_has_its_flags_whichever_ran_before():
    for name in ("run", "sweep", "run", "trials"):
        ended = doors.call(name, "--config=configs/no_such.py", *(["--name=x"] if name == "run" else []))
        assert not doors.verdict(ended), ended
        assert ended.status == 2, ended
        assert "no_such.py" in ended.err, ended
