"""The task of a user's own rows: texts, prompts with completions, or conversations; scored by the held-out loss."""

import functools
import logging
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.cuts import describe_cuts
from lowrank_jax.data.lazy import LazyTexts
from lowrank_jax.data.packing import PackedRows, PackedWindows, join_documents, mark
from lowrank_jax.data.pipeline import Source
from lowrank_jax.data.row_kinds import COMPLETION, TEXT
from lowrank_jax.data.rows import Rows
from lowrank_jax.tasks.base import Features, packed_length, pad_id, round_up, row_features
from lowrank_jax.tasks.framing import PLAIN, Content, Framing, frame
from lowrank_jax.tasks.text_rows import Encoded, RowEncoder
from lowrank_jax.text.chat import end_ids

log = logging.getLogger(__name__)
Paths = str | tuple[str, ...]
ROUNDED = 8  # a row's tokens are rounded up to a multiple: few lengths to compile, and even ones for cuDNN's attention
LONGEST = 256  # most tokens of a row whose length is chosen from the data, unless task.max_seq_len says otherwise
JOINED, SEPARATE = "joined", "separate"


@dataclass(frozen=True)
class TextConfig:
    """Which files, and how their rows become examples.

    Attributes:
      path: one source or several: .jsonl, .json (.gz, .xz) or .parquet files, folders of them, hub:owner/name:split or
        tfds:name:split. Rows are of {"text"}, of {"prompt", "completion"}, or conversations; see `data.row_kinds`.
      seq_len: tokens per example. 0 chooses it from the data: the tokens of the longest row (of joined text, all of it;
        of rows that are packed separately, what makes FEWEST examples of them, if that is more), rounded up to a
        multiple of ROUNDED, and at most max_seq_len and the model's positions.
      validation_path: held-out sources of the same kind; None: no evaluation.
      packed: True puts several rows into an example, as `documents` says; False makes each row an example.
      truncate: where a row is longer than seq_len, True cuts its end off and notes what is lost, False refuses it at
        the start. Packed text loses nothing: a document continues in the next window.
      add_bos, add_eos: marks around each text, or around prompt + completion; of conversations see `RowEncoder`.
      chat_template: how conversations are written: a name of `text.chat_formats`; "" is the tokenizer's own template.
      documents: when packed, "joined" joins all texts and cuts windows, without padding (text rows only); "separate"
        puts whole rows of any kind into one example, each read as if it stood alone: no attention from one to another,
        and positions that begin again. A text that is longer than seq_len is split.
      max_seq_len: the largest length that is chosen from the data.
      lazy: texts of one hub: or tfds: data set, which need not fit in memory: read and encoded when a batch asks for
        them, and cut to seq_len without a note; `validation_path` is read as ever. Needs packed=False, truncate=True.
      also_prompts: whether rows of {"prompt", "completion"} are trained on as they are where a chat_template is set;
        otherwise they are refused, as the template is not for them. For recipes that set one for conversations.
      ordered: whether training reads the rows in their files' order in each epoch, for recipes that say so; otherwise
        the seed shuffles them.
    """

    form: ClassVar[str] = "next_token"
    path: Paths = ""
    seq_len: Annotated[int, Range(least=2, also=(0,))] = 512  # one token to read, one to predict
    validation_path: Paths | None = None
    packed: bool = True
    truncate: bool = False
    add_bos: bool = False
    add_eos: bool = True
    chat_template: str = ""
    documents: str = JOINED
    max_seq_len: Annotated[int, Range(least=2)] = LONGEST
    lazy: bool = False
    ordered: bool = False
    also_prompts: bool = False

    def __post_init__(self):
        check_ranges(self, "task")
        self._check_lazy()
        for name in ("path", "validation_path"):
            value = getattr(self, name)
            if isinstance(value, list | tuple):  # a list where it comes from a ConfigDict or JSON; "" is no file
                object.__setattr__(self, name, tuple(file for file in value if file) or None)
        if not self.path:
            raise UserError("task.path is empty; give a .jsonl, .json or .parquet file, a folder, or several")
        if self.documents not in (JOINED, SEPARATE):
            raise unknown_name("task.documents", self.documents, (JOINED, SEPARATE))
        if self.documents == SEPARATE and not self.packed:
            raise UserError("task.documents=separate says how rows are packed; set task.packed=True, or leave it out")

    def _check_lazy(self) -> None:
        """Refuses what needs all rows to be known."""
        if self.lazy and (self.packed or not self.truncate or not self.seq_len or not isinstance(self.path, str)):
            raise UserError(
                "task.lazy reads single texts of one data set when they are needed; set task.packed=False, "
                "task.truncate=True, a task.seq_len, and one task.path"
            )

    @property
    def segmented(self) -> bool:
        """Whether an example has several rows that do not see each other."""
        return self.packed and self.documents == SEPARATE


class _Read(NamedTuple):
    """Rows and their examples; joined text is one example."""

    rows: Rows
    examples: list[Encoded]
    encoder: RowEncoder | None = None


class TextTask:
    """The task over one tokenizer; reads, checks and encodes every row at the start.

    The loss is over all tokens of a text, over the completion (and EOS) of a prompt with its completion, or over what
    the assistant says in a conversation.

    Args:
      config: which files, and how their rows become examples.
      tokenizer: of the base.
      positions: the most tokens of a row that the base can read; None for no such limit.
      framing: the virtual tokens of a prefix method. They count among a row's tokens.

    Attributes:
      seq_len: tokens per example, from the config or the data.
      longest: tokens of the longest row (of all joined text), which may be more.
      total: tokens of all training rows.
      notes: a line for each of path and validation_path that loses tokens to seq_len; a run's record keeps them.
      of_texts: whether rows are texts, of which no part is a prompt.
      ordered: as in the config.
      template, end_ids: the chat template of conversations, and the tokens that end its answers; None and () for
        other rows.
      contents: "path.NAME" or "validation_path.NAME" -> digest of the rows of a named data set.
    """

    name, evaluation = "text", "likelihood"

    def __init__(self, config: TextConfig, tokenizer: Any, positions: int | None = None, framing: Framing = PLAIN):
        self.config, self.tokenizer, self.framing, self.ordered = config, tokenizer, framing, config.ordered
        self.notes: tuple[str, ...] = ()
        self.contents: dict[str, str] = {}
        unread = ("path",) if config.lazy else ()
        fields = [name for name in ("path", "validation_path") if getattr(config, name) and name not in unread]
        read = {field: self._read(field) for field in fields}
        if len({one.rows.kind for one in read.values()}) > 1:
            kinds = ", ".join(f"task.{field} of kind {one.rows.kind!r}" for field, one in read.items())
            raise UserError(f"training and held-out rows are of different kinds: {kinds}; give both of one kind")
        self._longer = functools.partial(framing.longer, positions=positions)
        if positions and config.seq_len > positions:
            raise UserError(
                f"task.seq_len is {config.seq_len} and the base has {positions} positions; lower task.seq_len"
            )
        kinds = [one.rows.kind for one in read.values()]
        encoder, self.of_texts = next(iter(read.values())).encoder if read else None, set(kinds) <= {TEXT}
        self.template = None if encoder is None else encoder.template
        self.end_ids = end_ids(tokenizer, self.template) if self.template else ()
        # Joined text has no prefix yet: each window that is cut from it gets one.
        self.longest = max(
            (
                max(len(one.tokens) for one in each.examples) + (0 if each.encoder else framing.count)
                for each in read.values()
            ),
            default=config.seq_len,
        )
        self.total = sum(len(one.tokens) for one in read["path"].examples) if "path" in read else 0
        wanted = packed_length(self.longest, self.total) if config.segmented else self.longest
        most = min(config.max_seq_len, positions or config.max_seq_len)
        self.seq_len = config.seq_len or min(round_up(wanted, ROUNDED), most)
        if framing.count and self.seq_len < framing.count + 2:  # one token to read, one to predict
            raise UserError(
                f"{framing.count} virtual tokens leave too little of a row of {self.seq_len}; lower "
                "adapter.prefix.tokens or infix, or raise task.seq_len or task.max_seq_len"
            )
        cut = {
            field: self._rows(each, f"task.{field}") if each.encoder else self._windows(each)
            for field, each in read.items()
        }
        self._train: Source = self._lazily() if config.lazy else cut["path"][0]
        self._validation, self._validation_bytes = cut.get("validation_path", (None, 0))

    def train_source(self) -> Source:
        """Windows {"tokens"}, rows {"tokens", "targets"}, or packed rows {"tokens", "targets", "segments"}."""
        return self._train

    def validation_source(self) -> Source | None:
        """The same for the held-out files, or None."""
        return self._validation

    def features(self, example: dict[str, Any]) -> Features:
        """Tokens padded to seq_len; weight 1 for targets (all tokens of windows); of packed rows the segments too."""
        if "targets" not in example:  # a window, whose first token is only context
            before = np.array(self.framing.prefix_ids, np.int32)
            tokens = np.concatenate([before, example["tokens"]])
            example = {"tokens": tokens, "targets": np.arange(len(tokens)) > len(before)}
        return row_features(example, self.seq_len, pad_id(self.tokenizer))

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
        """The ids that decoding starts from: exactly those before the answer in training."""
        return frame(self.tokenizer, prompt, self.config.add_bos, self.template, self.framing)

    def _lazily(self) -> LazyTexts:
        """The training rows of `config.lazy`."""
        config = self.config
        self.framing.check_prompts("texts")
        before, after = (
            [mark(self.tokenizer, name)] if wanted else []
            for name, wanted in (("bos", config.add_bos), ("eos", config.add_eos))
        )
        rows = LazyTexts(str(config.path), self.tokenizer, self.seq_len, (before, after))
        self.contents[f"path.{config.path}"] = rows.digest
        return rows

    def _read(self, field: str) -> _Read:
        """The rows of the sources in a field of the config, encoded and not yet cut."""
        rows, marks = Rows(getattr(self.config, field)), (self.config.add_bos, self.config.add_eos)
        self.contents |= {f"{field}.{name}": digest for name, digest in rows.contents.items()}
        unread = rows.kind == TEXT or (rows.kind == COMPLETION and not self.config.also_prompts)
        if self.config.chat_template and unread:
            raise UserError(
                f"task.chat_template={self.config.chat_template} is for conversations, the rows of {rows.paths[0]} are "
                f"of kind {rows.kind!r}; add --config.task.chat_template= to train on them as they are"
            )
        if self.config.packed and not self.config.segmented:
            if rows.kind != TEXT:
                raise UserError(
                    f'{rows.paths[0]}: task.packed=True takes "text" rows; add --config.task.packed=false for prompts '
                    "and conversations, or --config.task.documents=separate to pack them as well"
                )
            texts = (row["text"] for row in rows)
            self.framing.check_prompts("texts")
            joined = join_documents(texts, self.tokenizer, add_bos=marks[0], add_eos=marks[1])
            return _Read(rows, [Encoded(joined, np.ones(0, bool), len(joined), 0)])
        encoder = RowEncoder(self.tokenizer, rows.kind, self.config.chat_template, *marks, self.framing)
        return _Read(rows, encoder.encode(rows), encoder)

    def _windows(self, read: _Read) -> tuple[PackedWindows, int]:
        """(windows of joined text, scored bytes of text)."""
        tokens, scored = read.examples[0].tokens, sum(len(row["text"].encode()) for row in read.rows)
        if not self.config.add_bos:
            # the first token of all has nothing before it
            scored -= len(self.tokenizer.decode(tokens[:1].tolist()).encode())
        return PackedWindows(tokens, self.seq_len - self.framing.count), scored

    def _rows(self, read: _Read, name: str) -> tuple[Source, int]:
        """(rows that are each cut to seq_len, or bins of them; bytes of text that are scored)."""
        kept, scored, left_out, rows, size = [], 0, [], read.rows, self.seq_len
        assert read.encoder is not None  # joined text has none
        divided, prefix = self.config.segmented and rows.kind == TEXT, len(self.framing.prefix_ids)
        lengths = [min(len(one.tokens), size) if divided else len(one.tokens) for one in read.examples]
        for index, one in enumerate(read.examples):
            limit = len(one.tokens) if divided else size
            if not one.targets[:limit].any():  # nothing is left, or a single token
                left_out.append(index)
                continue
            scored += read.encoder.said(one, limit)
            kept += _divided(one, size, prefix) if divided else [(one.tokens[:size], one.targets[:size])]

        def place(index: int) -> str:
            return rows.place(read.examples[index].row)

        if max(lengths) > size and not self.config.truncate:
            long = [index for index, length in enumerate(lengths) if length > size]
            raise UserError(
                f"{place(long[0])}: has {lengths[long[0]]} tokens, seq_len is {size}; "
                f"set truncate=True ({len(long)} of {len(lengths)} rows are longer), or {self._longer(max(lengths))}"
            )
        if not kept:
            remedy = self._longer(max(lengths)) if max(lengths) > size else "give longer rows"
            raise UserError(f"{rows.paths[0]}: no row keeps a target within seq_len={size}; {remedy}")
        if note := describe_cuts(name, "task.seq_len", size, lengths, left_out, place):
            log.warning("%s", note)
            self.notes += (note,)
        if self.config.segmented:
            return PackedRows(kept, size), scored
        return [{"tokens": tokens, "targets": targets} for tokens, targets in kept], scored


def _divided(one: Encoded, size: int, prefix: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits a text into parts of `size` tokens; neighbours share one token, and each token is a target once.

    Args:
      prefix: virtual tokens that the text begins with, and then each part.
    """
    before, tokens, flags = one.tokens[:prefix], one.tokens[prefix:], one.targets[prefix:]
    parts, room = [], size - prefix
    for start in range(0, max(len(tokens) - 1, 1), room - 1):
        targets = flags[start : start + room].copy()
        targets[0] = False
        part = np.concatenate([before, tokens[start : start + room]])
        parts.append((part, np.concatenate([np.zeros(prefix, bool), targets])))
    return parts
