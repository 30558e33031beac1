"""The data sets of LoRA's GPT tables: E2E, WebNLG, DART, WikiSQL and SAMSum; held-out loss, and scores of texts."""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.builders.nlg.rows import NlgRow, capped, merged, pairs, rows_digest
from lowrank_jax.data.builders.nlg.source import load_nlg
from lowrank_jax.data.builders.nlg.specs import DEV, NLG, SEEN, TRAIN
from lowrank_jax.data.cuts import SHOWN, describe_cuts
from lowrank_jax.data.packing import PackedRows
from lowrank_jax.data.pipeline import Source
from lowrank_jax.tasks.base import Features, check_score_input, packed_length, pad_id, round_up, row_features, spaced
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.nlg.rows import Encoded, NlgEncoder, longest
from lowrank_jax.tasks.nlg.scores import Scored, score_by

log = logging.getLogger(__name__)
ROUNDED = 8  # seq_len is rounded up to a multiple of it, as in the task `text`
NEW_TOKENS = 64  # the official scripts' eval_len


@dataclass(frozen=True)
class NlgConfig:
    """Which data set, how much of it, and how its rows become examples.

    Attributes:
      task: a name of `specs.NLG`.
      data_dir: folder of the official files; see `load_nlg`.
      seq_len: tokens of an example. 0 takes it from the data: those of the longest row, rounded up to a multiple of
        ROUNDED; of packed rows max_seq_len, or less where that makes fewer than FEWEST examples. Padding is neither
        read nor scored: the scripts' 512 gives the same loss.
      max_seq_len: most tokens of an example of packed rows whose seq_len is 0, if no row is longer.
      packed: True puts several rows into an example, each read as if it stood alone, with the loss that it has alone.
      truncate: where a row is longer than seq_len, True cuts its end off and notes it, False refuses it at the start.
        Where a decoded input leaves no room for its text, True cuts its beginning off and notes it, False refuses it.
      separator: name of the special token that ends a text, and separates it from its input; "" is the base's EOS.
      add_bos: whether a row begins with BOS. The official rows do not; Gemma and Llama 2 expect it before every text.
      decoded: the split that is decoded and scored; "" is the paper's: test, and of WikiSQL dev.
      seen: which categories of WebNLG count as seen: the script's ten (`code`), or nine (`paper`); see `specs.SEEN`.
      train_examples, max_dev_examples, max_prompts: how many training rows, held-out rows and decoded inputs are used,
        evenly spaced; None takes all.
      allow_partial: runs on files whose number of rows is not the official one, and notes that in `NlgTask.notes`.
    """

    form: ClassVar[str] = "next_token"
    task: str = "e2e"
    data_dir: str | None = None
    seq_len: Annotated[int, Range(least=2, also=(0,))] = 0
    max_seq_len: Annotated[int, Range(least=2)] = 512
    packed: bool = False
    truncate: bool = False
    separator: str = ""
    add_bos: bool = False
    decoded: str = ""
    seen: str = "code"
    train_examples: Annotated[int, Range(least=1)] | None = None
    max_dev_examples: Annotated[int, Range(least=1)] | None = None
    max_prompts: Annotated[int, Range(least=1)] | None = None
    allow_partial: bool = False

    def __post_init__(self):
        check_ranges(self, "task")
        for name, value, known in (("task", self.task, NLG), ("seen", self.seen, SEEN)):
            if value not in known:
                raise unknown_name(f"task.{name}", value, known)
        if self.decoded and self.decoded not in NLG[self.task].files:
            raise unknown_name("task.decoded", self.decoded, NLG[self.task].files)

    @property
    def segmented(self) -> bool:
        """Whether an example has several rows that do not see each other."""
        return self.packed

    def after_prompt(self, tokenizer: Any) -> list[int]:
        """The ids that stand between an input and its text: the end token, where the data set has one there.

        Raises:
          UserError: as `NlgEncoder`.
        """
        return NlgEncoder(NLG[self.task], tokenizer, self.separator).after()


class NlgTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    Args:
      config: which data set, and how its rows become examples.
      tokenizer: of the base.
      positions: the most tokens of a row that the base can read; None for no such limit.
      framing: the virtual tokens of a prefix method. They count among a row's tokens.

    Attributes:
      seq_len: tokens of an example, from the config or the data.
      longest: tokens of the longest row.
      total: tokens of all training rows.
      max_new_tokens, end_ids: how many tokens a decoded text has at most, and the tokens that end it.
      stop_id: the end token of training.
      notes: a line for each departure from the official data, and for rows that are cut; a run's record keeps them.
      partial: whether any split differs from the official one.
      contents: split -> digest of its rows.
      missing: metric -> why the last `score` could not compute it.
      shortening: the remedy `truncate`, for the error of a prompt that is too long; "" where it is set already.
    """

    name, evaluation = "nlg", "likelihood"
    of_texts = False

    def __init__(self, config: NlgConfig, tokenizer: Any, positions: int | None = None, framing: Framing = PLAIN):
        self.config, self.tokenizer, self.spec = config, tokenizer, NLG[config.task]
        self.notes: tuple[str, ...] = ()
        self.missing: dict[str, str] = {}
        self.contents: dict[str, str] = {}
        self.partial, self.max_new_tokens = False, NEW_TOKENS
        self._framing = framing
        self.shortening = "" if config.truncate else "set task.truncate=True to cut the beginnings of long prompts, "
        self._longer = functools.partial(framing.longer, positions=positions)
        self._encoder = NlgEncoder(self.spec, tokenizer, config.separator, framing, config.add_bos)
        self.stop_id, self.end_ids = self._encoder.end, self._encoder.ends()
        train = spaced(pairs(self._load(TRAIN)), config.train_examples)
        held = spaced(pairs(self._load(DEV)), config.max_dev_examples)
        self._inputs = inputs_of(config, self._load(decoded_split(config)))
        if not all(row.references[0].strip() for row in (*train, *held)):
            raise UserError(f"{self.config.task}: a training text is empty; remove its row")
        encoded = [[self._encoder.row(row) for row in rows] for rows in (train, held)]
        self.longest, self.total = max(map(longest, encoded)), sum(len(one.tokens) for one in encoded[0])
        self.seq_len = self._length(self.longest, positions)
        self._train, self._held = (
            self._examples(rows, made, split)
            for rows, made, split in zip((train, held), encoded, (TRAIN, DEV), strict=True)
        )

    def train_source(self) -> Source:
        """Rows {"tokens", "targets"}, or packed rows with "segments"."""
        return self._train

    def validation_source(self) -> Source:
        """The same of the dev split."""
        return self._held

    def features(self, example: dict[str, Any]) -> Features:
        """Tokens padded to seq_len, weight 1 for the text and its end; of packed rows the segments too."""
        return row_features(example, self.seq_len, pad_id(self.tokenizer))

    def validation_metrics(self, loss_sum: float, weight_sum: float) -> dict[str, float]:
        """Mean loss of a text's tokens and its end token in nats, without label smoothing, and its perplexity."""
        loss = loss_sum / weight_sum
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}  # exp overflows a double at 709

    def prompts(self, sample: int | None = None) -> list[tuple[str, tuple[str, ...]]]:
        """(input, its references) of the decoded split, or of `sample` inputs, evenly spaced."""
        return [(row.context, row.references) for row in spaced(self._inputs, sample)]

    def places(self) -> list[str]:
        """File and row of each of `prompts`, for messages."""
        return [row.place for row in self._inputs]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The ids before a text: of the input, and the end token where the data set has one there."""
        return self._encoder.prompt(prompt)

    def fitted(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        """The prompts; `truncate` cuts each to `room` tokens: the input's beginning goes, BOS and virtual tokens stay.

        A line says how many are cut and names the first ones; it is noted for the record.

        Args:
          prompts: of `prompt_tokens`, one for each of `prompts`.
          room: most tokens of a prompt; where it has no room for any token of an input, nothing is cut.
        """
        long = [row for row, ids in enumerate(prompts) if len(ids) > room]
        if not long or not self.config.truncate or room <= self._framing.count + self.config.add_bos:
            return list(prompts)
        shown = "; ".join(self._inputs[row].place for row in long[:SHOWN]) + ("; ..." if len(long) > SHOWN else "")
        note = f"{self.config.task} {decoded_split(self.config)}: the beginnings of {len(long)} of {len(prompts)} "
        note += f"prompt(s) are cut, to {room} tokens, which leave room for the new ones: {shown}"
        if note not in self.notes:
            log.warning("%s", note)
            self._note(note)
        return [self._framing.last(ids, room, int(self.config.add_bos)) for ids in prompts]

    def score(self, predictions: Sequence[str], targets: Sequence[Any]) -> dict[str, float]:
        """The official metrics of all of `prompts`; see `nlg.scores`. What cannot be computed goes to `missing`."""
        check_score_input(predictions, targets)
        if len(predictions) != len(self._inputs):
            raise ValueError(f"{len(predictions)} predictions for {len(self._inputs)} inputs")
        found: Scored = score_by(self.config.task, predictions, self._inputs, SEEN[self.config.seen])
        self.missing = found.missing
        return found.values

    def _load(self, split: str) -> list[NlgRow]:
        rows, note = load_nlg(self.config.task, split, self.config.data_dir, self.config.allow_partial)
        if note and note not in self.notes:
            self.partial = True
            self._note(note)
        self.contents[split] = rows_digest(rows)
        return rows

    def _length(self, needed: int, positions: int | None) -> int:
        config, most = self.config, positions or max(needed, self.config.max_seq_len) + ROUNDED
        if config.seq_len > most and positions:
            raise UserError(f"task.seq_len is {config.seq_len} and the base has {most} positions; lower task.seq_len")
        found = config.seq_len or min(round_up(needed, ROUNDED), most)
        if config.seq_len or not config.packed:
            return found
        packed = min(round_up(packed_length(needed, self.total), ROUNDED), config.max_seq_len)
        return min(max(found, packed), most)

    def _examples(self, rows: list[NlgRow], made: list[Encoded], split: str) -> Source:
        size, lengths = self.seq_len, [len(one.tokens) for one in made]
        left_out = [index for index, one in enumerate(made) if not one.targets[:size].any()]
        if max(lengths) > size and not self.config.truncate:
            index = next(index for index, length in enumerate(lengths) if length > size)
            raise UserError(
                f"{rows[index].place}: has {lengths[index]} tokens, task.seq_len is {size}; set task.truncate=True, or "
                f"{self._longer(max(lengths))}"
            )
        if note := describe_cuts(
            f"{self.config.task} {split}", "task.seq_len", size, lengths, left_out, self._at(rows)
        ):
            log.warning("%s", note)
            self._note(note)
        kept = [(one.tokens[:size], one.targets[:size]) for one in made if one.targets[:size].any()]
        if not kept:
            remedy = self._longer(max(lengths))
            raise UserError(f"{rows[0].place}: no row of its file keeps a target within seq_len={size}; {remedy}")
        if self.config.packed:
            return PackedRows(kept, size)
        return [{"tokens": tokens, "targets": targets} for tokens, targets in kept]

    def _at(self, rows: list[NlgRow]) -> Any:
        return lambda index: rows[index].place

    def _note(self, note: str) -> None:
        self.notes += (note,)


def decoded_split(config: NlgConfig) -> str:
    """The split that is decoded and scored."""
    return config.decoded or NLG[config.task].decoded


def inputs_of(config: NlgConfig, rows: Sequence[NlgRow]) -> list[NlgRow]:
    """The inputs of the decoded split as the official scripts score them: equal ones merged, references capped."""
    spec, rows = NLG[config.task], list(rows)
    rows = merged(rows) if spec.merged else rows
    return spaced(capped(rows, spec.most) if spec.most else rows, config.max_prompts)
