"""Turns a prompt or a conversation into the ids that decoding starts from: those before the answer in training."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_jax.adapters.prefix.places import VirtualTokens
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import mark
from lowrank_jax.text.chat import ChatTemplate, prompt_ids

Content = str | Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Framing:
    """The virtual tokens of a prefix method in a task's rows; none by default.

    A row is [prefix] [BOS] prompt [infix] completion [EOS], or [prefix] [BOS] text [EOS] where it has no prompt. The
    prefix comes before BOS, as in PEFT. Virtual tokens are never targets, and do not change which tokens are: losses of
    methods with and without a prefix are means over the same tokens.

    Attributes:
      prefix_ids, infix_ids: the ids, which follow the base's own.
    """

    prefix_ids: tuple[int, ...] = ()
    infix_ids: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many virtual tokens a row with a prompt has, by which its room for text shrinks."""
        return len(self.prefix_ids) + len(self.infix_ids)

    @property
    def most(self) -> int:
        """The largest id; 0 without virtual tokens."""
        return max((*self.prefix_ids, *self.infix_ids), default=0)

    def around(self, prompt: Iterable[int]) -> list[int]:
        """A prompt's ids between prefix and infix."""
        return [*self.prefix_ids, *prompt, *self.infix_ids]

    def last(self, ids: Sequence[int], room: int, opening: int = 0) -> list[int]:
        """A framed prompt cut to its last `room` ids: the beginning of its text goes, its virtual tokens stay.

        Args:
          ids: of the prompt.
          room: most ids; more than the virtual tokens and `opening`.
          opening: how many ids before the text stay too: 1 for BOS.
        """
        head = len(self.prefix_ids) + opening
        return list(ids) if len(ids) <= room else [*ids[:head], *ids[len(ids) - room + head :]]

    def text(self, ids: Iterable[int]) -> list[int]:
        """The ids without virtual tokens, which no tokenizer knows."""
        virtual = {*self.prefix_ids, *self.infix_ids}
        return [one for one in ids if one not in virtual]

    def longer(self, needed: int, positions: int | None) -> str:
        """What an error of rows that are too long tells to do.

        Args:
          needed: tokens of the longest row.
          positions: of the base; None for no limit.
        """
        if positions is None or needed <= positions:
            return f"raise seq_len: {needed} keeps all"
        fewer = f"take fewer virtual tokens (a row has {self.count}), " if self.count else ""
        return f"{fewer}shorten the rows, or take a base with more positions than {positions} ({needed} keep all)"

    def check_prompts(self, rows: str) -> None:
        """Refuses infix tokens where no single prompt stands before what is learnt, so that nothing would read them.

        Args:
          rows: what the rows are, for the message.

        Raises:
          UserError: there are infix tokens.
        """
        if self.infix_ids:
            raise UserError(
                f"adapter.prefix.infix is {len(self.infix_ids)}, tokens between a prompt and its completion, and the "
                f"rows are {rows}; set it to 0, or give rows of prompt and completion"
            )


PLAIN = Framing()


def framing_of(tokens: VirtualTokens | None) -> Framing:
    """The framing of a plan's virtual tokens (`Plan.virtual`); PLAIN where it has none."""
    return PLAIN if tokens is None else Framing(tokens.prefix_ids, tokens.infix_ids)


def frame(
    tokenizer: Any,
    content: Content,
    add_bos: bool = False,
    template: ChatTemplate | None = None,
    framing: Framing = PLAIN,
) -> list[int]:
    """The ids of a prompt, or of a conversation before its next answer.

    Args:
      tokenizer: of the base.
      content: a text, or messages.
      add_bos: whether the ids begin with BOS; it is not added where the template has written it.
      template: writes messages, and a text as a user's message; None: only texts are taken, as they are.
      framing: the virtual tokens around them.

    Raises:
      UserError: messages without a template, or some that it refuses.
    """
    bos = [mark(tokenizer, "bos")] if add_bos else []
    if template is not None:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        ids = prompt_ids(tokenizer, template, messages)
        return framing.around(ids if ids[: len(bos)] == bos else [*bos, *ids])
    if not isinstance(content, str):
        raise UserError("messages need a chat template, and this task has none; give prompts that are texts")
    return framing.around([*bos, *tokenizer.encode(content)])
