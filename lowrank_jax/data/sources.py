"""Reads a user's rows from files, folders of them, and data sets of the Hub or of TFDS by name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.core.files import check_file, kind_of
from lowrank_jax.core.json_text import NotJson, parse
from lowrank_jax.data.lines import read_lines

HUB, TFDS = "hub:", "tfds:"
PARQUET = ".parquet"
FOLDER_KINDS = (".jsonl", ".jsonl.gz", ".jsonl.xz", PARQUET)
ARRAYS = (".json", ".json.gz", ".json.xz")  # one JSON array of rows, or one row a line
BATCH = 1024  # rows of a Parquet file read at once

Found = Iterator[tuple[str, int, Any]]  # ("line" or "row", its number from 1 on, the row)


def is_named(source: str) -> bool:
    """Whether a source is a data set's name, not a path."""
    return source.startswith((HUB, TFDS))


def data_files(source: str) -> list[Path]:
    """The files of a source, in the order in which they are read; none where it names a data set.

    Args:
      source: a file, a folder, whose files are sorted by name, or a data set's name.

    Raises:
      UserError: a folder without data files.
    """
    if is_named(source):
        return []
    path = Path(source)
    if kind_of(path) != "folder":
        return [path]
    found = sorted(file for file in path.iterdir() if file.name.endswith(FOLDER_KINDS) and kind_of(file) == "file")
    if not found:
        raise UserError(f"{path}: a folder without data files ({', '.join(FOLDER_KINDS)}); name another or a file")
    return found


def read_source(source: str) -> Iterator[tuple[str, Found]]:
    """Yields (place, rows) for each file of a source, or for the data set that it names; rows are read lazily.

    Raises:
      UserError: nothing is there, it cannot be read, or the package that reads it is absent.
    """
    if is_named(source):
        yield source, _numbered(source, open_named(source))
    else:
        for path in data_files(source):
            yield str(path), _file(path)


def _file(path: Path) -> Found:
    if path.suffix == PARQUET:
        return _parquet(path)
    if path.name.endswith(ARRAYS) and _starts_an_array(path):
        return _array(path)
    return _lines(path)


def _lines(path: Path) -> Found:
    for number, line in read_lines(path):
        try:
            yield "line", number, parse(line)
        except NotJson as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); write one JSON object per line") from error


def _starts_an_array(path: Path) -> bool:
    return next((line.lstrip().startswith("[") for _, line in read_lines(path)), False)


def _array(path: Path) -> Found:
    try:
        rows = parse("".join(line for _, line in read_lines(path)))
    except NotJson as error:
        raise UserError(f"{path}: not JSON ({error}); write one array of objects, or one object per line") from error
    for number, row in enumerate(rows, 1):
        yield "row", number, row


def _parquet(path: Path) -> Found:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} needs pyarrow; pip install pyarrow (the extra [parquet])") from None
    number = 0
    check_file(path, f"{path}: no such file; check the data path")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield "row", number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}, after row {number}: cannot be read ({one_line(error)}); fetch the file again"
        ) from error


def open_named(source: str) -> Sequence[Any]:
    """Random access to the rows of a named data set, which stay where they are.

    Raises:
      UserError: nothing of that name, it cannot be read, or the package that reads it is absent.
    """
    return _hub(source) if source.startswith(HUB) else _tfds(source)


def _hub(source: str) -> Any:
    """hub:owner/name[/config][:split] through `datasets`."""
    try:
        import datasets  # pyright: ignore[reportMissingImports] optional
    except ImportError:
        raise UserError(f"{source} needs the datasets package; pip install datasets (the extra [data])") from None
    name, split = _name_and_split(source, HUB)
    parts = name.split("/")
    config = parts[2] if len(parts) == 3 else None
    if len(parts) > 3 or not all(parts):
        raise UserError(f"{source}: write {HUB}owner/name:split, or {HUB}owner/name/config:split")
    try:
        return datasets.load_dataset("/".join(parts[:2]), config, split=split)
    except Exception as error:  # of the network, the Hub, the builder or the split: the library raises many kinds
        raise _unread(source, error) from error


def _tfds(source: str) -> Any:
    """tfds:name[:split], prepared in the layout that is read without TensorFlow."""
    try:
        import tensorflow_datasets as tfds
        import tensorflow_datasets.text  # registers its text data sets, which without TensorFlow are not found
    except ImportError:
        raise UserError(f"{source} needs tensorflow-datasets; pip install tensorflow-datasets") from None
    name, split = _name_and_split(source, TFDS)
    try:
        builder: Any = tfds.builder(name, file_format="array_record", data_dir=os.environ.get("TFDS_DATA_DIR"))
        if not builder.info.splits:
            builder.download_and_prepare()
        return builder.as_data_source(split=split)
    except Exception as error:  # as in `_hub`; many data sets of TFDS need TensorFlow
        raise _unread(source, error) from error


def _name_and_split(source: str, kind: str) -> tuple[str, str]:
    name, _, split = source.removeprefix(kind).partition(":")
    if not name:
        raise UserError(f"{source}: names no data set; write {kind}name:split")
    return name, split or "train"


def _unread(source: str, error: Exception) -> UserError:
    return UserError(f"{source}: cannot be loaded ({one_line(error)}); check the name, the split and the network")


def _numbered(source: str, rows: Sequence[Any]) -> Found:
    number = 0
    try:
        for number in range(1, len(rows) + 1):
            yield "row", number, plain_row(rows[number - 1])
    except UserError:
        raise
    except Exception as error:  # a row that its library cannot read
        raise _unread(f"{source}, after row {number}", error) from error


def plain_row(value: Any) -> Any:
    """Bytes as texts and arrays as lists, through all levels: TFDS gives both."""
    if isinstance(value, Mapping):
        return {key: plain_row(each) for key, each in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if hasattr(value, "tolist"):
        return plain_row(value.tolist())
    return [plain_row(each) for each in value] if isinstance(value, list | tuple) else value
