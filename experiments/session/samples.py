"""The config of an entry of `evals` that writes samples of text: when, and what."""

import dataclasses

from lowrank_jax.forms.generation import SamplesOptions
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
        names = [field.name for field in dataclasses.fields(SamplesOptions)]
        return SamplesOptions(**{name: getattr(self, name) for name in names})
