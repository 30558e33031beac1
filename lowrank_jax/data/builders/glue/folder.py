"""GLUE from a local folder of tsv files: finds a split's file and reads its rows, checked line by line."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.data.builders.glue.specs import GLUE, SCORES, GlueSpec
from lowrank_jax.data.digest import text_digest
from lowrank_jax.data.lines import OPENERS, read_lines

SUFFIXES = ("", *OPENERS)
MRPC_WHOLE, MRPC_IDS = "msr_paraphrase_train.txt", ("dev_ids.tsv", "mrpc_dev_ids.tsv")
MRPC_ID_COLUMNS = ("#1 ID", "#2 ID")


@dataclass(frozen=True)
class GlueRows:
    """Rows of one split, in the order of the official file.

    Attributes:
      first, second: the sentences; second is None where rows have only one.
      labels: int32 [n] classes, or float32 [n] scores.
      source: the files or the TFDS folder they come from.
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    source: str

    def __len__(self) -> int:
        return len(self.first)

    def digest(self) -> str:
        """sha256 of the rows, the same for every way of storing them."""
        columns = [self.first] if self.second is None else [self.first, self.second]
        return text_digest(columns, self.labels.tobytes())


def read_folder(task: str, split: str, root: Path) -> GlueRows:
    """The rows of `split`, from the official tsv files or from the parts that the folder has.

    `root` is the task's folder, or the folder of all data sets with the task's in it under its official name ("STS-B")
    or as "glue-stsb" (parts: "glue-stsb-partial"). The task's folder has the split's file ("dev.tsv") or its parts
    ("dev_partial.tsv" and "dev_extra.tsv"), each plain, .gz or .xz. MRPC's split files may be given as the corpus' own
    msr_paraphrase_train.txt with GLUE's dev_ids.tsv.

    Raises:
      UserError: a file is missing or cut short, has another header, or a label that is out of range.
    """
    spec, folder = GLUE[task], _task_folder(task, root)
    paths, keep = _split_files(folder, split), None
    if not paths and (whole := _mrpc_whole(task, folder)):
        paths, keep = [whole], _mrpc_ids(folder)
    if not paths:
        wanted = " or ".join(f"{split}{suffix}" for suffix in (".tsv", ".tsv.gz", "_partial.tsv"))
        raise UserError(f"{folder} has no {wanted}; put GLUE's {spec.folder} files there, or unset task.data_dir")
    columns = (*spec.columns, spec.label, *(MRPC_ID_COLUMNS if keep is not None else ()))
    texts, labels = [[] for _ in spec.columns], []
    for path in paths:
        for number, fields in _read_columns(path, columns, spec):
            if keep is not None and ((fields[-2], fields[-1]) in keep) != (split == "dev"):
                continue
            labels.append(_label(f"{path}, line {number}", fields[len(texts)], spec))
            for column, text in zip(texts, fields, strict=False):
                column.append(text)
    dtype = np.int32 if spec.labels else np.float32
    second = texts[1] if len(texts) == 2 else None
    return GlueRows(texts[0], second, np.array(labels, dtype), ", ".join(map(str, paths)))


def has_files(task: str, split: str, root: Path) -> bool:
    """Whether `read_folder` finds files of `split`; their content is not read."""
    return bool(files_of(task, split, root))


def files_of(task: str, split: str, root: Path) -> list[Path]:
    """The files that `read_folder` reads for `split`; their content is not read."""
    folder = _task_folder(task, root)
    if paths := _split_files(folder, split):
        return paths
    if whole := _mrpc_whole(task, folder):
        return [path for path in (whole, _mrpc_id_file(folder)) if path]
    return []


def _task_folder(task: str, root: Path) -> Path:
    root = root.expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; task.data_dir (or LOWRANK_JAX_GLUE_DIR) names the folder of GLUE")
    if _names(task, root):
        return root
    found = sorted(path for path in root.iterdir() if path.is_dir() and _names(task, path))
    if found:
        return min(found, key=lambda path: "partial" in path.name.lower())  # whole before partial
    if any(_split_files(root, split) for split in GLUE[task].splits):
        return root
    raise UserError(f"{root} has no folder {GLUE[task].folder} (or glue-{task}); check task.data_dir")


def _names(task: str, folder: Path) -> bool:
    plain = re.sub("[^a-z0-9]", "", folder.resolve().name.lower())
    return plain.removeprefix("glue").removesuffix("partial") == task


def _split_files(folder: Path, split: str) -> list[Path]:
    whole = _packed(folder, f"{split}.tsv")
    parts = [_packed(folder, f"{split}_{part}.tsv") for part in ("partial", "extra")]
    return [whole] if whole else [part for part in parts if part]


def _packed(folder: Path, name: str) -> Path | None:
    """The file, plain or compressed, if it exists."""
    return next((path for suffix in SUFFIXES if kind_of(path := folder / f"{name}{suffix}") is not None), None)


def _mrpc_whole(task: str, folder: Path) -> Path | None:
    return _packed(folder, MRPC_WHOLE) if task == "mrpc" else None


def _mrpc_ids(folder: Path) -> Collection[tuple[str, ...]]:
    path = _mrpc_id_file(folder)
    if path is None:
        raise UserError(f"{folder} has {MRPC_WHOLE} but no {MRPC_IDS[0]}, which says what is dev; fetch GLUE's file")
    return {tuple(line.split()) for _, line in read_lines(path)}


def _mrpc_id_file(folder: Path) -> Path | None:
    return next((path for name in MRPC_IDS if (path := _packed(folder, name))), None)


def _read_columns(path: Path, columns: tuple[str, ...], spec: GlueSpec) -> Iterator[tuple[int, list[str]]]:
    """(line number, the named fields) of each row; a line without one is an error, but for a few."""
    # Only \n ends a line: \r alone or a Unicode line separator is text. No quoting: sentences hold unbalanced quotes.
    lines = read_lines(path, newline="\n")
    header = spec.header
    if not header:
        _, line = next(lines, (0, ""))
        header = _fields(line)
        if missing := [name for name in columns if name not in header]:
            shown = ", ".join(map(repr, header))[:200]
            raise UserError(
                f"{path}, line 1: the header lacks {', '.join(map(repr, missing))}, it has {shown}; "
                f"use GLUE's own {spec.folder} file"
            )
    places = [header.index(name) for name in columns]
    broken, number = [], 0  # (line number, columns)
    for number, line in lines:
        fields = _fields(line)
        if len(fields) > max(places):
            yield number, [fields[place] for place in places]
        else:
            broken.append((number, len(fields)))
    cut_short = broken and broken[-1][0] == number
    if cut_short or len(broken) > spec.broken_lines:
        number, count = broken[-1] if cut_short else broken[0]
        raise UserError(
            f"{path}, line {number}: has {count} of {len(header)} columns; the file is cut short or damaged, "
            "fetch it again"
        )


def _fields(line: str) -> list[str]:
    return line.removesuffix("\n").removesuffix("\r").split("\t")


def _label(where: str, text: str, spec: GlueSpec) -> int | float:
    if spec.labels:
        if text in spec.written:
            return spec.written.index(text)
        known = ", ".join(spec.written)
        raise UserError(f"{where}: the label {text[:40]!r} is none of {known}; use GLUE's own {spec.folder} file")
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    low, high = SCORES
    if not low <= score <= high:
        raise UserError(f"{where}: the score {text[:40]!r} is no number from {low:g} to {high:g}; use GLUE's own file")
    return score
