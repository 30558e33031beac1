"""The steps of the laptop's configs, as traced and as compiled: operation for operation those of an earlier commit."""

import json

import pytest


@pytest.fixture(scope="module")
def record(programs):
    """programs.json; skips where its counts are another version's."""
    found = json.loads(programs.RECORD.read_text())
    here = programs.versions()
    if found["versions"] != here:
        pytest.skip(f"the counts are of {found['versions']}, here is {here}: compare both commits by programs.py")
    return found["programs"]


def check(programs, name, expected, found):
    """Lists every count that differs."""
    lines = programs.differences(expected, found, name)
    assert not lines, (
        "the step is another program (before -> now):\n  "
        + "\n  ".join(lines)
        + "\nIf that is wanted, show it is no worse, and record all six: python tests/before/programs.py"
    )


@pytest.mark.parametrize("name", ["laptop-mora", "laptop-lora", "glue-lora"])
def test_a_traced_step_is_what_it_was(name, programs, record):
    kinds = ("equations", "in", "out")
    check(programs, name, {kind: record[name][kind] for kind in kinds}, programs.traced(name))


def test_a_compiled_step_is_what_it_was(programs, record):
    name = "laptop-mora"
    expected, found = ({"operations": one["operations"]} for one in (record[name], programs.compiled(name)))
    check(programs, name, expected, found)


def test_differences_are_seen(programs, record):
    before = record["laptop-mora"]
    after = {**before, "operations": {**before["operations"], "dot": before["operations"]["dot"] + 1}}
    assert programs.differences(before, before, "x") == []
    (line,) = programs.differences(before, after, "x")
    assert line == f"x operations dot: {before['operations']['dot']} -> {before['operations']['dot'] + 1}"
