"""scripts/compare_devices.py: what it compares, and the flags that it gives to experiments.run."""

import json

import pytest

from experiments.cli import complete_file
from experiments.config.defaults import wrong_key
from experiments.config.files import ROOT, load_module


@pytest.fixture(scope="module")
def script():
    return load_module(ROOT / "scripts" / "compare_devices.py")


def test_equal_bits_are_counted(script, tmp_path):
    lines = [{"step": 1, "loss": 2.0}, {"step": 1, "eval/loss": 9.0}, {"step": 2, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ours = script.losses(tmp_path)
    assert ours == {1: 2.0, 2: 1.0}
    assert script.compared(ours, ours) == {"steps": 2, "equal": 2, "largest_relative": 0.0}
    assert script.compared(ours, {1: 2.0, 2: 1.25}) == {"steps": 2, "equal": 1, "largest_relative": pytest.approx(0.2)}
    with pytest.raises(ValueError, match="beside"):
        script.compared(ours, {1: 2.0})


def test_its_flags_are_keys_of_the_config(script):
    file, *words = script.WORDS
    config = complete_file(str(ROOT / file.removeprefix("--config=")))
    for word in (*words, *script.ONE, *(flag for mesh in script.MESHES.values() for flag in mesh)):
        assert wrong_key(config, word.removeprefix("--").partition("=")[0]) is None, word
