"""Writes params in HF's layout, in one file or in shards: config.json, safetensors and the tokenizer."""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank_jax.checkpoints.safetensors_file import write_safetensors
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.types import Report
from lowrank_jax.interop import keymap
from lowrank_jax.interop.carried import Carried
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.readers import INDEX, SINGLE
from lowrank_jax.text.tokenizers import Tokenizer, save_tokenizer

EXPORT_DTYPES = ("float32", "bfloat16", "float16")


def exporter(
    table: Callable[[Any], Sequence[Row]],
    config_to_hf: Callable[[Any, str, Tokenizer | None], dict[str, Any]],
    join: Callable[[Any], Any] | None = None,
) -> Callable[..., Path]:
    """The `export_params` of an architecture.

    Args:
      table: its key table, of a config.
      config_to_hf: the content of config.json, of a config, the dtype's name and the tokenizer.
      join: makes of our parameters those that the table names; None where these are the same.
    """

    def export_params(
        params: Any,
        config: Any,
        folder: str | Path,
        dtype: str = "float32",
        shard_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        report: Report | None = None,
        carried: Carried | None = None,
    ) -> Path:
        """Writes the model in HF's layout; transformers loads the folder. See `write_checkpoint`."""
        rows, layers, values = table(config), config.num_hidden_layers, config_to_hf(config, dtype, tokenizer)
        params = params if join is None else join(params)
        return write_checkpoint(params, rows, layers, values, folder, dtype, shard_size, tokenizer, report, carried)

    return export_params


class Joined:
    """Leaves [L, ..., n] joined along their last axis; each layer is joined on the host when it is read."""

    def __init__(self, leaves: Sequence[Any]):
        self._leaves = leaves
        self.shape = (*leaves[0].shape[:-1], sum(leaf.shape[-1] for leaf in leaves))

    def __getitem__(self, layer: int) -> np.ndarray:
        return np.concatenate([np.asarray(leaf[layer]) for leaf in self._leaves], axis=-1)


def write_checkpoint(
    params: Any,
    rows: Sequence[Row],
    layers: int,
    hf_config: dict[str, Any],
    folder: str | Path,
    dtype: str = "float32",
    shard_size: int | None = None,
    tokenizer: Tokenizer | None = None,
    report: Report | None = None,
    carried: Carried | None = None,
) -> Path:
    """Writes a model in HF's layout; transformers loads the folder.

    Every file is written under a temporary name and renamed, config.json last: a folder that has it is complete.

    Args:
      params: the tree below "params"; leaves are stacked over layers. Fetched from the devices tensor by tensor.
      rows, layers: the key table and its number of layers.
      hf_config: the content of config.json.
      dtype: "float32", "bfloat16" or "float16", of the written tensors.
      shard_size: bytes per file; None writes one file, which needs the whole model in host memory for a moment.
      tokenizer: written to the folder too.
      report: called with numbers of values, each counted twice: when it is fetched, and when its file is written.
      carried: the base's other files and fields (see `carried.carry`), with its tokenizer, which go into the folder and
        into config.json; such files of an earlier export are removed.

    Raises:
      UserError: unknown dtype, a value outside float16's range, or a disk that is full or read-only.
    """
    if dtype not in EXPORT_DTYPES:
        raise unknown_name("export dtype", dtype, EXPORT_DTYPES)
    folder = Path(folder)
    total = 2 * sum(math.prod(row.shape) * len(row.sources(layers)) for row in rows)

    def advance(values: int) -> None:
        if report is not None:
            report(values, total)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = []
        for shard in _shards(params, rows, layers, dtype, shard_size, advance):
            files.append((folder / f".part-{len(files)}", list(shard), sum(x.nbytes for x in shard.values())))
            write_safetensors(files[-1][0], shard, {"format": "pt"})
            advance(sum(x.size for x in shard.values()))
        count = len(files)
        names = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for old in [folder / "config.json", folder / INDEX, *folder.glob("model*.safetensors")]:
            old.unlink(missing_ok=True)  # an earlier export is only replaced once all weights of this one are written
        for (part, _, _), name in zip(files, names, strict=True):
            os.replace(part, folder / name)
        if count > 1:
            weight_map = {key: name for (_, keys, _), name in zip(files, names, strict=True) for key in keys}
            index = {"metadata": {"total_size": sum(size for *_, size in files)}, "weight_map": weight_map}
            _write_json(folder / INDEX, index)
        if carried is not None:
            carried.write(folder)
            hf_config = carried.config_with(hf_config)
        elif tokenizer is not None:
            save_tokenizer(tokenizer, folder)
        _write_json(folder / "config.json", hf_config)
    except (OSError, UserError) as error:
        for part in folder.glob(".part-*"):
            part.unlink(missing_ok=True)
        if isinstance(error, UserError):  # a value outside the dtype's range
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"cannot write {folder}: {reason}; free some space or name another folder") from None
    return folder


def special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The tokenizer's special ids for config.json, None without a tokenizer."""
    names = ("bos", "eos", "pad")
    return {f"{name}_token_id": getattr(tokenizer, f"{name}_id") if tokenizer else None for name in names}


def _shards(
    params, rows, layers: int, dtype: str, shard_size: int | None, advance: Callable[[int], None]
) -> Iterator[dict[str, np.ndarray]]:
    shard, used = {}, 0
    for key, tensor in keymap.unload(params, rows, layers):
        with np.errstate(over="ignore"):
            tensor = np.ascontiguousarray(tensor, jnp.dtype(dtype))
        if not keymap.is_finite(tensor):
            raise UserError(f"{key} is not finite in {dtype}; export as float32 or bfloat16")
        if shard and shard_size and used + tensor.nbytes > shard_size:
            yield shard
            shard, used = {}, 0
        shard[key] = tensor
        used += tensor.nbytes
        advance(tensor.size)
    yield shard


def _write_json(path: Path, value: dict[str, Any]) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
