"""Reads prompts from a user's file: JSON lines with "prompt" or "messages"; plain, .gz or .xz."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.data.lines import read_lines
from lowrank_jax.data.row_kinds import ROLES, check_text
from lowrank_jax.text.chat import ASSISTANT, Message

EXAMPLE = '{"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}'


class Asked(NamedTuple):
    """A prompt or a conversation to continue, and the continuation that its file has, if any.

    Attributes:
      prompt: "" of a conversation.
      messages: () of a prompt; of a conversation that ends with the assistant, those before.
      reference: the row's "completion", or what the assistant says at the end; None if it has neither.
    """

    prompt: str = ""
    messages: tuple[Message, ...] = ()
    reference: str | None = None

    @property
    def content(self) -> str | tuple[Message, ...]:
        """The prompt, or the messages."""
        return self.messages or self.prompt

    @property
    def shown(self) -> str:
        """The prompt, or the last message."""
        return self.messages[-1]["content"] if self.messages else self.prompt


def read_prompts(path: str | os.PathLike) -> list[Asked]:
    """The rows of a file, in order; other keys of a row are ignored.

    Raises:
      UserError: the file is missing, damaged or empty, or a row is of another kind; names file, line and remedy.
    """
    found = [_asked(f"{path}, line {number}", line) for number, line in read_lines(Path(path))]
    if not found:
        raise UserError(f"{path}: has no rows; each line needs {EXAMPLE}")
    return found


def _asked(where: str, line: str) -> Asked:
    try:
        row = parse(line)
    except NotJson as error:
        raise UserError(f"{where}: not JSON ({error}); write {EXAMPLE}, one a line") from None
    given = {key: value for key, value in row.items() if value is not None} if isinstance(row, dict) else {}
    if ("prompt" in given) == ("messages" in given):
        found = ", ".join(f'"{str(key)[:40]}"' for key in list(row)[:5]) if isinstance(row, dict) else "no object"
        raise UserError(f'{where}: needs either the key "prompt" or "messages"; found {found or "no key"}')
    reference = given.get("completion")
    kept = check_text(where, "completion", reference, empty=True) if isinstance(reference, str) else None
    asked = given.get("prompt")
    if isinstance(asked, str):
        return Asked(prompt=check_text(where, "prompt", asked, empty=True), reference=kept)
    if "prompt" in given and not isinstance(asked, list):
        raise UserError(f'{where}: "prompt" is a {type(asked).__name__}, not a string; put it in quotes')
    messages = _messages(given.get("messages", asked), where)
    if asked is not None and isinstance(reference, list):
        messages = (*messages, *_messages(reference, where)[:1])
    if messages[-1]["role"] == ASSISTANT:
        messages, kept = messages[:-1], messages[-1]["content"]
    if not messages or messages[-1]["role"] == ASSISTANT:
        raise UserError(f"{where}: has nothing for the assistant to answer; end with a turn of the user")
    return Asked(messages=messages, reference=kept)


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f'{where}: "messages" is no list of messages; write {EXAMPLE}')
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f'{where}: message {i + 1} has no "role"; write {EXAMPLE}')
        if message["role"] not in ROLES:
            raise UserError(
                f"{where}: message {i + 1} has the role {message['role'][:40]!r}; roles are {', '.join(ROLES)}"
            )
        check_text(f"{where}, message {i + 1}", "content", message.get("content"), empty=True)
    return tuple(value)
