"""The prepared TFDS folder of uuid_pairs: built once under a lock, checked whenever it is opened, read by row."""

import contextlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.lock import folder_lock
from lowrank_jax.data.builders.uuid_pairs.pairs import VERSION, config_name, generate_pairs

CHECKED_ROWS = 64  # rows compared with the generator at each opening; reading all 10,000 would double the start-up


def load_pairs(pairs: int, seed: int, data_dir: str | os.PathLike | None = None) -> "PairSource":
    """The pairs as a TFDS data source; prepared on first use, and prepared again where the folder is damaged.

    Args:
      pairs: how many, at least 1.
      seed: seed of `generate_pairs`, at least 0 (it names a folder).
      data_dir: TFDS folder; default $TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
      UserError: TFDS is missing, `pairs` or `seed` is out of range, or the folder cannot be written.
    """
    if pairs < 1 or seed < 0:
        raise UserError(f"uuid_pairs needs pairs >= 1 and seed >= 0, got pairs={pairs}, seed={seed}")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    folder = root / "uuid_pairs" / config_name(pairs, seed)
    expected = generate_pairs(pairs, seed)
    source, fault = _open(root, pairs, seed, expected)
    if source is None:
        try:
            with folder_lock(folder):
                source, fault = _open(root, pairs, seed, expected)  # another process may have built it while we waited
                if source is None:
                    _remove_leftovers(folder)
                    _prepare(root, pairs, seed)
                    source, fault = _open(root, pairs, seed, expected)
        except OSError as error:
            raise _unwritable(root, error) from error
    if source is None:
        assert fault is not None
        raise _unwritable(root, fault)
    return source


class PairSource:
    """Random access to {"key": str, "value": str} over TFDS's array_record files; `expected` are the seed's pairs."""

    def __init__(self, source: Any, folder: Path, expected: Sequence[tuple[str, str]]):
        self._source, self.folder, self.expected = source, folder, expected

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, str]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, str]]:
        """Several rows in one read: two to three times faster than one by one."""
        indices = [int(i) for i in indices]
        if not all(0 <= i < len(self) for i in indices):
            raise IndexError(f"rows {min(indices)} to {max(indices)} of {len(self)}")
        try:
            rows = self._source.__getitems__(indices)
        except Exception as error:  # array_record reports damage in several exception classes
            raise UserError(f"cannot read {self.folder} ({_short(error)}); delete it and run again") from error
        return [{name: _text(row[name]) for name in ("key", "value")} for row in rows]


def _builder(root: Path, pairs: int, seed: int) -> Any:
    try:
        from lowrank_jax.data.builders.uuid_pairs.uuid_pairs import UuidPairs, UuidPairsConfig
    except ImportError as error:
        raise UserError(
            f"uuid_pairs needs tensorflow-datasets and array_record ({error}); "
            "pip install 'tensorflow-datasets>=4.9.10' importlib_resources 'array_record>=0.8.6'"
        ) from error
    config = UuidPairsConfig(pairs=pairs, seed=seed)
    # Listed by name: TFDS warns of a config that is not listed, and refuses a second object for one that is.
    config = UuidPairs.builder_configs.setdefault(config.name, config)
    return UuidPairs(config=config, data_dir=str(root), file_format="array_record")


def _open(root: Path, pairs: int, seed: int, expected: list) -> tuple[PairSource | None, Exception | None]:
    """(source, None), or (None, what is wrong with the folder)."""
    folder = root / "uuid_pairs" / config_name(pairs, seed) / VERSION
    if not (folder / "dataset_info.json").exists():
        return None, FileNotFoundError(f"{folder} is not prepared")
    try:
        source = PairSource(_builder(root, pairs, seed).as_data_source(split="train"), folder, expected)
        indices = sorted({i * (pairs - 1) // (CHECKED_ROWS - 1) for i in range(CHECKED_ROWS)})
        rows = source.__getitems__(indices) if len(source) == pairs else None
    except UserError as error:
        if isinstance(error.__cause__, ImportError):  # TFDS is missing, which is not the folder's fault
            raise
        return None, error
    except Exception as error:  # TFDS, etils and array_record raise different exceptions for a damaged folder
        return None, error
    if rows != [dict(zip(("key", "value"), expected[i], strict=True)) for i in indices]:
        return None, ValueError(f"{folder} has other pairs than its name says")
    return source, None


def _prepare(root: Path, pairs: int, seed: int) -> None:
    """Builds into TFDS's temporary folder, which TFDS renames when it is complete."""
    builder = _builder(root, pairs, seed)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # TFDS's progress bars
        try:
            builder.download_and_prepare()
        except (UserError, OSError):
            raise
        except Exception as error:  # array_record's writer reports a full disk as a RuntimeError or ValueError
            raise OSError(_short(error)) from error


def _remove_leftovers(folder: Path) -> None:
    """Deletes what a killed build or a damaged copy left in `folder`; only called under the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value  # array_record gives bytes


def _short(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _unwritable(root: Path, error: BaseException) -> UserError:
    return UserError(
        f"cannot write uuid_pairs under {root} ({_short(error)}); "
        "free space there, or set TFDS_DATA_DIR or data_dir to a writable folder"
    )
