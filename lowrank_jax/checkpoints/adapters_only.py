"""An adapter alone on disk: the trained leaves, their effective scales, their config, and the base they belong to."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank_jax.checkpoints.leaves import misfits
from lowrank_jax.checkpoints.safetensors_file import safetensors_bytes
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_bytes
from lowrank_jax.core.fingerprints import same, shown
from lowrank_jax.core.json_text import parse
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree

FORMAT_VERSION = 1
WEIGHTS, DESCRIPTION = "adapter.safetensors", "adapter.json"
SCALES = "scales/"


def save_adapter(
    folder: str | os.PathLike,
    trainable: Tree,
    config: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    scales: Mapping[str, Any],
    base: Mapping[str, str],
) -> None:
    """Writes adapter.safetensors and adapter.json; a reader sees either the old folder or the complete new one.

    Every process calls it (sharded leaves are gathered); process 0 writes.

    Args:
      folder: replaced if it already has an adapter.
      trainable: {"adapters": ..., "params": ...}, the trained leaves as arrays.
      config: JSON-able: method, rank, alpha, targets and the like; a list of several families'.
      scales: {path below "scales": factor, or list with one factor per layer}: the branch's multiplier, kept in float32
        with the weights: a reader need not know how it follows from alpha and rank.
      base: {"name", "fingerprint"} of the frozen model, and "quantize" where it was quantised.

    Raises:
      UserError: the folder cannot be written; its previous content is kept.
    """
    tensors = {path: on_host(leaf) for path, leaf in flatten(trainable).items()}
    if not tensors:
        raise UserError(f"nothing was trained, so there is no adapter to write to {folder}")
    if jax.process_index() != 0:
        return
    tensors |= {SCALES + path: np.asarray(scale, np.float32) for path, scale in scales.items()}
    weights = safetensors_bytes(tensors, {"format": "lowrank_jax", "format_version": str(FORMAT_VERSION)})
    description = {
        "format_version": FORMAT_VERSION,
        "base": {"name": base["name"], "fingerprint": base["fingerprint"]} | _quantize(base),
        "config": dict(config) if isinstance(config, Mapping) else list(config),
        "leaves": {path: {"dtype": str(leaf.dtype), "shape": list(leaf.shape)} for path, leaf in tensors.items()},
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    text = json.dumps(description, indent=1) + "\n"
    folder = Path(os.path.abspath(folder))
    partial, old = (folder.with_name(f"{folder.name}.{word}.tmp") for word in ("new", "old"))
    if folder.exists() and not (folder / DESCRIPTION).exists() and any(folder.iterdir()):
        raise UserError(f"{folder} has something other than an adapter in it; choose another folder")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, content in ((WEIGHTS, weights), (DESCRIPTION, text.encode())):
            with open(partial / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise UserError(
            f"cannot write the adapter to {folder} ({error.strerror}); free space there or choose another folder"
        ) from error
    shutil.rmtree(old, ignore_errors=True)


def load_adapter(
    folder: str | os.PathLike, fingerprint: str | None = None, abstract: Tree | None = None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Reads what `save_adapter` wrote.

    Args:
      folder: with adapter.safetensors and adapter.json.
      fingerprint: of the base it is for; None accepts an adapter of any base.
      abstract: tree whose paths and shapes the adapter's trained leaves must have; None accepts any.

    Returns:
      (trainable, scales, description): trees of NumPy arrays, and adapter.json's content (base, config, leaves, ...).

    Raises:
      UserError: there is no adapter, or it is damaged, of a newer format or another base, or its leaves do not fit.
    """
    folder = Path(folder)
    description = _read_description(folder)
    base = description["base"]
    if fingerprint is not None and not same(base["fingerprint"], fingerprint, f"the adapter in {folder}"):
        raise UserError(
            f"the adapter in {folder} was trained on {base['name']} with fingerprint {shown(base['fingerprint'])}, not "
            f"on this base with fingerprint {shown(fingerprint)} (weights or config differ); load the base it was "
            "trained on"
        )
    tensors = _read_weights(folder, description)
    scales = {path.removeprefix(SCALES): leaf for path, leaf in tensors.items() if path.startswith(SCALES)}
    trainable = {path: leaf for path, leaf in tensors.items() if not path.startswith(SCALES)}
    if abstract is not None:
        wrong = misfits(_shapes(trainable), _shapes(flatten(abstract)))
        if wrong:
            raise UserError(
                f"the adapter in {folder} does not fit the model: {', '.join(wrong)}; "
                f"build the model with the adapter's own config, in {folder / DESCRIPTION}"
            )
    return unflatten(trainable), unflatten(scales), description


def _read_description(folder: Path) -> dict[str, Any]:
    if kind_of(folder / DESCRIPTION) is None:
        raise UserError(f"no adapter in {folder}: it has no {DESCRIPTION}; give the folder that a run wrote")
    try:
        description = parse(read_bytes(folder / DESCRIPTION), finite=True)
        version = int(description["format_version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, DESCRIPTION, error) from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"the adapter in {folder} has format {version}, this code reads up to {FORMAT_VERSION}; "
            "use the newer lowrank_jax that wrote it"
        )
    try:
        base = description["base"]
        return description | {"base": {key: str(base[key]) for key in ("name", "fingerprint")} | _quantize(base)}
    except (KeyError, TypeError) as error:
        raise _damaged(folder, DESCRIPTION, error) from error


def _quantize(base: Mapping[str, str]) -> dict[str, str]:
    return {"quantize": str(base["quantize"])} if "quantize" in base else {}


def _read_weights(folder: Path, description: dict[str, Any]) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        content = read_bytes(folder / WEIGHTS)
        if hashlib.sha256(content).hexdigest() != description["sha256"]:
            raise ValueError("its content is not what was written")
        # Not safetensors.numpy.load, which knows no bfloat16.
        return {
            path: np.frombuffer(tensor["data"], _dtype(description["leaves"][path]["dtype"])).reshape(tensor["shape"])
            for path, tensor in deserialize(content)
        }
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise _damaged(folder, WEIGHTS, error) from error


def _dtype(name: Any) -> np.dtype:
    """The dtype of a name such as "bfloat16"; NumPy accepts other texts too, such as "4," and "f4,f4"."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{str(name)[:40]!r} is no dtype")
    return jnp.dtype(name)


def _damaged(folder: Path, name: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{folder / name} is damaged ({type(error).__name__}: {reason}); copy or export the adapter again")


def _shapes(flat: Mapping[str, Any]) -> dict[str, str]:
    return {path: str(list(leaf.shape)) for path, leaf in flat.items()}


def on_host(leaf: Any) -> np.ndarray:
    """A leaf as one array on this host; where processes share a leaf, all of them must call this."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated:
        from jax.experimental.multihost_utils import process_allgather

        return np.asarray(process_allgather(leaf, tiled=True))
    return np.asarray(leaf, order="C")
