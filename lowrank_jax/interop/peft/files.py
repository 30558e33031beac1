"""Opens a PEFT folder: its config, its weights in either format, and the record that our exports keep in them."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.interop.peft.config import CONFIG, TORCH_WEIGHTS, WEIGHTS, PeftConfig, parse_config
from lowrank_jax.interop.readers import Reader, SafetensorsReader, TorchReader, read_json

METADATA = "lowrank_jax"  # our key in the safetensors header: fingerprint of the base, scale of every module
SHOWN = 4  # names in one error


@dataclasses.dataclass(frozen=True)
class PeftFiles:
    """An open folder.

    Attributes:
      folder: the one that has the adapter; it may be a folder in the one that was given.
      config: its adapter_config.json.
      reader: its weights; only names and shapes were read.
      note: the record of our exports, {"fingerprint", "scales"}; empty where PEFT wrote the files.
    """

    folder: Path
    config: PeftConfig
    reader: Reader
    note: dict[str, Any]


def find_peft(folder: str | os.PathLike) -> Path | None:
    """The folder with PEFT's files: this one, or the only one in it (PEFT writes a named adapter into one of its own).

    Returns:
      None where there is none.

    Raises:
      UserError: it has several folders with adapters.
    """
    folder = Path(folder)
    if kind_of(folder / CONFIG) is not None:
        return folder
    if kind_of(folder) != "folder":
        return None
    named = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if len(named) > 1:
        raise UserError(f"{folder} has several adapters, {some([path.name for path in named])}; name one's folder")
    return named[0] if named else None


def open_peft(folder: str | os.PathLike) -> PeftFiles:
    """Opens the adapter in a folder, or the only named one in it.

    Raises:
      UserError: no adapter, several, a config that is not read here, or damaged weights.
    """
    found, values, open_weights = read_config(folder)
    config = parse_config(values, str(found / CONFIG))
    reader = open_weights()
    return PeftFiles(found, config, reader, read_note(reader))


def read_config(folder: str | os.PathLike) -> tuple[Path, dict[str, Any], Callable[[], Reader]]:
    """(the folder that has the adapter, its adapter_config.json, what opens its weights).

    Raises:
      UserError: no adapter, several, or no weights beside the config.
    """
    found = find_peft(folder) or Path(folder)
    kinds = {name: kind_of(found / name) for name in (WEIGHTS, TORCH_WEIGHTS)}
    path = next((found / name for name, kind in kinds.items() if kind is not None), None)
    if path is None:
        raise UserError(f"{found} has no {WEIGHTS}; give the folder that PEFT's save_pretrained wrote")
    kind = SafetensorsReader if path.name == WEIGHTS else TorchReader
    return found, read_json(found / CONFIG), lambda: kind(path, [path])


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_note(reader: Reader) -> dict[str, Any]:
    """The record that our exports keep beside the weights, {} where PEFT wrote them.

    Raises:
      UserError: it is damaged.
    """
    try:
        note = parse(reader.metadata.get(METADATA, "{}"), finite=True)
    except NotJson:
        note = None
    scales = note.get("scales", {}) if isinstance(note, dict) else None
    if (
        not isinstance(note, dict)
        or not isinstance(scales, dict)
        or not all(isinstance(scale, int | float) for scale in scales.values())
    ):
        raise UserError(f"{reader.path} has a damaged header; copy or export the adapter again")
    return note
