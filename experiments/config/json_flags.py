"""Keys of a config that hold sections or rules of their own, whose value on the command line is JSON."""

import re
from collections.abc import Sequence
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.json_text import NotJson, parse

# Key -> (type, an example). "trainable" is JSON only where it is a list of rules; its names are plain words.
KEYS = {
    "adapters": (list, '[{"method": "houlsby", "rank": 4}]'),
    "evals": (dict, '{"quick": {"every": 100, "at_end": false}}'),
    "trainable": (list, '[["adapters/.*", true], [".*", false]]'),
}
FLAG = re.compile(rf"--?config\.({'|'.join(KEYS)})(?:=(.*))?", re.DOTALL)


def take(config: Any, words: Sequence[str]) -> list[str]:
    """Sets the keys that are given as JSON in a ConfigDict; returns the other words of the command line.

    Raises:
      UserError: a value is not JSON, or not of the key's type.
    """
    rest, left = [], iter(words)
    for word in left:
        found = FLAG.fullmatch(word)
        if not found or (found[2] is not None and is_plain(found[1], found[2])):
            rest.append(word)
            continue
        key, text = found[1], found[2]
        if text is None:
            text = next(left, "")
            if is_plain(key, text):
                rest += [word, text]
                continue
        value = read(key, text)
        with config.unlocked():
            if key in config:
                del config[key]  # of another type, perhaps
            config[key] = value
    return rest


def is_plain(key: str, value: Any) -> bool:
    """Whether a value is a plain word, not JSON, for a key that takes both ("trainable")."""
    return key == "trainable" and isinstance(value, str) and not value.lstrip().startswith(("[", "{"))


def read(key: str, text: str) -> Any:
    """The value of one of KEYS from its JSON; errors as `take`."""
    kind, _ = KEYS[key]
    try:
        value = parse(text)
    except NotJson as error:
        raise UserError(f"config.{key} is not JSON ({error}); {way(key)}") from None
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise UserError(f"config.{key} is JSON but not {wanted}; {way(key)}")
    return value


def way(key: str) -> str:
    """How the key is given, for messages."""
    return f"write --config.{key}='{KEYS[key][1]}', or set it in the config file"
