"""A prompt or a conversation as the ids that decoding starts from: those before the answer in training."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.packing import mark
from lowrank_jax.text.chat import ChatTemplate, prompt_ids

Content = str | Sequence[Mapping[str, Any]]


def frame(tokenizer: Any, content: Content, add_bos: bool = False, template: ChatTemplate | None = None) -> list[int]:
    """The ids of a prompt, or of a conversation that an answer follows.

    Args:
      content: a text, or messages.
      add_bos: begins with BOS, which a template may have written already.
      template: of a task of conversations, to which a text is a user's message; None: texts alone.

    Raises:
      UserError: messages without a template, or some that it refuses.
    """
    bos = [mark(tokenizer, "bos")] if add_bos else []
    if template is not None:
        messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
        ids = prompt_ids(tokenizer, template, messages)
        return ids if ids[: len(bos)] == bos else [*bos, *ids]
    if not isinstance(content, str):
        raise UserError("messages need a chat template, and there is none for this task; give prompts, as texts")
    return [*bos, *tokenizer.encode(content)]
