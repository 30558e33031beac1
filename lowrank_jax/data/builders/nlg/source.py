"""Loads a split of a generation data set, from official files or as prepared in TFDS's format; checks its row count."""

import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.nlg.e2e import read_e2e
from lowrank_jax.data.builders.nlg.files import check_unicode, find_file
from lowrank_jax.data.builders.nlg.prepared import prepared_files, read_prepared
from lowrank_jax.data.builders.nlg.rows import NlgRow, pairs
from lowrank_jax.data.builders.nlg.samsum import read_samsum
from lowrank_jax.data.builders.nlg.specs import NLG, TEST
from lowrank_jax.data.builders.nlg.triples import read_dart, read_webnlg
from lowrank_jax.data.builders.nlg.wikisql import is_sample, read_wikisql, tables_of

FOLDER_VARIABLE = "LOWRANK_JAX_NLG_DIR"
READERS: dict[str, Callable[[Path], Iterable[NlgRow]]] = {
    "e2e": read_e2e,
    "webnlg": read_webnlg,
    "dart": read_dart,
    "wikisql": read_wikisql,
    "samsum": read_samsum,
}


def load_nlg(
    task: str, split: str, data_dir: str | os.PathLike | None = None, allow_partial: bool = False
) -> tuple[list[NlgRow], str | None]:
    """The rows of a split in the order of its file, and a note where their number is not the official one.

    Args:
      task: a name of `specs.NLG`.
      split: "train", "dev" or "test".
      data_dir: folder of the official files, or of several data sets' folders; default $LOWRANK_JAX_NLG_DIR, and
        without that what TFDS has prepared (see `prepare.prepare`).
      allow_partial: True accepts any number of rows, and WikiSQL's samples as text.

    Returns:
      (rows, None), or (rows, what differs from the official data).

    Raises:
      UserError: an unknown task or split, no files, damaged files, or another number of rows than the official one
        without allow_partial.
    """
    check_names(task, split)
    folder = folder_of(task, data_dir)
    if folder is None:
        rows, source = read_prepared(task, split)
    else:
        path = split_file(task, split, folder)
        rows, source = read_split(task, split, path), str(path)
    if not rows:
        raise UserError(f"{source}: has no rows; fetch it again")
    texts, official = len(pairs(rows)), NLG[task].rows[split]
    sample = folder is not None and task == "wikisql" and is_sample(split_file(task, split, folder))
    if texts == official and not sample:
        return rows, None
    counts = f"{texts:,} texts, officially {official:,}"
    if sample:
        counts = f"a sample as text, {counts}; its tables are unknown"
    if not allow_partial:
        raise UserError(
            f"{source}: has {counts}; fetch the whole file, or set task.allow_partial=True to run on this one"
        )
    return rows, f"{task} {split}: {counts}"


def read_split(task: str, split: str, path: Path) -> list[NlgRow]:
    """The rows of an official file.

    Raises:
      UserError: it is damaged; names the row.
    """
    read = READERS[task]
    if NLG[task].empty and split == TEST:
        read = functools.partial(read_dart, empty=True)
    rows = list(read(path))
    for row in rows:  # whichever of a row's parts it is in
        check_unicode(row.place, "".join((row.context, *row.references)))
    return rows


def check_names(task: str, split: str) -> None:
    """Refuses an unknown task or split.

    Raises:
      UserError: names the known ones.
    """
    if task not in NLG:
        raise unknown_name("task", task, NLG)
    if split not in NLG[task].files:
        raise unknown_name(f"split of {task}", split, NLG[task].files)


def folder_of(task: str, data_dir: str | os.PathLike | None) -> Path | None:
    """The folder of a task's files; None where neither data_dir nor FOLDER_VARIABLE names one.

    Raises:
      UserError: the folder does not exist.
    """
    given = data_dir or os.environ.get(FOLDER_VARIABLE)
    if not given:
        return None
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; task.data_dir (or {FOLDER_VARIABLE}) names a folder of the files")
    return next((root / name for name in NLG[task].folders if (root / name).is_dir()), root)


def split_file(task: str, split: str, folder: Path) -> Path:
    """The file of a split.

    Raises:
      UserError: the folder has none; says where the official one comes from.
    """
    spec = NLG[task]
    if path := find_file(folder, spec.files[split]):
        return path
    origin = spec.source.replace("{split}", split)
    raise UserError(f"{folder} has no {spec.files[split][0]} (or .gz, .xz); put {spec.title}'s own there ({origin})")


def split_files(task: str, split: str, data_dir: str | os.PathLike | None = None) -> list[Path]:
    """The files that `load_nlg` reads for a split; none where they do not exist."""
    try:
        folder = folder_of(task, data_dir)
        if folder is None:
            return prepared_files(task, split)
        path = split_file(task, split, folder)
        beside = [tables_of(path)] if task == "wikisql" and not is_sample(path) else []
    except UserError:  # who reads them says what is wrong
        return []
    return [path, *beside]
