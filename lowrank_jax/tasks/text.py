"""A user's JSON lines: packed text for next-token pretraining, or one row an example, scored by held-out loss."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.jsonl import JsonLines
from lowrank_jax.data.packing import PackedWindows, encode_array, join_documents, mark, token_dtype
from lowrank_jax.tasks.base import Features, check_config, make_features, pad_id

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
      truncate: where a row is longer than seq_len, True cuts its end off, False refuses it at the start.
      add_bos, add_eos: marks around each text, or around prompt + completion.
    """

    path: Paths = ""
    seq_len: int = 512
    validation_path: Paths | None = None
    packed: bool = True
    truncate: bool = False
    add_bos: bool = False
    add_eos: bool = True

    def __post_init__(self):
        check_config(self, {"seq_len": self.seq_len})
        for name in ("path", "validation_path"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):  # a list as a ConfigDict or JSON gives it; "" stands for no file
                object.__setattr__(self, name, tuple(file for file in value if file) or None)
        if not self.path:
            raise UserError("task.path is empty; give a .jsonl, .jsonl.gz or .jsonl.xz file, or several")


class TextTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    Loss is on all tokens of a text, and on the completion (and EOS) alone of a prompt with its completion. Prompt and
    completion are encoded apart and joined, so that decoding can start from exactly what training saw.
    """

    name = "text"

    def __init__(self, config: TextConfig, tokenizer: Any):
        self.config, self.tokenizer = config, tokenizer
        self.seq_len = config.seq_len
        self._bos = [mark(tokenizer, "bos")] if config.add_bos else []
        self._eos = [mark(tokenizer, "eos")] if config.add_eos else []
        self._train, _ = self._load(config.path)
        self._validation, self._validation_bytes = None, 0
        if config.validation_path:
            self._validation, self._validation_bytes = self._load(config.validation_path)

    def train_source(self) -> Sequence[dict[str, Any]]:
        """Windows {"tokens"}, or rows {"tokens", "start"} whose targets begin at token `start`."""
        return self._train

    def validation_source(self) -> Sequence[dict[str, Any]] | None:
        """The same of the held-out files, or None."""
        return self._validation

    def features(self, example: dict[str, Any]) -> Features:
        """Tokens padded to seq_len; weight 1 from `start` on (0 for windows and texts)."""
        tokens = example["tokens"]
        weights = np.ones(len(tokens), np.float32)
        weights[: example.get("start", 0)] = 0
        return make_features(tokens, weights, self.seq_len, pad_id(self.tokenizer), truncate=self.config.truncate)

    def validation_metrics(self, loss_sum: float, weight_sum: float) -> dict[str, float]:
        """Mean loss per token in nats, its perplexity, and the loss per byte of the scored UTF-8 text.

        EOS is a target but no byte: its cost is spread over the bytes.
        """
        per_token, per_byte = loss_sum / weight_sum, loss_sum / self._validation_bytes
        return {
            "loss": per_token,
            "perplexity": math.exp(min(per_token, 700.0)),  # exp overflows a double at 709
            "loss_per_byte": per_byte,
            "bits_per_byte": per_byte / math.log(2),
        }

    def _load(self, path: Paths) -> tuple[Sequence[dict[str, Any]], int]:
        """(examples, bytes of text that are scored)."""
        rows = JsonLines(path)
        if not self.config.packed:
            return self._examples(rows)
        if rows.kind != "text":
            raise UserError(f'{rows.paths[0]}: packed=True takes "text" rows; set packed=False for prompts')
        marks = {"add_bos": self.config.add_bos, "add_eos": self.config.add_eos}
        tokens = join_documents((row["text"] for row in rows), self.tokenizer, **marks)
        scored = sum(len(row["text"].encode()) for row in rows)
        if not self.config.add_bos:
            scored -= self._bytes(tokens[:1])  # the first token of all has nothing before it
        return PackedWindows(tokens, self.seq_len), scored

    def _examples(self, rows: JsonLines) -> tuple[Sequence[dict[str, Any]], int]:
        examples, scored, dropped = [], 0, 0
        dtype = token_dtype(self.tokenizer.vocab_size)
        for index in range(len(rows)):
            row = rows[index]
            prompt = [*self._bos, *(self.tokenizer.encode(row["prompt"]) if rows.kind == "completion" else [])]
            target = encode_array(row["completion" if rows.kind == "completion" else "text"], self.tokenizer, dtype)
            tokens = np.concatenate([np.array(prompt, dtype), target, np.array(self._eos, dtype)])
            if len(tokens) > self.seq_len and not self.config.truncate:
                raise UserError(
                    f"{rows.place(index)}: has {len(tokens)} tokens, seq_len is {self.seq_len}; "
                    "raise seq_len or set truncate=True"
                )
            first = max(len(prompt), 1)  # the first target; position 0 has nothing before it
            if first >= min(len(tokens), self.seq_len):  # cut off whole, or a single token
                dropped += 1
                continue
            end = min(len(prompt) + len(target), self.seq_len)
            scored += self._bytes(tokens[first:end])
            examples.append({"tokens": tokens[: self.seq_len], "start": len(prompt)})
        if not examples:
            raise UserError(f"{rows.paths[0]}: no row keeps a target within seq_len={self.seq_len}; raise seq_len")
        if dropped:
            log.warning("%s: %d of %d rows keep no target within seq_len: left out", rows.paths[0], dropped, len(rows))
        return examples, scored

    def _bytes(self, tokens: np.ndarray) -> int:
        return len(self.tokenizer.decode(tokens.tolist()).encode())
