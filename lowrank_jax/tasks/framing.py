"""Turns a prompt or a conversation into the ids that decoding starts from: those before the answer in training."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import mark
from lowrank_jax.text.chat import ChatTemplate, prompt_ids

Content = str | Sequence[Mapping[str, Any]]


def frame(tokenizer: Any, content: Content, add_bos: bool = False, template: ChatTemplate | None = None) -> list[int]:
    """The ids of a prompt, or of a conversation before its next answer.

    Args:
      tokenizer: of the base.
      content: a text, or messages.
      add_bos: whether the ids begin with BOS; it is not added where the template has written it.
      template: writes messages, and a text as a user's message; None: only texts are taken, as they are.

    Raises:
      UserError: messages without a template, or some that it refuses.
    """
    bos = [mark(tokenizer, "bos")] if add_bos else []
    if template is not None:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        ids = prompt_ids(tokenizer, template, messages)
        return ids if ids[: len(bos)] == bos else [*bos, *ids]
    if not isinstance(content, str):
        raise UserError("messages need a chat template, and this task has none; give prompts that are texts")
    return [*bos, *tokenizer.encode(content)]
