"""A user's JSON lines: packed text for next-token pretraining, or one example a row; scored by held-out loss."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.cuts import describe_cuts
from lowrank_jax.data.jsonl import JsonLines
from lowrank_jax.data.packing import PackedWindows, encode_array, join_documents, mark, token_dtype
from lowrank_jax.data.pipeline import Source
from lowrank_jax.tasks.base import Features, make_features, pad_id, round_up
from lowrank_jax.tasks.framing import Content, frame

log = logging.getLogger(__name__)
Paths = str | tuple[str, ...]
ROUNDED = 8  # a row's tokens are rounded up to a multiple: few lengths to compile, and even ones for cuDNN's attention
LONGEST = 256  # most tokens of a row whose length is chosen from the data


@dataclass(frozen=True)
class TextConfig:
    """Which files, and how their rows become examples.

    Attributes:
      path: one file or several (.jsonl, .jsonl.gz, .jsonl.xz) of {"text"} or of {"prompt", "completion"} rows.
      seq_len: tokens per example. 0 chooses it from the data: the tokens of the longest row (of all text, if packed),
        rounded up to a multiple of ROUNDED, and at most LONGEST and the model's positions.
      validation_path: held-out files of the same kind; None: no evaluation.
      packed: True joins all texts and cuts windows, without padding (text rows only); False makes each row an example.
      truncate: where a row is longer than seq_len, True cuts its end off and notes what is lost, False refuses it at
        the start. Packed text loses nothing: a document continues in the next window.
      add_bos, add_eos: marks around each text, or around prompt + completion.
    """

    form: ClassVar[str] = "next_token"
    path: Paths = ""
    seq_len: Annotated[int, Range(least=2, also=(0,))] = 512  # one token to read, one to predict
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


class _Encoded(NamedTuple):
    """Rows as tokens with BOS and EOS, where each one's targets start and its text ends; packed text is one row."""

    rows: JsonLines
    tokens: list[np.ndarray]
    starts: list[int]
    ends: list[int]


class TextTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    The loss is over all tokens of a text, or over the completion (and EOS) of a prompt with its completion. Prompt and
    completion are encoded separately and joined: decoding can start from exactly the ids of training.

    Args:
      config: which files, and how their rows become examples.
      tokenizer: of the base.
      positions: the most tokens of a row that the base can read; None for no such limit.

    Attributes:
      seq_len: tokens per example, from the config or the data.
      longest: tokens of the longest row (of all text, if packed), which may be more.
      notes: a line for each of path and validation_path that loses tokens to seq_len; a run's record keeps them.
    """

    name, evaluation = "text", "likelihood"

    def __init__(self, config: TextConfig, tokenizer: Any, positions: int | None = None):
        self.config, self.tokenizer = config, tokenizer
        self._bos = [mark(tokenizer, "bos")] if config.add_bos else []
        self._eos = [mark(tokenizer, "eos")] if config.add_eos else []
        self.notes: tuple[str, ...] = ()
        fields = [field for field in ("path", "validation_path") if getattr(config, field)]
        read = {field: self._read(field) for field in fields}
        self.longest = max(len(tokens) for one in read.values() for tokens in one.tokens)
        self.seq_len = config.seq_len or min(round_up(self.longest, ROUNDED), LONGEST, positions or LONGEST)
        cut = {
            field: self._packed(one) if config.packed else self._examples(one, f"task.{field}")
            for field, one in read.items()
        }
        self._train, _ = cut["path"]
        self._validation, self._validation_bytes = cut.get("validation_path", (None, 0))

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

    def prompt_tokens(self, prompt: Content) -> list[int]:
        """The ids that decoding starts from: exactly those before the completion in training."""
        return frame(self.tokenizer, prompt, self.config.add_bos)

    def _read(self, field: str) -> "_Encoded":
        """The rows of the files named by a field of the config, encoded whole."""
        rows, marks = JsonLines(getattr(self.config, field)), (self.config.add_bos, self.config.add_eos)
        if self.config.packed:
            if rows.kind != "text":
                raise UserError(f'{rows.paths[0]}: packed=True takes "text" rows; set packed=False for prompts')
            texts = (row["text"] for row in rows)
            joined = join_documents(texts, self.tokenizer, add_bos=marks[0], add_eos=marks[1])
            return _Encoded(rows, [joined], [0], [len(joined)])
        found, dtype = _Encoded(rows, [], [], []), token_dtype(self.tokenizer.vocab_size)
        for index in range(len(rows)):
            row = rows[index]
            prompt = [*self._bos, *(self.tokenizer.encode(row["prompt"]) if rows.kind == "completion" else [])]
            target = encode_array(row["completion" if rows.kind == "completion" else "text"], self.tokenizer, dtype)
            found.tokens.append(np.concatenate([np.array(prompt, dtype), target, np.array(self._eos, dtype)]))
            found.starts.append(len(prompt))
            found.ends.append(len(prompt) + len(target))
        return found

    def _packed(self, read: "_Encoded") -> tuple[PackedWindows, int]:
        """(windows, scored bytes of text)."""
        (tokens,), scored = read.tokens, sum(len(row["text"].encode()) for row in read.rows)
        if not self.config.add_bos:
            scored -= self._bytes(tokens[:1])  # the first token of all has nothing before it
        return PackedWindows(tokens, self.seq_len), scored

    def _examples(self, read: "_Encoded", name: str) -> tuple[Sequence[dict[str, Any]], int]:
        """(examples, scored bytes of text), each row cut to seq_len."""
        examples, scored, left_out = [], 0, []
        rows, lengths = read.rows, [len(tokens) for tokens in read.tokens]
        for index, (tokens, start, end) in enumerate(zip(read.tokens, read.starts, read.ends, strict=True)):
            first = max(start, 1)  # the first target; position 0 has nothing before it
            if first >= min(len(tokens), self.seq_len):  # nothing is left, or a single token
                left_out.append(index)
                continue
            scored += self._bytes(tokens[first : min(end, self.seq_len)])
            examples.append({"tokens": tokens[: self.seq_len], "start": start})
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
