"""--help describes --config: the sections of the dataclasses, and the arguments and keys of a config file."""

from pathlib import Path

import pytest

from configs.common import Asked, parse_arg
from experiments.cli import complete_file
from experiments.config import help as texts
from experiments.config.plain import to_plain
from experiments.config.sections import experiment_types

ROOT = Path(__file__).parents[2]
CONFIGS = [path for path in sorted((ROOT / "configs").glob("*.py")) if path.stem not in ("__init__", "common")]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_each_section_and_config_file_has_its_line():
    said, sections = texts.general(), experiment_types()
    for section, cls in (*sections.items(), *sections.pop("task").items()):
        if section != "task":
            assert f"  {cls.__doc__.splitlines()[0]}\n" in f"{said}\n", section
    for path in CONFIGS:
        assert f"    configs/{path.name} " in said
    assert "configs/common.py" not in said


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_files_arguments_are_those_that_it_declares(path):
    """Each default is taken; and nothing else is, by the message of a wrong one."""
    name, arguments = f"configs/{path.name}", texts.arguments(f"configs/{path.name}")
    plain = to_plain(complete_file(name))
    said = texts.of_file(name, plain)
    assert arguments
    for key, default, words in arguments:
        shown = "(not set)" if default is None else str(default).lower() if isinstance(default, bool) else default
        assert f"    {key}={shown}" in said
        assert words
        if default is not None:
            assert to_plain(complete_file(f"{name}:{key}={default}")) == plain


def test_every_key_is_a_flag_that_can_be_given():
    """As printed they are the config."""
    name = "configs/mora_uuid.py:method=lora,rank=4"
    said = texts.of_file(name, to_plain(complete_file(name)))
    keys = [line.strip().removeprefix("--config.") for line in said.splitlines() if line.startswith("  --config.")]
    assert "adapter.rank=4" in keys
    assert "adapter.mora.compression=sharing" in keys
    assert "train.eval_steps=(25, 50, 75)" in keys
    assert "base.revision=(not set)" in keys
    assert len(keys) > 70


def test_asking_for_arguments():
    with pytest.raises(Asked) as asked:
        parse_arg("?", scale=("laptop", "gpu"), rank=8, rate=float, wide=False, base=str)
    assert asked.value.arguments == [
        ("scale", "laptop", "laptop, gpu"),
        ("rank", 8, "an integer"),
        ("rate", None, "a number"),
        ("wide", False, "true, false"),
        ("base", None, "a word"),
    ]
    assert "rank=8 (an integer)" in str(asked.value)


def test_a_file_that_declares_nothing(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(arg=None):\n    return {'task': {'name': 'uuid'}}\n")
    assert "declares no arguments" in texts.of_file(str(file), {"seed": 0})
    file.write_text("def get_config(arg=None):\n    return {'rank': int(arg or 8)}\n")
    assert texts.arguments(str(file)) == []
