"""Completes a config with every key of its dataclasses: a flag can then override any of them."""

import dataclasses
import functools
import typing
from typing import Any

from experiments.config.json_flags import KEYS, way
from experiments.config.labels import STAGE
from experiments.config.sections import experiment_types
from lowrank_jax.core.paths import nearest


def complete(config: Any) -> Any:
    """The ConfigDict with the keys that its sections leave out, at their defaults; its own values are kept.

    A value where a section belongs is left as it is: `schema.unpack_run` says what is wrong with it.
    """
    from ml_collections import ConfigDict

    config = ConfigDict(config)
    sections = experiment_types()
    tasks = sections.pop("task")
    with config.unlocked():
        for name, cls in sections.items():
            config[name] = _fill(_get(config, name), cls)
        task = _get(config, "task")
        if isinstance(task, ConfigDict) and (cls := tasks.get(str(_get(task, "name")))):
            config.task = _fill(task, cls)
        for name, value in (("name", None), ("seed", 0), ("labels", ConfigDict()), ("trainable", "adapters")):
            if _get(config, name) is None:
                config[name] = _optional(str) if value is None else value
        # A grid sets the stage of its cells; the other labels derive from the config.
        if isinstance(config.labels, ConfigDict) and "stage" not in config.labels:
            config.labels.stage = STAGE
    return config


def _fill(section: Any, cls: type) -> Any:
    from ml_collections import ConfigDict

    section = ConfigDict() if section is None else section
    if not isinstance(section, ConfigDict):
        return section
    hints = _hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            section[field.name] = _fill(_get(section, field.name), hints[field.name])
        elif _get(section, field.name) is None:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if default is None:
                default = _optional(*(kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)))
            if default is not dataclasses.MISSING:
                section[field.name] = default
    return section


def _get(section: Any, key: str) -> Any:
    """The value, None without one. ConfigDict's `get` looks for similar keys each time, half the time of `complete`."""
    if key not in section:
        return None
    return section[key]


_hints = functools.cache(typing.get_type_hints)


def _optional(*kinds: Any) -> Any:
    """None by default; an override gives it a value of the first plain type."""
    from ml_collections import config_dict

    plain = [kind for kind in kinds if kind in (str, int, float, bool)]
    return config_dict.placeholder(plain[0] if plain else object)


def wrong_key(config: Any, path: str) -> str | None:
    """The error message for an override of a key that the config does not have; None where it has the key."""
    node, seen = config, ["config"]
    for key in path.split(".")[1:]:
        known = list(node.keys()) if hasattr(node, "keys") else []
        if key not in known:
            if node is config and key in KEYS:  # a key that is given whole
                return f"config.{key} has no part {path.removeprefix(f'config.{key}').strip('.')!r} to set; {way(key)}"
            close = nearest(key, known)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
            return f"unknown config key {'.'.join([*seen, key])}; {hint}"
        node, seen = node[key], [*seen, key]
    return None
