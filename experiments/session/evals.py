"""The configs of entries of `evals` that have options: when they are evaluated, and how."""

import dataclasses
from typing import Any

from lowrank_jax.forms.generation import GenerationOptions, SamplesOptions
from lowrank_jax.train.loop import EvalConfig


@dataclasses.dataclass(frozen=True)
class SamplesConfig(EvalConfig, SamplesOptions):
    """See both parents: when samples are written, and which."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        SamplesOptions.__post_init__(self)

    @property
    def options(self) -> SamplesOptions:
        """What is written, without the rhythm: entries that differ in it alone share a program."""
        return _options(self, SamplesOptions)


@dataclasses.dataclass(frozen=True)
class GenerationConfig(EvalConfig, GenerationOptions):
    """See both parents: when prompts are decoded and scored, and how."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        GenerationOptions.__post_init__(self)

    @property
    def options(self) -> GenerationOptions | None:
        """How, without the rhythm; None for what the task's own evaluation does."""
        options = _options(self, GenerationOptions)
        return None if options == GenerationOptions() else options


def _options(entry: Any, cls: type) -> Any:
    return cls(**{field.name: getattr(entry, field.name) for field in dataclasses.fields(cls)})
