"""Opens a checkpoint without reading it, then reads one tensor at a time: safetensors, GGUF, torch's .bin."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

import numpy as np

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.core.files import check_file, kind_of, read_text, refuse_special
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.core.types import Part
from lowrank_jax.interop.gguf.file import GGUFReader, whole
from lowrank_jax.interop.gguf.header import DAMAGED
from lowrank_jax.interop.torch_file import StoredTensor, read_names, read_tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names; integers and 8-bit floats are quantised weights


class Tensors(Protocol):
    """Tensors by name; `path` is what messages call them."""

    path: Path

    def read(self, key: str) -> np.ndarray:
        """A whole tensor."""
        ...


class Reader(Protocol):
    """The interface of all checkpoint formats: names, shapes and one tensor at a time, rows first (HF's [out, in]).

    Attributes:
      reads_parts: a part of a tensor is read without the rest.
    """

    path: Path
    reads_parts: bool

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the file says beside its tensors."""
        ...

    def keys(self) -> list[str]:
        """Tensor names in file order; a name that is in two shards comes twice."""
        ...

    def shape(self, key: str) -> tuple[int, ...]:
        """The tensor's shape; reads no data."""
        ...

    def is_one(self, first: str, second: str) -> bool:
        """Whether two names are one tensor of the file; reads no data."""
        ...

    def read(self, key: str, part: Part | None = None) -> np.ndarray:
        """The tensor, or a part, as float64, float32, float16 or (ml_dtypes) bfloat16; quantised ones as float32."""
        ...


class SafetensorsReader:
    """One or more safetensors files with a checkpoint.

    Raises:
      UserError: a file is missing, damaged or cut short, or its tensors are not those of its index.
    """

    reads_parts = True

    def __init__(self, path: Path, files: Sequence[Path], index: Mapping[str, Path] | None = None):
        from safetensors import SafetensorError, safe_open

        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self._keys: list[str] = []
        self._home: dict[str, tuple[Path, tuple[int, ...], str]] = {}  # name -> (its file, shape, type)
        for file in files:
            check_file(file, f"{self.path} lacks the shard {file.name}; copy or download the checkpoint again")
            try:
                with safe_open(file, framework="np") as handle:
                    self.metadata.update(handle.metadata() or {})
                    slices = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118 (no dictionary: it is not iterable)
                    held = {key: (file, tuple(part.get_shape()), part.get_dtype()) for key, part in slices.items()}
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file} {DAMAGED} ({one_line(error)}); copy or download it again") from None
            _check_shard(file, set(held), index, INDEX)
            self._keys.extend(held)
            self._home.update(held)

    def keys(self) -> list[str]:
        return list(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._home[key][1]

    def is_one(self, first: str, second: str) -> bool:
        return first == second

    def read(self, key: str, part: Part | None = None) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        file, _, dtype = self._home[key]
        if dtype not in FLOATS:
            raise UserError(f"{file}: {key} is stored as {dtype}, a quantised or integer type; use a float checkpoint")
        try:
            # Opened for one tensor: the pages of an open mapping stay in memory, in the end the whole checkpoint.
            with safe_open(file, framework="np") as handle:
                return handle.get_tensor(key) if part is None else handle.get_slice(key)[part]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} {DAMAGED} at {key} ({one_line(error)}); copy or download it again") from None


class TorchReader:
    """One or more files of torch.save with a checkpoint; their code is not run, see `torch_file`.

    Even for a part, the whole tensor is read: the zip file's checksum, which finds damage, is of the whole.

    Raises:
      UserError: a file is missing, damaged, in torch's old format, or has more than tensors by name.
    """

    reads_parts = False

    def __init__(self, path: Path, files: Sequence[Path], index: Mapping[str, Path] | None = None):
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self._keys: list[str] = []
        self._home: dict[str, tuple[Path, StoredTensor]] = {}
        for file in files:
            check_file(file, f"{self.path} lacks the shard {file.name}; copy or download the checkpoint again")
            tensors = read_names(file)
            _check_shard(file, set(tensors), index, TORCH_INDEX)
            self._keys.extend(tensors)
            self._home.update({key: (file, tensor) for key, tensor in tensors.items()})

    def keys(self) -> list[str]:
        return list(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._home[key][1].shape

    def is_one(self, first: str, second: str) -> bool:
        return self._home[first] == self._home[second]  # the same view of the same storage

    def read(self, key: str, part: Part | None = None) -> np.ndarray:
        file, tensor = self._home[key]
        values = read_tensor(file, key, tensor)
        return values if part is None else values[part]


def open_checkpoint(path: str | Path) -> Reader:
    """Opens a .safetensors file, a .gguf file, or a folder with one checkpoint; reads names and shapes only.

    Args:
      path: a file, or a folder with model.safetensors.index.json and its shards, one .safetensors file, one .gguf or
        all its parts, or torch's pytorch_model.bin or its index and shards.

    Raises:
      UserError: no such path, nothing readable, more than one choice (also model.safetensors with an index of other
        files), an index that leads out of its folder, or a damaged file.
    """
    path = Path(path)
    if kind_of(path) == "folder":
        return _open_folder(path)
    check_file(path, f"no checkpoint at {path}")
    if path.suffix == ".gguf":
        return GGUFReader(path)
    if path.suffix == ".safetensors":
        return SafetensorsReader(path, [path])
    if path.suffix in (".bin", ".pt"):
        return TorchReader(path, [path])
    raise UserError(f"{path} is none of .safetensors, .gguf, .bin")


def _open_folder(folder: Path) -> Reader:
    for name in (INDEX, SINGLE, TORCH_INDEX, TORCH_SINGLE):
        refuse_special(folder / name)
    if (folder / INDEX).is_file():
        return SafetensorsReader(folder, *_shards(folder, INDEX, SINGLE))
    tensors = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(tensors) == 1:
        return SafetensorsReader(folder, tensors)
    ggufs = whole(sorted(folder.glob("*.gguf")))
    if not tensors and len(ggufs) == 1:
        return GGUFReader(ggufs[0])
    if several := [file.name for file in tensors + ggufs]:
        raise UserError(f"{folder} has several checkpoints and no {INDEX}: {', '.join(several[:5])}; name one file")
    if (folder / TORCH_INDEX).is_file():
        return TorchReader(folder, *_shards(folder, TORCH_INDEX, TORCH_SINGLE))
    if (folder / TORCH_SINGLE).is_file():
        return TorchReader(folder, [folder / TORCH_SINGLE])
    if pickled := sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pth")):
        raise UserError(f"{folder} has only torch's {pickled[0].name}; save it as safetensors (save_pretrained)")
    raise UserError(f"{folder} has none of .safetensors, .gguf, {TORCH_SINGLE}")


def _shards(folder: Path, name: str, single: str) -> tuple[list[Path], dict[str, Path]]:
    """The shards that an index names, and each tensor's; `single` is the name of a file with the whole checkpoint."""
    index = read_json(folder / name).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise UserError(f"{folder / name} has no weight_map; download it again")
    if outside := sorted({file for file in index.values() if not _is_inside(file)}):
        raise UserError(
            f"{folder / name} names {outside[0]!r}, which is outside its folder; download the checkpoint again, or "
            "put all its shards into one folder and their names into the index"
        )
    home = {key: folder / file for key, file in index.items()}
    files = sorted(set(home.values()))
    if (folder / single).is_file() and folder / single not in files:
        raise UserError(
            f"{folder} has {single} and {name}, which names other files; delete the one that is stale, or name "
            f"{folder / single} as the base to read that"
        )
    return files, home


def _is_inside(file: str) -> bool:
    """Whether a name in an index is neither absolute nor leads upwards, on any system. Links are not followed."""
    kinds = PurePosixPath(file), PureWindowsPath(file)
    return not any(path.anchor or ".." in path.parts for path in kinds)


def _check_shard(file: Path, held: set[str], index: Mapping[str, Path] | None, index_name: str) -> None:
    if index and (absent := sorted(k for k, home in index.items() if home == file and k not in held)):
        raise UserError(f"{file} lacks {', '.join(absent[:3])}, which {index_name} expects in it; download it again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      UserError: the file is missing, is not JSON, or is no object.
    """
    try:
        value = parse(read_text(path, f"{path.parent} lacks {path.name}"))
    except NotJson as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); copy or download it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value
