"""Writes a generation data set in TFDS's format, after which its official files are not needed any more."""

import contextlib
import io
import os
from pathlib import Path

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.data.builders.lock import folder_lock
from lowrank_jax.data.builders.nlg.prepared import open_builder
from lowrank_jax.data.builders.nlg.source import load_nlg
from lowrank_jax.data.builders.nlg.specs import NLG


def prepare(task: str, data_dir: str | os.PathLike, allow_partial: bool = False) -> Path:
    """Writes a data set's splits into TFDS's folder ($TFDS_DATA_DIR, ~/tensorflow_datasets); returns where.

    Args:
      task: a name of `specs.NLG`.
      data_dir, allow_partial: of `source.load_nlg`.

    Raises:
      UserError: TFDS is missing, what `load_nlg` refuses, or the folder cannot be written.
    """
    loaded = {split: load_nlg(task, split, data_dir, allow_partial)[0] for split in NLG[task].files}
    builder = open_builder(task, loaded.__getitem__)
    folder = Path(builder.data_dir)
    try:
        with folder_lock(folder.parent), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(io.StringIO()):  # TFDS's progress bars
                builder.download_and_prepare()
    except Exception as error:  # TFDS, etils and array_record each raise exceptions of different classes
        raise UserError(f"cannot write {folder} ({one_line(error)}); free space, or set TFDS_DATA_DIR") from error
    return folder
