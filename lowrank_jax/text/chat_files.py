"""Reads a tokenizer's chat template: from chat_template.jinja, tokenizer_config.json or chat_template.json."""

from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_text
from lowrank_jax.core.json_text import read_json

JINJA, JSON = "chat_template.jinja", "chat_template.json"
REMEDY = "copy the base's own file"


def read_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The template of a checkpoint's folder; None where it has none, or several of which none is the default.

    Args:
      folder: the checkpoint's.
      settings: of tokenizer_config.json. Of several templates there, the one called "default" is taken.

    Raises:
      UserError: a file cannot be read, or the template is no text.
    """
    if kind_of(folder / JINJA) is not None:
        return read_text(folder / JINJA)
    file, found = folder / "tokenizer_config.json", settings.get("chat_template")
    if found is None and kind_of(folder / JSON) is not None:
        file, content = folder / JSON, read_json(folder / JSON, REMEDY)
        found = content.get("chat_template") if isinstance(content, dict) else content
    if isinstance(found, list):
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    if not isinstance(found, str | None):
        raise UserError(f"{file}: chat_template is a {type(found).__name__}, not a text; {REMEDY}")
    return found
