"""Converses with a model: each line of stdin is a message, and the whole conversation is remembered."""

import sys
from collections.abc import Iterator
from typing import Any

from experiments.generation.write import Author, json_line
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.prompts import Asked, Message

RESET, EXIT = "/reset", "/exit"
ASK = "> "


def converse(author: Author, out: Any = None) -> None:
    """Answers the lines of stdin until it ends or a line is EXIT; RESET forgets the conversation.

    Args:
      author: the model and its settings.
      out: gets a JSON line of each answer, with the conversation before it; None for none.

    Raises:
      UserError: the template refuses a message, or a line is not UTF-8.
    """
    messages: list[Message] = []
    turn = 0
    for said in _lines():
        word = said.strip()
        if word == EXIT:
            return
        if word == RESET:
            messages = []
            print("(the conversation begins again)", file=sys.stderr)
            continue
        asked = Asked(messages=(*messages, {"role": "user", "content": said}))
        prompt = author.framing.ids(asked)
        if author.streamer.room(prompt) < 1:
            print(
                f"(the conversation has {len(prompt)} tokens and the model reads {author.model.positions}: "
                f"{RESET} begins again)",
                file=sys.stderr,
            )
            continue
        limits = author.limits([prompt], "the conversation")
        piece = author.say(prompt, turn, limits)
        messages = [*asked.messages, {"role": "assistant", "content": piece.stream.text}]
        if out is not None:
            json_line(author.record(asked, piece, turn, limits), out)
        turn += 1


def _lines() -> Iterator[str]:
    """Lines of stdin that are not blank; a terminal shows ASK before each."""
    if sys.stdin.isatty():
        while True:
            try:
                line = input(ASK)
            except EOFError:
                print(file=sys.stderr)
                return
            if line.strip():
                yield line
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of stdin is not UTF-8 ({error.reason}); convert it") from None
        if text.strip():
            yield text
