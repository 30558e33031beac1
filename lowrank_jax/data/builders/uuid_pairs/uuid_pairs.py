"""The TFDS builder `uuid_pairs`: random UUID keys and values, for memorisation experiments (MoRA, section 3)."""

import dataclasses

import tensorflow_datasets as tfds

from lowrank_jax.data.builders.uuid_pairs.pairs import VERSION, config_name, generate_pairs


@dataclasses.dataclass
class UuidPairsConfig(tfds.core.BuilderConfig):
    """How many pairs, drawn with which seed; each combination has a separate folder on disk."""

    name: str = ""  # always config_name(pairs, seed)
    pairs: int = 64
    seed: int = 0

    def __post_init__(self):
        self.name = config_name(self.pairs, self.seed)
        self.description = f"{self.pairs} pairs, seed {self.seed}"


class UuidPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs of random version-4 UUIDs, key and value: a value can only be memorised."""

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = (UuidPairsConfig(pairs=64), UuidPairsConfig(pairs=10_000))  # laptop and paper scale

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Random pairs of version-4 UUIDs (32 hexadecimal digits each).",
            features=tfds.features.FeaturesDict({"key": tfds.features.Text(), "value": tfds.features.Text()}),
            homepage="https://arxiv.org/abs/2405.12130",
            disable_shuffling=True,  # row i is pair i: TFDS would order rows by a hash of their keys
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        config = self.builder_config
        assert config is not None  # BUILDER_CONFIGS are not empty
        for index, (key, value) in enumerate(generate_pairs(config.pairs, config.seed)):
            yield index, {"key": key, "value": value}
