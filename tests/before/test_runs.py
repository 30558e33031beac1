"""Run folders that an earlier commit left half way: resumed now, they become the runs that were not stopped."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "runs.json").read_text())
CLOCKS = ("time", "tokens_per_second", "train_seconds")


@pytest.fixture(scope="module")
def folder(unpacked):
    """Bases, data, stopped runs, and the adapters of the whole ones."""
    return unpacked("runs")


@pytest.fixture
def same(doors):
    """same(found, expected, what): equal bit for bit where the record was made, otherwise to rounding."""
    here = doors.place()

    def call(found, expected, what):
        if here == RECORD["place"]:
            np.testing.assert_array_equal(found, expected, err_msg=what)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=what)

    return call


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def resume(program, folder, monkeypatch, doors, name):
    """Runs the command again in the folder that it was stopped in; (folder before, folder after) of each run of it."""
    told = RECORD["runs"][name]
    stopped = folder / "stopped" / name
    earlier = {run: lines(stopped / run) for run in told["expected"]}
    monkeypatch.chdir(folder)
    words = [word.replace("--config=", f"--config={doors.ROOT}/") for word in told["words"]]
    if "data=text" in words[0]:  # whose warm-up began at 0 then, as other configs' does
        words.append("--config.schedule.warmup_start=zero")
    ended = program(told["program"], *words, f"--workdir=stopped/{name}")
    assert ended.status == 0, ended.err
    return stopped, earlier


@pytest.mark.parametrize("name", RECORD["runs"])
def test_a_run_that_was_stopped_ends_as_the_whole_one(name, program, folder, monkeypatch, doors, same):
    stopped, earlier = resume(program, folder, monkeypatch, doors, name)
    last = RECORD["runs"][name]["stopped"]
    for run, expected in RECORD["runs"][name]["expected"].items():
        now = lines(stopped / run)
        assert now[: len(earlier[run])] == earlier[run], "it began again, or wrote its earlier records anew"
        records = [json.loads(line) for line in now[len(earlier[run]) :]]
        # An evaluation of nothing, where there is no held-out data, left an empty line then.
        wanted = [record for record in expected["metrics"] if record["step"] > last and len(record) > 1]
        assert [record["step"] for record in records] == [record["step"] for record in wanted]
        for record, other in zip(records, wanted, strict=True):
            assert other.keys() <= record.keys()
            for key, value in other.items():
                same(record[key], value, f"{run}: {key} of step {other['step']}")

        result = json.loads((stopped / run / "result.json").read_text())
        assert result["status"] == expected["result"]["status"]
        assert expected["result"]["parameters"].items() <= result["parameters"].items()
        same(result["losses"], expected["result"]["losses"], f"{run}: losses")
        evaluations = {one["step"]: one for one in result["evaluations"]}
        for other in expected["result"]["evaluations"]:
            for key, value in other.items():
                same(evaluations[other["step"]][key], value, f"{run}: {key} after step {other['step']}")

        found, whole = (
            load_file(place / "adapter.safetensors") for place in (stopped / run / "adapter", folder / "adapters" / run)
        )
        assert found.keys() == whole.keys()
        for path, leaf in whole.items():
            same(found[path], leaf, f"{run}: {path}")


def test_more_of_each_kind_was_left_to_do():
    """The fixture itself: one run and a group of two, steps after the stop, an evaluation before it and after it."""
    assert {told["program"] for told in RECORD["runs"].values()} == {"run", "trials"}
    assert len(RECORD["runs"]["trials"]["expected"]) == 2
    for name, told in RECORD["runs"].items():
        for expected in told["expected"].values():
            assert [one["step"] for one in expected["metrics"] if "loss" in one] == [1, 2, 3, 4, 5, 6]
            scored = [one["step"] for one in expected["result"]["evaluations"]]
            assert name == "trials" or min(scored) < told["stopped"] < max(scored)
