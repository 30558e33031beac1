"""The programs as a user starts them, in this process or in one of their own, at toy size."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = "configs/mora_uuid.py"
# toy-llama, random, 8 pairs in a batch of 8, 6 steps, a checkpoint after each second one.
TOY = {
    "base.name": "toy-llama",
    "base.random_init": True,
    "adapter.rank": 4,
    "task.pairs": 8,
    "task.eval_pairs": 2,
    "train.batch_size": 8,
    "train.steps": 6,
    "train.eval_steps": "()",
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
    "schedule.warmup_steps": 1,
    "tracking.wandb": "disabled",
}


def toy_words(folder, config=CONFIG, name="run", fresh=False, profile_steps=None, **changes) -> list[str]:
    """The command line of a toy run; `changes` are overrides, with __ for the dots."""
    settings = TOY | {key.replace("__", "."): value for key, value in changes.items()}
    words = [f"--config={config}", f"--workdir={folder}", f"--name={name}"] + ["--fresh"] * fresh
    words += [f"--profile_steps={profile_steps}"] if profile_steps else []
    return words + [f"--config.{key}={value}" for key, value in settings.items() if value is not None]


@pytest.fixture
def program(monkeypatch, capfd):
    """program("run", word, ...) -> (status, out, err), through the program's own front door, in this process."""
    from absl import flags

    from experiments.main import launch

    monkeypatch.chdir(ROOT)

    def call(name, *words):
        module = importlib.import_module(f"experiments.{name}")
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *map(str, words)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                launch(module.main)
        finally:  # the next call starts with no flag set; absl's flagsaver would drop grain's flags for ever
            for flag in [f for f in flags.FLAGS if f.partition(".")[0] == "config"]:
                delattr(flags.FLAGS, flag)
            for flag in flags.FLAGS.flags_by_module_dict().get(module.__name__, ()):
                flag.unparse()
            flags.FLAGS.unparse_flags()
        return SimpleNamespace(status=ended.value.code or 0, **capfd.readouterr()._asdict())

    return call
