"""Memorising random UUID pairs: "key:value", scored by digits of the value recalled from "key:" (MoRA, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.builders.uuid_pairs.source import PairSource, load_pairs
from lowrank_jax.data.packing import mark
from lowrank_jax.tasks.base import Features, check_score_input, make_features, pad_id, round_up
from lowrank_jax.tasks.framing import PLAIN, Framing, frame

LOSS_ON = ("value", "all")
MOST_PAIRS = 1_000_000  # all are made and compared at the start, in seconds; the paper has 10,000
LENGTH = 36  # characters of a UUID
DIGITS = [i for i in range(LENGTH) if i not in (8, 13, 18, 23)]  # 32 hexadecimal digits; the rest are hyphens
# Accuracy of the best guess that knows only the format: the version digit is always 4, the variant digit is one of 8,
# 9, a, b, and 30 digits are free.
CHANCE = (1 + 1 / 4 + 30 / 16) / 32  # 0.0977


@dataclass(frozen=True)
class UuidConfig:
    """Which pairs, which of their tokens are learnt, and how many are decoded at an evaluation.

    Attributes:
      pairs, seed: of `generate_pairs`.
      loss_on: "value", the tokens after ":", or "all", as in the official code (a random key cannot be predicted: its
        tokens keep the mean loss above 0).
      add_bos, add_eos: marks around the text.
      eval_pairs: pairs decoded at an evaluation; None decodes all.
      data_dir: TFDS folder; None takes TFDS's default.
    """

    pairs: Annotated[int, Range(least=1, most=MOST_PAIRS)] = 64
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] = 0
    form: ClassVar[str] = "next_token"
    loss_on: str = "value"
    add_bos: bool = False
    add_eos: bool = False
    eval_pairs: Annotated[int, Range(least=1)] | None = None
    data_dir: str | None = None

    def __post_init__(self):
        check_ranges(self, "task")
        if self.loss_on not in LOSS_ON:
            raise unknown_name("loss_on", self.loss_on, LOSS_ON)
        if self.eval_pairs is not None and self.eval_pairs > self.pairs:
            raise UserError(f"eval_pairs={self.eval_pairs} is more than pairs={self.pairs}; lower eval_pairs")


class UuidTask:
    """The task over one tokenizer; encodes every pair once, to find the longest.

    "key:" and the value are encoded separately and joined, in training too: for any tokenizer, the ids before the value
    are then exactly the prompt of decoding. For bytes, and for subwords that split at punctuation (as GPT-2's and
    SmolLM2's do), this equals encoding the whole text; sentencepiece puts its word-start mark before the value as well.
    """

    name, evaluation = "uuid", "generation"

    def __init__(self, config: UuidConfig, tokenizer: Any, framing: Framing = PLAIN):
        self.config, self.tokenizer, self.framing = config, tokenizer, framing
        self._source = load_pairs(config.pairs, config.seed, config.data_dir)
        self._eos = [mark(tokenizer, "eos")] if config.add_eos else []
        self.stop_id = self._eos[0] if config.add_eos else None
        self._pairs = [(row["key"], row["value"]) for row in self._source.__getitems__(range(len(self._source)))]
        if self._pairs != self._source.expected:  # a run's record has only the seed
            raise UserError(f"{self._source.folder} has other pairs than its seed gives; delete it and run again")
        self._encoded = {key: (self.prompt_tokens(key + ":"), tokenizer.encode(value)) for key, value in self._pairs}
        values = [len(value) for _, value in self._encoded.values()]
        longest = max(len(prompt) + len(value) for prompt, value in self._encoded.values()) + len(self._eos)
        self.seq_len = round_up(longest, 2)  # cuDNN's attention wants an even length; more would be padding
        self.max_new_tokens = max(values)

    def train_source(self) -> PairSource:
        """Rows {"key", "value"}; row i is pair i."""
        return self._source

    def features(self, example: dict[str, str]) -> Features:
        """[BOS] key : value [EOS], with weight 1 on the value (and EOS), or on everything but BOS and a first token."""
        prompt, value = self._encoded[example["key"]]
        target = value + self._eos
        before, framing = 0.0 if self.config.loss_on == "value" else 1.0, self.framing
        weights = np.full(len(prompt), before)
        weights[: len(framing.prefix_ids) + 1] = 0  # the prefix, and the first token, which has no text before it
        weights[len(prompt) - len(framing.infix_ids) :] = 0
        return make_features(prompt + target, [*weights, *[1.0] * len(target)], self.seq_len, pad_id(self.tokenizer))

    def prompts(self, sample: int | None = None) -> list[tuple[str, str]]:
        """("key:", value) of `sample` pairs (default: eval_pairs, or all), evenly spaced over the data set.

        The pairs are random: even spacing is as fair as a random draw, and the same everywhere.
        """
        total = len(self._pairs)
        count = min(sample or self.config.eval_pairs or total, total)
        chosen = [self._pairs[i * total // count] for i in range(count)]
        return [(key + ":", value) for key, value in chosen]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """[BOS] and the ids of "key:", between virtual tokens."""
        return frame(self.tokenizer, prompt, self.config.add_bos, framing=self.framing)

    def score(self, predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
        """`score_uuids`."""
        return score_uuids(predictions, targets)


def score_uuids(predictions: Sequence[str], targets: Sequence[str]) -> dict[str, float]:
    """Character accuracy over the 32 digits of each value, and the rate of values that are right in full.

    Prediction and target are compared place by place over the UUID's 36 characters; the hyphens do not count towards
    the accuracy, a place beyond the prediction's end is wrong, and characters after the 36th are ignored (without EOS
    the model never learns to stop). Chance is `CHANCE`, 9.77%.

    Returns:
      {"char_accuracy", "exact_match"}, both in [0, 1].
    """
    check_score_input(predictions, targets)
    right = sum(p[i : i + 1] == t[i] for p, t in zip(predictions, targets, strict=True) for i in DIGITS)
    exact = sum(p[:LENGTH] == t for p, t in zip(predictions, targets, strict=True))
    return {"char_accuracy": right / (len(DIGITS) * len(targets)), "exact_match": exact / len(targets)}
