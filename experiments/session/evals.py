"""The configs of entries of `config.evals` whose type has options: when they are evaluated, and how."""

import dataclasses
from typing import Any

from lowrank_jax.forms.chooser import ChoiceOptions
from lowrank_jax.forms.forgetting import ForgettingOptions
from lowrank_jax.forms.generation import GenerationOptions, SamplesOptions
from lowrank_jax.train.evaluations import EvalConfig


@dataclasses.dataclass(frozen=True)
class SamplesConfig(EvalConfig, SamplesOptions):
    """See both parents: when samples are written, and which."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        SamplesOptions.__post_init__(self)

    @property
    def options(self) -> SamplesOptions:
        """What is written, without when: entries that differ only in when they are due share a program."""
        return _options(self, SamplesOptions)


@dataclasses.dataclass(frozen=True)
class GenerationConfig(EvalConfig, GenerationOptions):
    """See both parents: when prompts are decoded and scored, and how."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        GenerationOptions.__post_init__(self)

    @property
    def options(self) -> GenerationOptions | None:
        """How prompts are decoded, without when; None where that is as the task's own evaluation does it."""
        options = _options(self, GenerationOptions)
        return None if options == GenerationOptions() else options


@dataclasses.dataclass(frozen=True)
class ForgettingConfig(EvalConfig, ForgettingOptions):
    """See both parents: when the loss on other text is measured, and on which."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        ForgettingOptions.__post_init__(self)

    @property
    def options(self) -> ForgettingOptions:
        """Which text, without when."""
        return _options(self, ForgettingOptions)


@dataclasses.dataclass(frozen=True)
class ChoiceConfig(EvalConfig, ChoiceOptions):
    """See both parents: when an exam's questions are asked, and which exam."""

    def __post_init__(self):
        EvalConfig.__post_init__(self)
        ChoiceOptions.__post_init__(self)

    @property
    def options(self) -> ChoiceOptions:
        """The exam, without when: entries that differ only in when they are due share a program."""
        return _options(self, ChoiceOptions)


def _options(entry: Any, cls: type) -> Any:
    return cls(**{field.name: getattr(entry, field.name) for field in dataclasses.fields(cls)})
