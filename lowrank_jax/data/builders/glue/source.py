"""One split of a GLUE data set, from a local folder or from TFDS, with its number of rows checked."""

import os
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.glue.folder import GlueRows, files_of, has_files, read_folder
from lowrank_jax.data.builders.glue.prepared import prepared_files, read_tfds
from lowrank_jax.data.builders.glue.specs import GLUE

FOLDER_VARIABLE = "LOWRANK_JAX_GLUE_DIR"


def load_glue(
    task: str, split: str, data_dir: str | os.PathLike | None = None, allow_partial: bool = False
) -> tuple[GlueRows, str | None]:
    """The rows of a split, and a note where their number is not the official one.

    Args:
      task: a name of `specs.GLUE`.
      split: "train" or "dev"; for mnli "train", "dev_matched" or "dev_mismatched".
      data_dir: folder of the tsv files (see `read_folder`); default $LOWRANK_JAX_GLUE_DIR, and without that TFDS,
        which downloads at the first use.
      allow_partial: True accepts any number of rows.

    Returns:
      (rows, None), or (rows, what is missing).

    Raises:
      UserError: unknown task or split, no network and no files, damaged files, or another number of rows than the
        official one without allow_partial.
    """
    if task not in GLUE:
        raise unknown_name("GLUE task", task, GLUE)
    if split not in GLUE[task].splits:
        raise unknown_name(f"split of {task}", split, GLUE[task].splits)
    folder = _folder(data_dir)
    rows = read_folder(task, split, folder) if folder else read_tfds(task, split)
    official = GLUE[task].rows[split]
    if len(rows) in official:
        return rows, None
    if not len(rows):
        raise UserError(f"{rows.source}: has no rows; fetch it again")
    counts = f"{len(rows)} rows, officially {' or '.join(map(str, official))}"
    if not allow_partial:
        raise UserError(
            f"{rows.source}: has {counts}; fetch the whole file, or set task.allow_partial=True to run on this one"
        )
    return rows, f"{task} {split}: {counts}"


def has_split(task: str, split: str, data_dir: str | os.PathLike | None = None) -> bool:
    """Whether there are rows of `split` to load: a folder may have only some splits, TFDS has all."""
    folder = _folder(data_dir)
    return folder is None or has_files(task, split, folder)


def split_files(task: str, split: str, data_dir: str | os.PathLike | None = None) -> list[Path]:
    """The files that `load_glue` reads for a split; none where they do not exist."""
    folder = _folder(data_dir)
    if folder is None:
        return prepared_files(task, split)
    return files_of(task, split, folder) if folder.expanduser().is_dir() else []


def _folder(data_dir: str | os.PathLike | None) -> Path | None:
    folder = data_dir or os.environ.get(FOLDER_VARIABLE)
    return Path(folder) if folder else None
