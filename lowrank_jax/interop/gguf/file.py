"""Opens a GGUF file, or all parts of a split one, and dequantises one tensor at a time."""

import mmap
import re
from pathlib import Path
from typing import cast

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import check_file, kind_of
from lowrank_jax.core.types import Part
from lowrank_jax.interop.gguf.header import Header, Metadata, read_header

SPLIT = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")  # llama.cpp's names of parts


class GGUFReader:
    """A memory-mapped GGUF file; any part of a split one opens all parts, and the metadata are those of the first.

    For a part of a tensor, whole rows are dequantised: a row's blocks are contiguous.

    Raises:
      UserError: the file is no GGUF, is damaged or cut short, has a tensor type that cannot be dequantised, or lacks
        another of its parts.
    """

    reads_parts = True

    def __init__(self, path: Path):
        try:
            import gguf  # noqa: F401
        except ImportError:
            raise UserError(f"reading {path} needs the gguf package: pip install gguf") from None

        self.path = check_file(path)
        self._files: list[tuple[np.memmap, Header]] = []
        for file in parts_of(self.path):
            if file.stat().st_size < 4:
                raise UserError(f"{file} is not a GGUF file (it does not begin with 'GGUF')")
            data = np.memmap(file, np.uint8, "r")
            self._files.append((data, read_header(file, data)))
        self._keys = [key for _, header in self._files for key in header.tensors]
        self._home = {key: (data, header.tensors[key]) for data, header in self._files for key in header.tensors}
        self.metadata: Metadata = self._files[0][1].metadata
        self._check_split()

    def keys(self) -> list[str]:
        return list(self._keys)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._home[key][1].shape

    def is_one(self, first: str, second: str) -> bool:
        return first == second

    def read(self, key: str, part: Part | None = None) -> np.ndarray:
        import gguf

        data, stored = self._home[key]
        part = part or (slice(None),) * len(stored.shape)
        values = data[stored.start : stored.start + stored.size]
        if stored.kind in ("F32", "F16"):
            kind = {"F32": "<f4", "F16": "<f2"}[stored.kind]
            values = np.array(values.view(kind).reshape(stored.shape)[part])  # a copy: jax may share its memory
        else:
            rows, inside = (part[0], (slice(None), *part[1:])) if len(stored.shape) > 1 else (slice(None), part)
            lines = values.reshape(*stored.shape[:-1], -1)[rows]
            values = gguf.quants.dequantize(lines, gguf.GGMLQuantizationType[stored.kind])
            values = values.reshape(-1, *stored.shape[1:])[inside]
        if hasattr(mmap, "MADV_DONTNEED"):  # pages that were read stay in memory otherwise, in the end the whole file
            cast(mmap.mmap, data.base).madvise(mmap.MADV_DONTNEED)
        return values

    def _check_split(self) -> None:
        """Compares the parts' names and tensors with the number and counts in their metadata.

        Raises:
          UserError: a part was renamed, or belongs to another file.
        """
        for number, (_, header) in enumerate(self._files):
            said = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1) or 1
            if said != (number, len(self._files)):
                raise UserError(
                    f"{self.path}: part {number + 1} of {len(self._files)} by its name says that it is part "
                    f"{str(said[0])[:20]} (counted from 0) of {str(said[1])[:20]}; give the parts the names that they "
                    "were published with, NAME-00001-of-0000N.gguf"
                )
        total = self.metadata.get("split.tensors.count", len(self._keys))
        if total != len(self._keys):
            raise UserError(
                f"{self.path}: its parts have {len(self._keys)} tensors together instead of {str(total)[:20]}; "
                "download all parts of one release"
            )


def parts_of(path: Path) -> list[Path]:
    """All files of the GGUF checkpoint that a file belongs to, in order.

    Raises:
      UserError: a part is missing, or the name counts none or fewer than its own number.
    """
    found = SPLIT.fullmatch(path.name)
    if found is None:
        return [path]
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count:
        raise UserError(f"{path} is part {found['number']} of {found['count']} by its name; correct the name")
    parts = [path.with_name(f"{found['name']}-{number + 1:05}-of-{found['count']}.gguf") for number in range(count)]
    if absent := [part.name for part in parts if kind_of(part) is None]:
        more = f" and {len(absent) - 1} more parts" if len(absent) > 1 else ""
        raise UserError(f"{path} is one of {count} parts, and {absent[0]}{more} is not beside it; download all parts")
    return [check_file(part) for part in parts]


def whole(files: list[Path]) -> list[Path]:
    """Of a folder's .gguf files one for each checkpoint: of a split one the first part that is there."""
    names: dict[tuple[str, str] | str, Path] = {}
    for file in files:
        found = SPLIT.fullmatch(file.name)
        names.setdefault((found["name"], found["count"]) if found else file.name, file)
    return list(names.values())
