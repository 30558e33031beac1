"""Opens a PEFT folder: its config, its weights in either format, and the record that our exports keep in them."""

import dataclasses
import os
from collections.abc import Sequence
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
    found = find_peft(folder) or Path(folder)
    kinds = {name: kind_of(found / name) for name in (WEIGHTS, TORCH_WEIGHTS)}
    path = next((found / name for name, kind in kinds.items() if kind is not None), None)
    if path is None:
        raise UserError(f"{found} has no {WEIGHTS}; give the folder that PEFT's save_pretrained wrote")
    config = parse_config(read_json(found / CONFIG), str(found / CONFIG))
    reader = (SafetensorsReader if path.name == WEIGHTS else TorchReader)(path, [path])
    return PeftFiles(found, config, reader, _note(reader))


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _note(reader: Reader) -> dict[str, Any]:
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
