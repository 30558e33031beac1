"""Tells by its keys what a row of a user's data is: a text, a prompt with its completion, or a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_jax.core.errors import UserError

TEXT, COMPLETION, CHAT = "text", "completion", "chat"
# The keys by which a row's kind is known. A row that has those of the first two kinds, plain texts, is refused.
KEYS = {
    TEXT: ("text",),
    COMPLETION: ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
    "dolly": ("instruction", "response"),
    "metamath": ("query", "response"),
    "question": ("question", "answer"),
}
# Kinds of one question and its answer, with the key of the text that the question is about, if there is any.
BESIDE = {"instruction": "input", "dolly": "context", "metamath": "", "question": "context"}
UNDERSTOOD = (
    '"text"; "prompt" and "completion" (two texts, or two lists of messages); "messages" (of "role" and "content"); '
    '"conversations" (of "from" and "value"); "instruction" and "output", with or without "input"; '
    '"instruction" and "response" or "question" and "answer", with or without "context"; "query" and "response"'
)
ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
SHOWN_KEYS = 8

Row = dict[str, Any]


def read_row(where: str, row: Any) -> tuple[str, Row]:
    """Checks a row and brings it into one of three forms; returns (kind, row).

    The row is {"text"}, {"prompt", "completion"}, or for a conversation {"messages": [{"role", "content"}, ...],
    "first": index of the first message that is learned}. Where prompt and completion are lists of messages, only the
    completion is learned. Other keys of a row are left out.

    Args:
      where: file and line, for messages.
      row: as it was read.

    Raises:
      UserError: it is no object, of no kind or two, or a value of it is empty or of the wrong type.
    """
    if not isinstance(row, Mapping):
        raise UserError(f'{where}: is a JSON {type(row).__name__}, not an object; write {{"text": "..."}}')
    given = {key for key, value in row.items() if value is not None}  # tables have all columns in every row
    kinds = [kind for kind, keys in KEYS.items() if given.issuperset(keys)]
    kinds = kinds or [kind for kind, keys in KEYS.items() if row.keys() >= set(keys)]
    if plain := [kind for kind in kinds if kind in (TEXT, COMPLETION)]:
        kinds = plain  # published data sets often have the same text as messages too
    if len(kinds) > 1:  # and a row of a conversation often has its question and answer beside it
        kinds = [kind for kind in kinds if kind not in ("metamath", "question")]
    if len(kinds) != 1:
        found = f"its keys are {quoted(list(row)[:SHOWN_KEYS])}" if row else "it has no keys"
        found += ", ..." if len(row) > SHOWN_KEYS else ""
        both = ", which are two kinds of rows; keep those of one" if kinds else ""
        raise UserError(f"{where}: {found}{both}; understood are {UNDERSTOOD}")
    kind = kinds[0]
    if kind == COMPLETION and any(_is_list(row[key]) for key in KEYS[COMPLETION]):
        before, after = (_messages(where, key, row[key]) for key in KEYS[COMPLETION])
        return CHAT, _chat(where, [*before, *after], len(before))
    if kind in (TEXT, COMPLETION):
        return kind, {key: check_text(where, key, row[key], empty=key == "prompt") for key in KEYS[kind]}
    if row.get("tools"):
        raise UserError(f'{where}: has "tools", which are not given to chat templates here; remove the key')
    if kind in BESIDE:
        (ask, answer), beside = KEYS[kind], BESIDE[kind]
        texts = [check_text(where, ask, row[ask]), check_text(where, beside, row.get(beside) or "", empty=True)]
        asked = "\n\n".join(text for text in texts if text)
        said = check_text(where, answer, row[answer])
        return CHAT, _chat(where, [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], 0)
    return CHAT, _chat(where, _messages(where, kind, row[kind]), 0)


def quoted(keys: Any) -> str:
    """Keys in quotes, with commas."""
    return ", ".join(f'"{key}"' for key in keys)


def check_text(where: str, key: str, value: Any, empty: bool = False) -> str:
    """The value of a key, if it is a text.

    Args:
      where: file and line, for messages.
      empty: whether it may be empty.

    Raises:
      UserError: it is no string, empty, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise UserError(f'{where}: "{key}" is a {type(value).__name__}, not a string; put it in quotes')
    if not value and not empty:
        raise UserError(f'{where}: "{key}" is empty; remove the row')
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f'{where}: "{key}" holds half of a surrogate pair (\\ud800-\\udfff); remove it') from None
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _messages(where: str, key: str, value: Any) -> list[Row]:
    if isinstance(value, Mapping) and value and all(map(_is_list, value.values())):  # columns, as data sets store them
        if len({len(column) for column in value.values()}) > 1:
            raise UserError(f'{where}: the columns of "{key}" have different lengths; correct the row')
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if not _is_list(value) or not value:
        raise UserError(
            f'{where}: "{key}" is {"empty" if value in ([], ()) else "no list of messages"}; remove the row'
        )
    return [_message(f"{where}, message {number} of {key}", one) for number, one in enumerate(value, 1)]


def _message(where: str, message: Any) -> Row:
    if not isinstance(message, Mapping):
        raise UserError(f'{where}: is a {type(message).__name__}; write {{"role": "user", "content": "..."}}')
    speaker, content = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    if speaker not in message:
        raise UserError(f'{where}: has neither "role" nor "from" (found {quoted(message)}); say who speaks')
    role = message[speaker]
    role = SPEAKERS.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise UserError(f"{where}: unknown role {role!r}; roles are {', '.join((*ROLES, *SPEAKERS))}")
    called = role == "assistant" and message.get("tool_calls")
    said = message.get(content)
    said = "" if said is None and called else check_text(where, content, said, empty=bool(called) or role == "system")
    rest = {key: value for key, value in message.items() if key not in (speaker, content) and value is not None}
    return {**rest, "role": role, "content": said}


def _chat(where: str, messages: list[Row], first: int) -> Row:
    messages, dropped = [one for one in messages if one["content"] or one["role"] != "system"], len(messages)
    first -= dropped - len(messages)
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "system"
        raise UserError(
            f"{where}: ends with a turn of role {last!r}, after which there is no assistant's turn to learn; "
            "remove that turn or the row"
        )
    return {"messages": messages, "first": max(first, 0)}
