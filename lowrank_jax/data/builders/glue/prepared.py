"""GLUE from TFDS's `glue/*`, without TensorFlow: downloaded and prepared as array_record at the first use."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.data.builders.glue.folder import GlueRows
from lowrank_jax.data.builders.glue.specs import GLUE
from lowrank_jax.data.builders.lock import folder_lock

REACH = 5.0  # seconds for a first answer; TFDS itself tries each download eleven times
HOST = "https://dl.fbaipublicfiles.com"
REMEDY = (
    "set task.data_dir or LOWRANK_JAX_GLUE_DIR to a folder of GLUE's tsv files, or prepare glue/{task} with TFDS on a "
    "machine with network and set TFDS_DATA_DIR to its folder"
)


def read_tfds(task: str, split: str) -> GlueRows:
    """The rows of `split`, in the official files' order, from $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: TFDS is missing, there is no network at the first use, or the folder cannot be written or read.
    """
    spec, folder = GLUE[task], _root()
    try:
        builder = _builder(task)
        folder = Path(builder.data_dir)
        if not builder.info.splits:
            with folder_lock(folder.parents[1] / f".{task}"):
                builder = _builder(task)  # another process may have prepared it while we waited
                if not builder.info.splits:
                    _prepare(task, builder)
        source = builder.as_data_source(split=_named(split))
        rows = sorted(source.__getitems__(list(range(len(source)))), key=lambda row: int(row["idx"]))
        texts = [[row[name].decode() for row in rows] for name in spec.features]
    except UserError:
        raise
    except Exception as error:  # TFDS, etils and array_record each raise exceptions of different classes
        text = one_line(error)
        raise UserError(f"TFDS cannot give glue/{task} from {folder} ({text}); {REMEDY.format(task=task)}") from error
    labels = np.array([row["label"] for row in rows], np.int32 if spec.labels else np.float32)
    return GlueRows(texts[0], texts[1] if len(texts) == 2 else None, labels, f"{folder} {split}")


def prepared_files(task: str, split: str) -> list[Path]:
    """The array_record files of `split` that TFDS has prepared, without importing it."""
    return sorted((Path(_root()).expanduser() / "glue" / task).glob(f"*/glue-{_named(split)}.array_record*"))


def _root() -> str:
    return os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")


def _named(split: str) -> str:
    return split.replace("dev", "validation")


def _builder(task: str) -> Any:
    try:
        import tensorflow_datasets as tfds
        import tensorflow_datasets.text  # registers glue: without TensorFlow, TFDS does not find it by itself
    except ImportError as error:
        raise UserError(
            f"glue/{task} needs tensorflow-datasets and array_record ({error}); "
            "pip install 'tensorflow-datasets>=4.9.10' importlib_resources 'array_record>=0.8.6', "
            "or set task.data_dir to a folder of GLUE's tsv files"
        ) from error
    return tfds.builder(f"glue/{task}", file_format="array_record", data_dir=os.environ.get("TFDS_DATA_DIR"))


def _prepare(task: str, builder: Any) -> None:
    import tensorflow_datasets as tfds

    url = builder.builder_config.data_url  # "" for mrpc, which has no archive
    _reach(task, url or HOST)
    downloads = Path(builder.data_dir).parents[2] / "downloads"
    if url:
        # TFDS unpacks with TensorFlow, but accepts a folder in place of an archive if its name is "ZIP." and the
        # archive's.
        manager = tfds.download.DownloadManager(
            download_dir=downloads, dataset_name=builder.name, url_infos=builder.url_infos
        )
        archive = Path(manager.download(url))
        unpacked = downloads / "extracted" / f"ZIP.{archive.name}"
        if not unpacked.is_dir():
            part = unpacked.with_name(f"{unpacked.name}.part")
            with zipfile.ZipFile(archive) as file:
                file.extractall(part)
            part.rename(unpacked)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_dir=downloads, download_config=config)


def _reach(task: str, url: str) -> None:
    """Requests the file's headers, which fails within seconds on a machine without network."""
    import requests

    try:
        requests.head(url, timeout=REACH, allow_redirects=True)
    except requests.RequestException as error:
        raise UserError(
            f"cannot reach {HOST} to download glue/{task} ({type(error).__name__}); {REMEDY.format(task=task)}"
        ) from None
