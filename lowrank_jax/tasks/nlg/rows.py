"""Encodes inputs and their texts as LoRA's GPT-2 scripts do: input, end token, " " + text, end token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.data.builders.nlg.specs import NlgSpec
from lowrank_jax.data.packing import mark, token_dtype
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.text.joining import encode_continuation, puts_space_before

NEWLINES = ("\n\n", "\n")


class Encoded(NamedTuple):
    """One example: tokens [n], and bool [n], True at the text and its end token."""

    tokens: np.ndarray
    targets: np.ndarray


class NlgEncoder:
    """Encodes the rows of one data set.

    Input and text are encoded one by one: decoding starts from exactly the ids of training.

    Args:
      spec: of the data set.
      tokenizer: of the base.
      separator: name of the special token that ends a text, and that stands after the input where `spec.separated`; ""
        is the tokenizer's EOS (50256 of GPT-2; of other bases their own).
      framing: the virtual tokens of a prefix method: before the input, and right before the text.
      add_bos: whether a row begins with BOS.

    Attributes:
      end: its id.

    Raises:
      UserError: the tokenizer has no EOS, no BOS where add_bos is set, or no special token of that name.
    """

    def __init__(
        self, spec: NlgSpec, tokenizer: Any, separator: str = "", framing: Framing = PLAIN, add_bos: bool = False
    ):
        self._spec, self._tokenizer, self._framing = spec, tokenizer, framing
        known = tokenizer.special_tokens
        if separator and separator not in known:
            raise unknown_name("special token (task.separator)", separator, known)
        if not separator and tokenizer.eos_id is None:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has no EOS to end a text; name a special token of it as task.separator"
            )
        self.end = known[separator] if separator else tokenizer.eos_id
        self._bos = [mark(tokenizer, "bos")] if add_bos else []
        self._dtype = token_dtype(max(tokenizer.vocab_size, framing.most + 1))
        self._continues = puts_space_before(tokenizer.encode, tokenizer.decode)
        self._prompts: dict[str, list[int]] = {}

    def after(self) -> list[int]:
        """The ids between an input and its text."""
        return [self.end] if self._spec.separated else []

    def prompt(self, context: str) -> list[int]:
        """The ids before a text."""
        if (ids := self._prompts.get(context)) is None:
            ids = self._framing.around([*self._bos, *self._tokenizer.encode(context), *self.after()])
            self._prompts[context] = ids
        return list(ids)

    def row(self, row: NlgRow) -> Encoded:
        """The example of a row with one text."""
        before, text = self.prompt(row.context), self._spec.lead + row.references[0]
        after = encode_continuation(self._tokenizer.encode, text) if self._continues else self._tokenizer.encode(text)
        tokens = np.array([*before, *after, self.end], self._dtype)
        targets = np.arange(len(tokens)) >= max(len(before), self._framing.count + 1)
        return Encoded(tokens, targets)

    def ends(self) -> tuple[int, ...]:
        """The tokens that end decoding: the end token, and the one for a blank line (GPT-2: 628).

        Where a tokenizer has no single token for a blank line it is the one for a newline; without that too, the end
        token alone.
        """
        found = (self._tokenizer.encode(text) for text in NEWLINES)
        single = next((ids for ids in found if len(ids) == 1), [])
        return tuple(dict.fromkeys([self.end, *single]))


def longest(examples: Sequence[Encoded]) -> int:
    """Tokens of the longest example."""
    return max(len(one.tokens) for one in examples)
