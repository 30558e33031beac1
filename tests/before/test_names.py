"""Names, content hashes and labels of configs, grids' cells and recorded results: those of an earlier commit."""

import gzip
import json
from pathlib import Path

import pytest

RECORD = json.loads(gzip.decompress((Path(__file__).parent / "names.json.gz").read_bytes()))
# A grid's cells over five seeds differ in them alone: the first argument's five, and one of each other.
THINNED = """
from {module} import cells as of_grid

def cells():
    return of_grid()[:5] + of_grid()[5::5]
"""


# Labels were kept beside the config then, and an override of the method left its variant behind; now they derive.
OVERRIDDEN = "--config=configs/lora_glue.py:task=mrpc,method=lora --config.adapter.method=mora --config.adapter.rank=4"


# Own data left its length, batch and steps to the data later (`data=text`); with these flags it is what it was.
OWN = {
    "laptop": dict(steps=100, batch=64, warmup=5),
    "gpu": dict(steps=1000, batch=1000, warmup=100),
    "paper": dict(steps=1000, batch=1000, warmup=100),
}


def as_it_was(words):
    """A recorded command with the values that its config file had then, before its own overrides."""
    first, *more = words.split()
    if "data=text" not in first:
        return words
    scale = next((name for name in OWN if f"scale={name}" in first), "laptop")
    then = OWN[scale] | ({"batch": 1024} if scale == "paper" and "reading=code" in first else {})
    flags = {
        "task.seq_len": 256, "train.steps": then["steps"], "train.batch_size": then["batch"],
        "schedule.warmup_steps": then["warmup"], "schedule.warmup_start": "zero",
    }  # fmt: skip
    return " ".join([first, *(f"--config.{key}={value}" for key, value in flags.items()), *more])


def bare(labels):
    """Labels without those that say nothing: no rank, and the stage of a run by hand."""
    return {key: value for key, value in labels.items() if value is not None and (key, value) != ("stage", "full")}


def check(found, expected):
    """Says what differs; a name ends with its content hash."""
    changed = [f"{key}: {expected.get(key)} -> {found.get(key)}" for key in expected if found.get(key) != expected[key]]
    assert not changed, f"{len(changed)} of {len(expected)} differ:\n" + "\n".join(changed[:10])


def test_of_configs(doors):
    found = {}
    for words in RECORD["configs"]:
        plain = doors.plain_config(as_it_was(words))
        found[words] = [doors.name_of(plain), bare(doors.labels_of(plain))]
    expected = {words: [name, bare(labels)] for words, (name, labels) in RECORD["configs"].items()}
    expected[OVERRIDDEN][1]["variant"] = "sharing"
    check(found, expected)
    assert found[words][0].endswith(f"-{doors.hash_of(plain)}")


@pytest.mark.parametrize("name", RECORD["grids"])
def test_of_cells(name, doors, tmp_path):
    config, expected = RECORD["grids"][name]
    grid = f"configs/sweeps/{name}.py"
    if len(expected) > 100:
        (tmp_path / "thinned.py").write_text(THINNED.format(module=f"configs.sweeps.{name}"))
        grid = str(tmp_path / "thinned.py")
    found = doors.grid_cells(config, grid)
    if len(expected) > 100:
        assert len(found) == 5 + (len(expected) - 5) // 5
        expected = {cell: expected.get(cell, "no such cell") for cell in found}
    assert list(found) == [cell for cell in expected if cell in found] or name.startswith("uuid")
    check(found, expected)


def test_of_recorded_results(doors):
    found = {result["name"]: [doors.name_of(result["config"]), result["labels"]] for result in doors.recorded()}
    check(found, RECORD["records"])
