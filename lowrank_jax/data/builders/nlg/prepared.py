"""Reads generation data sets that `prepare` wrote in TFDS's format, without their official files."""

import json
import os
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.data.builders.nlg.specs import NLG

REMEDY = (
    "set task.data_dir or LOWRANK_JAX_NLG_DIR to a folder of {title}'s official files ({source}), or prepare them "
    'once: lowrank_jax.data.builders.nlg.prepare.prepare("{task}", FOLDER)'
)


def read_prepared(task: str, split: str) -> tuple[list[NlgRow], str]:
    """(the rows of a split, the folder that they come from).

    Raises:
      UserError: TFDS is missing, the data set is not prepared, or it is damaged.
    """
    spec, remedy = NLG[task], REMEDY.format(task=task, title=NLG[task].title, source=NLG[task].source)
    if not prepared_files(task, split):
        raise UserError(f"no files of {spec.title} are named, and TFDS has none prepared; {remedy}")
    try:
        builder = open_builder(task)
        source = builder.as_data_source(split=split)
        rows = source.__getitems__(list(range(len(source))))
        return [_row(row) for row in rows], str(builder.data_dir)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"TFDS cannot read {task} {split} ({one_line(error)}); {remedy}") from error


def prepared_files(task: str, split: str) -> list[Path]:
    """The array_record files of a split that TFDS has, without importing it."""
    root = Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    return sorted((root / "lowrank_nlg" / task).glob(f"*/lowrank_nlg-{split}.array_record*"))


def open_builder(task: str, read: Any = None) -> Any:
    """The TFDS builder of a data set.

    Args:
      task: a name of `specs.NLG`.
      read: split -> rows, needed to prepare it; None to read what is prepared.

    Raises:
      UserError: TFDS is missing.
    """
    try:
        from lowrank_jax.data.builders.nlg.tfds_builder import LowrankNlg
    except ImportError as error:
        raise UserError(
            f"{task} from TFDS's folder needs tensorflow-datasets and array_record ({error}); pip install "
            "'tensorflow-datasets>=4.9.10' importlib_resources 'array_record>=0.8.6', or set task.data_dir"
        ) from error
    config: Any = LowrankNlg.builder_configs[task]
    config.read = read
    return LowrankNlg(config=config, data_dir=os.environ.get("TFDS_DATA_DIR"), file_format="array_record")


def _row(row: Any) -> NlgRow:
    context, category, place, table = (_text(row[name]) for name in ("context", "category", "place", "table"))
    return NlgRow(context, tuple(map(_text, row["references"])), place, category, json.loads(table) if table else None)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
