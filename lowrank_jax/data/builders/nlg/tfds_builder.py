"""The TFDS builder `lowrank_nlg`: each generation data set as array_record, made from its official files."""

import dataclasses
import json
from collections.abc import Callable, Iterable

import tensorflow_datasets as tfds

from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.data.builders.nlg.specs import NLG

VERSION = "1.0.0"
NAME = "lowrank_nlg"
Read = Callable[[str], Iterable[NlgRow]]


@dataclasses.dataclass
class LowrankNlgConfig(tfds.core.BuilderConfig):
    """Which data set; `read` gives a split's rows, and is needed only where it is prepared."""

    read: Read | None = None


class LowrankNlg(tfds.core.GeneratorBasedBuilder):
    """Inputs as text, and the texts that are written for them."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = tuple(LowrankNlgConfig(name=name, description=spec.title) for name, spec in NLG.items())

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {"context": text(), "references": tfds.features.Sequence(text()), "category": text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text from data: the data sets of LoRA's GPT tables.",
            features=tfds.features.FeaturesDict({**features, "place": text(), "table": text()}),
            homepage="https://arxiv.org/abs/2106.09685",
            disable_shuffling=True,  # rows stay in the order of the official file
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        config = self.builder_config
        assert isinstance(config, LowrankNlgConfig)
        assert config.read is not None  # `prepare.prepare` gives it
        return {split: self._generate_examples(config.read, split) for split in NLG[config.name].files}

    def _generate_examples(self, read: Read, split: str):
        for number, row in enumerate(read(split)):
            table = "" if row.table is None else json.dumps(row.table)
            kept = {"context": row.context, "references": list(row.references), "category": row.category}
            yield number, {**kept, "place": row.place, "table": table}
