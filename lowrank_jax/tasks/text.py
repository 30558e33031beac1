"""A user's JSON lines: packed text for next-token pretraining, or one example a row; scored by held-out loss."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.cuts import describe_cuts
from lowrank_jax.data.jsonl import JsonLines
from lowrank_jax.data.packing import PackedWindows, encode_array, join_documents, mark, token_dtype
from lowrank_jax.data.pipeline import Source
from lowrank_jax.tasks.base import Features, make_features, pad_id

log = logging.getLogger(__name__)
Paths = str | tuple[str, ...]


@dataclass(frozen=True)
class TextConfig:
    """Which files, and how their rows become examples.

    Attributes:
      path: one file or several (.jsonl, .jsonl.gz, .jsonl.xz) of {"text"} or of {"prompt", "completion"} rows.
      seq_len: tokens per example.
      validation_path: held-out files of the same kind; None: no evaluation.
      packed: True joins all texts and cuts windows, without padding (text rows only); False makes each row an example.
      truncate: where a row is longer than seq_len, True cuts its end off and notes what is lost, False refuses it at
        the start. Packed text loses nothing: a document continues in the next window.
      add_bos, add_eos: marks around each text, or around prompt + completion.
    """

    form: ClassVar[str] = "next_token"
    path: Paths = ""
    seq_len: Annotated[int, Range(least=2)] = 512  # one token to read, one to predict
    validation_path: Paths | None = None
    packed: bool = True
    truncate: bool = False
    add_bos: bool = False
    add_eos: bool = True

    def __post_init__(self):
        check_ranges(self, "task")
        for name in ("path", "validation_path"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):  # a list where it comes from a ConfigDict or JSON; "" is no file
                object.__setattr__(self, name, tuple(file for file in value if file) or None)
        if not self.path:
            raise UserError("task.path is empty; give a .jsonl, .jsonl.gz or .jsonl.xz file, or several")


class TextTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    The loss is over all tokens of a text, or over the completion (and EOS) of a prompt with its completion. Prompt and
    completion are encoded separately and joined: decoding can start from exactly the ids of training.

    Attributes:
      notes: a line for each of path and validation_path that loses tokens to seq_len; a run's record keeps them.
    """

    name, evaluation = "text", "likelihood"

    def __init__(self, config: TextConfig, tokenizer: Any):
        self.config, self.tokenizer = config, tokenizer
        self.seq_len = config.seq_len
        self._bos = [mark(tokenizer, "bos")] if config.add_bos else []
        self._eos = [mark(tokenizer, "eos")] if config.add_eos else []
        self.notes: tuple[str, ...] = ()
        self._train, _ = self._load("path")
        self._validation, self._validation_bytes = None, 0
        if config.validation_path:
            self._validation, self._validation_bytes = self._load("validation_path")

    def train_source(self) -> Source:
        """Windows {"tokens"}, or rows {"tokens", "start"} whose targets begin at token `start`."""
        return self._train

    def validation_source(self) -> Source | None:
        """The same for the held-out files, or None."""
        return self._validation

    def features(self, example: dict[str, Any]) -> Features:
        """Tokens padded to seq_len; weight 1 from `start` on (0 for windows and texts)."""
        tokens = example["tokens"]
        weights = np.ones(len(tokens), np.float32)
        weights[: example.get("start", 0)] = 0
        return make_features(tokens, weights, self.seq_len, pad_id(self.tokenizer))

    def validation_metrics(self, loss_sum: float, weight_sum: float) -> dict[str, float]:
        """Mean loss per token in nats, its perplexity, and the loss per byte of the scored UTF-8 text.

        EOS is a target but not a byte: its loss is spread over the bytes.
        """
        per_token, per_byte = loss_sum / weight_sum, loss_sum / self._validation_bytes
        return {
            "loss": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),  # exp overflows a double at 709
            "loss_per_byte": per_byte,
            "bits_per_byte": per_byte / math.log(2),
        }

    def _load(self, field: str) -> tuple[Source, int]:
        """(examples, scored bytes of text) of the files named by a field of the config."""
        rows = JsonLines(getattr(self.config, field))
        if not self.config.packed:
            return self._examples(rows, f"task.{field}")
        if rows.kind != "text":
            raise UserError(f'{rows.paths[0]}: packed=True takes "text" rows; set packed=False for prompts')
        marks = {"add_bos": self.config.add_bos, "add_eos": self.config.add_eos}
        tokens = join_documents((row["text"] for row in rows), self.tokenizer, **marks)
        scored = sum(len(row["text"].encode()) for row in rows)
        if not self.config.add_bos:
            scored -= self._bytes(tokens[:1])  # the first token of all has nothing before it
        return PackedWindows(tokens, self.seq_len), scored

    def _examples(self, rows: JsonLines, name: str) -> tuple[Sequence[dict[str, Any]], int]:
        examples, scored, lengths, left_out = [], 0, [], []
        dtype = token_dtype(self.tokenizer.vocab_size)
        for index in range(len(rows)):
            row = rows[index]
            prompt = [*self._bos, *(self.tokenizer.encode(row["prompt"]) if rows.kind == "completion" else [])]
            target = encode_array(row["completion" if rows.kind == "completion" else "text"], self.tokenizer, dtype)
            tokens = np.concatenate([np.array(prompt, dtype), target, np.array(self._eos, dtype)])
            lengths.append(len(tokens))
            first = max(len(prompt), 1)  # the first target; position 0 has nothing before it
            if first >= min(len(tokens), self.seq_len):  # nothing is left, or a single token
                left_out.append(index)
                continue
            end = min(len(prompt) + len(target), self.seq_len)
            scored += self._bytes(tokens[first:end])
            examples.append({"tokens": tokens[: self.seq_len], "start": len(prompt)})
        if max(lengths) > self.seq_len and not self.config.truncate:
            long = [index for index, length in enumerate(lengths) if length > self.seq_len]
            raise UserError(
                f"{rows.place(long[0])}: has {lengths[long[0]]} tokens, seq_len is {self.seq_len}; "
                "raise seq_len or set truncate=True "
                f"({len(long)} of {len(rows)} rows are longer, seq_len={max(lengths)} keeps all)"
            )
        if not examples:
            remedy = f"raise seq_len: {max(lengths)} keeps all" if max(lengths) > self.seq_len else "give longer rows"
            raise UserError(f"{rows.paths[0]}: no row keeps a target within seq_len={self.seq_len}; {remedy}")
        if note := describe_cuts(name, "task.seq_len", self.seq_len, lengths, left_out, rows.place):
            log.warning("%s", note)
            self.notes += (note,)
        return examples, scored

    def _bytes(self, tokens: np.ndarray) -> int:
        return len(self.tokenizer.decode(tokens.tolist()).encode())
