"""Encodes a user's rows as tokens and targets; targets are texts, completions, or the assistant's turns."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import encode_array, mark, token_dtype
from lowrank_jax.data.row_kinds import CHAT, COMPLETION, Row
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.text.chat import encode_turns, end_ids, find_template
from lowrank_jax.text.joining import encode_with_cuts, puts_space_before


class Encoded(NamedTuple):
    """One example.

    Attributes:
      tokens: [n] with BOS, EOS and virtual tokens.
      targets: bool [n]; never the first token, which has nothing before it.
      end: how many tokens there are up to the end of its text: without the EOS after a text or a completion.
      row: number of the row that it is made of.
    """

    tokens: np.ndarray
    targets: np.ndarray
    end: int
    row: int


class Placed(Protocol):
    """Rows of one kind that know where they are, as `data.rows.Rows` does."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...

    def place(self, index: int, /) -> str:
        """Where row `index` is, for messages."""
        ...


class RowEncoder:
    """Encodes rows of one kind.

    Prompt and completion are encoded separately and joined: decoding can start from exactly the ids of training. Where
    the tokenizer would put a space between them (sentencepiece), they are encoded together, and the ids are cut where
    the prompt ends; see `joining.encode_with_cuts`.

    Args:
      tokenizer: of the base.
      kind: of the rows.
      chat_template: name of a template for conversations; "" takes the tokenizer's own.
      add_bos, add_eos: marks around each text, or around prompt + completion. In conversations the template writes
        them; BOS is added where it writes none, EOS after a last turn that it does not end.
      framing: the virtual tokens of a prefix method.

    Attributes:
      template: of conversations; None for other kinds.

    Raises:
      UserError: the tokenizer lacks a mark, or has no template for conversations; infix tokens without a prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        kind: str,
        chat_template: str = "",
        add_bos: bool = False,
        add_eos: bool = True,
        framing: Framing = PLAIN,
    ):
        if kind != COMPLETION:
            framing.check_prompts("conversations, with a prompt before each answer" if kind == CHAT else "texts")
        self.tokenizer, self.kind = tokenizer, kind
        self._bos = [mark(tokenizer, "bos")] if add_bos else []
        self._eos = [mark(tokenizer, "eos")] if add_eos else []
        self._dtype = token_dtype(max(tokenizer.vocab_size, framing.most + 1))
        self._prefix, self._infix = (np.array(ids, self._dtype) for ids in (framing.prefix_ids, framing.infix_ids))
        self._together = kind == COMPLETION and puts_space_before(tokenizer.encode, tokenizer.decode)
        self.template = find_template(tokenizer, chat_template) if kind == CHAT else None
        self._ends = set() if self.template is None else set(end_ids(tokenizer, self.template))
        self._silent = set() if self.template is None else set(tokenizer.special_tokens.values())

    def encode(self, rows: Placed) -> list[Encoded]:
        """The examples of all rows, in order: one a row, or one a turn where a template rewrites earlier turns.

        Raises:
          UserError: the template refuses a conversation; the message names file and line.
        """
        found = []
        for index in range(len(rows)):
            try:
                found += [Encoded(*one, index) for one in self._examples(rows[index])]
            except UserError as error:
                raise UserError(f"{rows.place(index)}: {error}") from None
        return found

    def said(self, example: Encoded, limit: int) -> int:
        """UTF-8 bytes of the scored text among the first `limit` tokens; EOS and the marks of turns do not count."""
        end = min(example.end, limit)
        ids = example.tokens[:end][example.targets[:end]].tolist()
        return len(self.tokenizer.decode([i for i in ids if i not in self._silent]).encode())

    def _examples(self, row: Row) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        if self.template is not None:
            yield from map(self._conversation, encode_turns(self.tokenizer, self.template, **row, ends=self._ends))
        else:
            yield self._text(row)

    def _text(self, row: Row) -> tuple[np.ndarray, np.ndarray, int]:
        if self._together:
            text = row["prompt"] + row["completion"]
            ids, (length,), _ = encode_with_cuts(self.tokenizer.encode, text, [len(row["prompt"])])
            body = np.array(ids, self._dtype)
        else:
            prompt = self.tokenizer.encode(row["prompt"]) if self.kind == COMPLETION else []
            answer = encode_array(row["completion" if self.kind == COMPLETION else "text"], self.tokenizer, self._dtype)
            body, length = np.concatenate([np.array(prompt, self._dtype), answer]), len(prompt)
        bos, eos = (np.array(each, self._dtype) for each in (self._bos, self._eos))
        tokens = np.concatenate([self._prefix, bos, body[:length], self._infix, body[length:], eos])
        targets, virtual = np.ones(len(tokens), bool), len(self._prefix) + len(self._infix)
        targets[: virtual + max(len(bos) + length, 1)] = False
        return tokens, targets, virtual + len(bos) + len(body)

    def _conversation(self, encoded: tuple[list[int], list[bool]]) -> tuple[np.ndarray, np.ndarray, int]:
        ids, targets = encoded
        if self._bos and ids[:1] != self._bos:
            ids, targets = [*self._bos, *ids], [False, *targets]
        last = len(ids) - targets[::-1].index(True)  # there is a turn to learn
        if self._eos and ids[last - 1] not in self._ends:
            ids, targets = [*ids[:last], *self._eos], [*targets[:last], True]
        flags = np.array(targets, bool)
        flags[0] = False
        tokens = np.concatenate([self._prefix, np.array(ids, self._dtype)])
        return tokens, np.concatenate([np.zeros(len(self._prefix), bool), flags]), len(tokens)
