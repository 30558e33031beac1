"""Parses a config file's argument, as in `--config=file.py:scale=gpu,method=lora`; the defaults give the types."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.rates import refuse_auto

RATE = "rate"  # the argument of every config file that sets the learning rate
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")

# For the ARGUMENTS of a config file: {a config's key: the file's argument that sets it}, by which messages name a key,
# as they speak of what a user wrote.
TRAINING = {"base.name": "base", "adapter.rank": "rank", "train.epochs": "epochs", "train.batch_size": "batch"}
SAMPLED = {"task.train_examples": "train_examples", "task.allow_partial": "partial"}
OWN_ROWS = {
    "task.path": "data",
    "task.validation_path": "validation",
    "task.chat_template": "chat",
    "task.packed": "packed",
}


class Count(int):
    """The type of an argument that is a whole number above 0: a 0 would read as if nothing were given."""


class Several(tuple):
    """The type of an argument that is one word or several, with commas between them (`files=a.jsonl,b.jsonl`)."""


ASK = "?"  # the argument that asks which arguments a config file takes


class Asked(UserError):
    """Raised by `parse_arg` for ASK: lists the arguments that the config file takes.

    Attributes:
      arguments: (key, default, accepted values in words) of each.
    """

    def __init__(self, declared: dict[str, Any]):
        self.arguments = [(key, _default(spec), _words(spec)) for key, spec in declared.items()]
        super().__init__("arguments: " + "; ".join(f"{key}={value} ({words})" for key, value, words in self.arguments))


def parse_arg(arg: str | None, **declared: Any) -> SimpleNamespace:
    """Parses "key=value,key=value" against declared keys.

    Args:
      arg: the text after the config file's colon; None or "" takes every default. A bare `key` sets a boolean.
      **declared: key -> a default (its type is the key's type), a tuple of choices (the first is the default), or a
        type (no default: None unless given; "none" gives None). A word without = after a key of
        the type `Several` belongs to it, unless the word is a key.

    Returns:
      A namespace with one attribute for each declared key, and `changed`, the keys that are not at their defaults.

    Raises:
      UserError: a key is unknown or given twice, or a value is ill-typed or not among the choices; `Asked` for "?".
    """
    if arg == ASK:
        raise Asked(declared)
    values = {key: _default(spec) for key, spec in declared.items()}
    given, several = set(), None
    for part in (arg or "").split(","):
        if not part.strip():
            continue
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if several and not equals and key not in declared:
            values[several] = (*values[several], key)
            continue
        several = key if declared.get(key) is Several and equals and text.lower() != "none" else None
        if key not in declared:
            from lowrank_jax.core.paths import unknown_name  # imports jax, which only this message needs

            raise unknown_name("config argument", key, declared)
        if key in given:
            raise UserError(f"config argument {key!r} is given twice in {arg!r}; keep one")
        given.add(key)
        if not equals:
            if not isinstance(values[key], bool):
                raise UserError(f"config argument {key!r} has no value; write {key}=...")
            text = "true"
        values[key] = _value(key, text, declared[key])
    changed = frozenset(key for key, spec in declared.items() if values[key] != _default(spec))
    return SimpleNamespace(**values, changed=changed)


def check_read(choice: SimpleNamespace, **readers: Collection[str]) -> None:
    """Refuses a changed argument that the chosen method does not read: its run would pass for something that it is not.

    Args:
      choice: of `parse_arg`, with a `method`.
      **readers: key -> the methods that read it.

    Raises:
      UserError: names the argument.
    """
    for key, methods in readers.items():
        if key in choice.changed and choice.method not in methods:
            raise UserError(
                f"config argument {key} is not read by method={choice.method}; leave it out, or take "
                f"{', '.join(methods)}"
            )


def _words(spec: Any) -> str:
    """The values that an argument accepts, in words."""
    if isinstance(spec, tuple):
        return ", ".join(map(str, spec))
    kind = spec if isinstance(spec, type) else type(spec)
    words = {bool: "true, false", Count: "a whole number above 0", int: "an integer", float: "a number"}
    words[Several] = "words with commas between"
    return words.get(kind, "a word")


def _default(spec: Any) -> Any:
    if isinstance(spec, type):
        return None
    return spec[0] if isinstance(spec, tuple) else spec


def _value(key: str, text: str, spec: Any) -> Any:
    kind = spec if isinstance(spec, type) else type(_default(spec))
    if isinstance(spec, type) and text.lower() == "none":
        return None
    value = _cast(key, text, kind)
    if isinstance(spec, tuple) and value not in spec:
        raise UserError(f"config argument {key}={text}: allowed: {', '.join(map(str, spec))}")
    return value


def _cast(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise UserError(f"config argument {key}={text}: allowed: true, false")
        return text.lower() in TRUE
    if kind is str:
        return text
    if kind is Several:
        return (text,)
    if kind not in (int, float, Count):
        raise TypeError(f"{key} is declared as {kind}; use str, int, float, bool, Count or a tuple of choices")
    if key == RATE:
        refuse_auto(text, f"config argument {key}")
    try:
        value = float(text) if kind is float else int(text)
    except ValueError:
        raise UserError(f"config argument {key}={text}: wanted {_words(kind)}") from None
    if kind is Count and value < 1:
        raise UserError(f"config argument {key}={text}: wanted {_words(kind)}; leave it out for the default")
    return value
