"""A config file unpacked as a run has it, for the tests of configs/."""

from typing import Any

from experiments.cli import complete_file
from experiments.config.labels import with_labels
from experiments.config.plain import to_plain
from experiments.config.schema import RunConfig, unpack_run


def unpack_file(name: str, **changes: Any) -> RunConfig:
    """The config of "configs/mora_uuid.py:scale=gpu"; `changes` are overrides, __ for their dots."""
    config = complete_file(name)
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return unpack_run(with_labels(to_plain(config)))
