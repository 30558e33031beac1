"""MNLI on a causal model: the label's word completes a prompt (LoRA's Table 4, and with few rows Tables 16 and 17).

Hu et al. train GPT-3 on MNLI and print no prompt. Ours is a plain one, with the labels' own names as completions:

    Premise: {premise}
    Hypothesis: {hypothesis}
    Label: entailment | neutral | contradiction
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.builders.glue.specs import GLUE
from lowrank_jax.metrics.classification import accuracy, check_library
from lowrank_jax.tasks.base import pad_id
from lowrank_jax.tasks.choice_rows import Candidate, ChoiceRows, Question, candidate_arrays, encode_questions
from lowrank_jax.tasks.framing import PLAIN, Framing, frame
from lowrank_jax.tasks.glue.splits import TRAIN, Split, read_splits
from lowrank_jax.tasks.glue.task import default_buckets

log = logging.getLogger(__name__)
TASK = "mnli"
PROMPT = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"
COMPLETIONS = tuple(f" {label}" for label in GLUE[TASK].labels)
Dev = Literal["matched", "both"]
Likelihood = Literal["sum", "per_token", "per_byte"]


def splits_of(dev: str) -> tuple[str, ...]:
    """The splits that are read for a value of `MnliConfig.dev`."""
    return tuple(split for split in GLUE[TASK].splits if split in (TRAIN, "dev_matched") or dev == "both")


@dataclass(frozen=True)
class MnliConfig:
    """How much of MNLI is read, how long its rows may be, and how completions are compared.

    Attributes:
      seq_len: most tokens of a prompt with its completion; 768 in Table 12.
      buckets: lengths that batches are padded to, ascending up to seq_len; None: seq_len, its half, its quarter, ...
        down to 32.
      truncate: True cuts the beginning of a prompt that is too long off and notes what is lost, False refuses it.
      add_bos: whether texts begin with BOS.
      likelihood: what decides between completions, see `forms.choice.make_chooser`: the `sum` of their tokens'
        log-likelihoods, or its mean `per_token` or `per_byte`.
      dev: the sets that are scored: `matched` (MNLI-m, as in the paper's tables) or `both`.
      train_examples, subset_seed: size of the low-data training sets, a plain random sample of the training rows; see
        `glue.GlueConfig`.
      data_dir, allow_partial, max_dev_examples: as in `glue.GlueConfig`.
    """

    form: ClassVar[str] = "choice"
    seq_len: Annotated[int, Range(least=4)] = 768
    buckets: tuple[Annotated[int, Range(least=1)], ...] | None = None
    truncate: bool = False
    add_bos: bool = False
    likelihood: Likelihood = "sum"
    dev: Dev = "matched"
    train_examples: Annotated[int, Range(least=1)] | None = None
    subset_seed: Annotated[int, Range(least=0, most=2**32 - 1)] = 0
    data_dir: str | None = None
    allow_partial: bool = False
    max_dev_examples: Annotated[int, Range(least=1)] | None = None

    def __post_init__(self):
        check_ranges(self, "task")
        for name, known in (("likelihood", get_args(Likelihood)), ("dev", get_args(Dev))):
            if getattr(self, name) not in known:
                raise unknown_name(f"task.{name}", getattr(self, name), known)
        if self.buckets is not None:
            object.__setattr__(self, "buckets", tuple(self.buckets))  # a list where it comes from a ConfigDict or JSON
            if list(self.buckets) != sorted(set(self.buckets)) or self.buckets[-1:] != (self.seq_len,):
                raise UserError(f"task.buckets is {self.buckets}; it must ascend up to seq_len={self.seq_len}")


class MnliTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start. Attributes as in `ChoiceTask`.

    Args:
      config: how much is read.
      tokenizer: of the base.
      positions: the most tokens of a row that the base can read; None for no such limit.
      framing: the virtual tokens of a prefix method. They count among a row's tokens.

    Attributes:
      contents: split -> digest of all its rows.
      max_new_tokens, stop_id: tokens of the longest completion, and None; for evaluations of the type "samples".
    """

    name, evaluation, stop_id = "mnli", "choices", None

    def __init__(self, config: MnliConfig, tokenizer: Any, positions: int | None = None, framing: Framing = PLAIN):
        check_library()
        if positions and config.seq_len > positions:
            raise UserError(
                f"task.seq_len is {config.seq_len} and the base has {positions} positions; lower task.seq_len"
            )
        self.config, self.tokenizer, self.likelihood = config, tokenizer, config.likelihood
        self.framing = framing
        self.seq_len, self.buckets = config.seq_len, config.buckets or default_buckets(config.seq_len)
        self.pad = {"tokens": pad_id(tokenizer)}
        notes, self.partial, self.contents = [], False, {}
        self._rows: dict[str, ChoiceRows] = {}
        self._questions: dict[str, list[Question]] = {}
        for split in read_splits(TASK, config, splits_of(config.dev)):
            self.partial |= split.partial
            notes += split.notes
            if split.digest is None:
                continue
            self.contents[split.split] = split.digest
            rows, note = self._encode(split)
            self._rows[split.name] = rows
            if note:
                log.warning("%s", note)
                notes.append(note)
        self.notes = tuple(notes)
        self.max_new_tokens = max(rows.most for rows in self._rows.values())

    def train_source(self) -> ChoiceRows:
        """Rows of one candidate, the right one."""
        return self._rows[TRAIN]

    def validation_sources(self) -> dict[str, ChoiceRows]:
        """{"matched": rows}, with task.dev=both also "mismatched"; each row has all candidates."""
        return {name: rows for name, rows in self._rows.items() if name != TRAIN}

    def features(self, example: list[Candidate]) -> dict[str, np.ndarray]:
        """{"tokens": int32 [n], "weights": float32 [n], 1 on the completion}; n differs by row."""
        (right,) = example
        weights = (np.arange(len(right.tokens)) >= right.start).astype(np.float32)
        return {"tokens": right.tokens, "weights": weights}

    def candidates(self, example: list[Candidate]) -> dict[str, np.ndarray]:
        """See `ChoiceTask`; K is 3."""
        return candidate_arrays(example, len(COMPLETIONS), self.max_new_tokens, self.pad["tokens"])

    def lengths(self, source: ChoiceRows) -> np.ndarray:
        """Number of tokens of each row with its longest completion, int32 [len(source)]."""
        return source.lengths

    def prompts(self, sample: int | None = None) -> list[tuple[str, str]]:
        """(prompt, right completion) of the first held-out rows."""
        first = next(iter(self._questions.values()))[:sample]
        return [(row.prompt, row.candidates[row.answer]) for row in first]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The ids that decoding starts from: those before the completion in training, where no prompt was cut."""
        return frame(self.tokenizer, prompt, self.config.add_bos, framing=self.framing)

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy of the likeliest completions over all of `validation_sources`, and the held-out loss.

        "loss" is the mean of -log p(right) in nats, with p(c) = exp L(c) / sum over the row's completions of exp L; its
        value at chance is log 3. "main" is Table 4's MNLI-m: accuracy on the matched set, or on what there is without
        it. "distinct" counts the labels that were predicted (1 is a collapsed run), "nonfinite" rows with a likelihood
        that is NaN or infinite: it counts as 0 in the accuracies, and "loss" is then NaN, as log 3 might seem the best.

        Args:
          outputs: name of a set -> log-likelihoods [n, 3], in the source's order.

        Returns:
          {"matched"}, or with both sets {"matched", "mismatched", "overall"}; and those above. All but "loss" are those
          of `glue.GlueTask.score`.
        """
        sources = self.validation_sources()
        if outputs.keys() != sources.keys():
            raise ValueError(f"outputs of {sorted(outputs)} for the sets {sorted(sources)}")
        found, picks, answers, losses, nonfinite = {}, [], [], [], 0.0
        for name, rows in sources.items():
            values = np.asarray(outputs[name], np.float32)
            if values.shape != (len(rows), len(COMPLETIONS)):
                raise ValueError(f"outputs {values.shape} of {name!r}; wanted {(len(rows), len(COMPLETIONS))}")
            finite = np.isfinite(values)
            nonfinite += float(np.sum(~finite.all(axis=1)))
            values = np.where(finite, values, 0)
            picks.append(np.argmax(values, axis=1))
            right = np.take_along_axis(values, rows.answers[:, None], axis=1)[:, 0]
            losses.append(np.logaddexp.reduce(values, axis=1) - right)
            answers.append(rows.answers)
            found[name] = accuracy(picks[-1], rows.answers)
        joined = np.concatenate(picks)
        overall = accuracy(joined, np.concatenate(answers))
        return {
            **found,
            **({"overall": overall} if len(found) > 1 else {}),
            "loss": math.nan if nonfinite else float(np.mean(np.concatenate(losses))),
            "main": found.get("matched", overall),
            "distinct": float(len(np.unique(joined))),
            "nonfinite": nonfinite,
        }

    def _encode(self, split: Split) -> tuple[ChoiceRows, str | None]:
        assert split.second is not None  # MNLI has pairs
        triples = zip(split.first, split.second, split.labels.tolist(), strict=True)
        questions = [
            Question(PROMPT.format(premise=premise, hypothesis=hypothesis), COMPLETIONS, label)
            for premise, hypothesis, label in triples
        ]
        if split.name != TRAIN:
            self._questions[split.name] = questions
        return encode_questions(
            self.tokenizer,
            questions,
            self.seq_len,
            name=f"{TASK} {split.split}",
            place=lambda index: f"{TASK} {split.place(index)}",
            add_bos=self.config.add_bos,
            truncate=self.config.truncate,
            right_alone=split.name == TRAIN,
            framing=self.framing,
        )
