"""Prints what the hosts need to read a run's base model, before any is paid for: base.py FLAGS_OF_EXPERIMENTS_RUN."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a clone that is not installed

import experiments.run  # noqa: F401  defines the flags
from experiments.cli import launch, load_config
from lowrank_jax.bases.locate import KNOWN, SHIPPED, resolve

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def needed(name: str, random_init: bool = False) -> str:
    """What each host needs to read the base of that name, in words.

    Raises:
      UserError: it is a shape without weights, or unknown.
    """
    if random_init:
        return f"{name} with random weights: no file is read"
    if name == SHIPPED:
        return f"{name}, which is in this repository"
    if name in KNOWN:
        return f"{name}; run python scripts/fetch_weights.py {name} on each host before the run"
    if Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        return f"{name}, a path that all hosts must have"
    if HUB_NAME.fullmatch(name):
        return f"{name}, which each host reads from the Hub; a gated one needs HF_TOKEN, or hf auth login, on each"
    return f"{name}, {resolve(name)[1]}"  # raises for an unknown name and for a shape


def main(_) -> None:
    """Prints one line."""
    config, _plain = load_config()
    print(f"base: {needed(config.base.name, config.base.random_init)}")


if __name__ == "__main__":
    launch(main)
