"""Finds what each key of a PEFT file holds, and checks that none is left over or missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_jax.adapters.leaves.merge import is_tied
from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.peft.config import HEAD, HFModule, PeftConfig
from lowrank_jax.interop.peft.files import PeftFiles, some
from lowrank_jax.interop.readers import Reader, Tensors

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
TABLE = "lora_embedding_"  # followed by A [r, rows] or B [d, r], without ".weight"
DELTA = "token_adapter.trainable_tokens_delta"  # the new values of a table's rows that were trained alone
# Where a whole table may be: plain, below its LoRA, or below the rows that were trained alone.
WHOLE = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")
MODELS = ("model.", "transformer.", "bert.", "roberta.", "deberta.")  # what a class with a head puts before its model
EMBEDDINGS = ("embed/embedding", "embed/word/embedding")  # ours, of token ids
GROWN = (
    "the vocabulary has grown without its embedding; save the adapter again with save_embedding_layers=True, or give a "
    "base whose embedding was resized"
)
SAVED, ORIGINAL = "modules_to_save", "original_module"


def spelled(rows: Sequence[Row], reader: Reader, bare: bool) -> tuple[Row, ...]:
    """The key table with the names as the file has them: with the model's prefix, or without it.

    An adapter that was trained on transformers' AutoModel has no prefix. One that was trained on a class with a head
    has a prefix, even if the base at hand is the model without a head.

    Args:
      bare: the base is a model without a head, so its own table has no prefix.
    """
    keys = [key.removeprefix(PREFIX) for key in list(reader.keys())]
    prefix = next((p for p in MODELS if any(row.source.startswith(p) for row in rows)), None)
    if prefix is None:
        prefix = next((p for p in MODELS if any(key.startswith(p) for key in keys)), None) if bare else None
        return tuple(rows) if prefix is None else tuple(_renamed(row, prefix + row.source) for row in rows)
    parts = {row.source.removeprefix(prefix).split(".")[0] for row in rows if row.source.startswith(prefix)}
    if any(key.startswith(prefix) for key in keys) or not any(key.split(".")[0] in parts for key in keys):
        return tuple(rows)
    return tuple(_renamed(row, row.source.removeprefix(prefix)) for row in rows)


def _renamed(row: Row, source: str) -> Row:
    return Row(source, row.target, row.shape, row.transform)


def table_name(rows: Sequence[Row]) -> str:
    """The name of the input embedding's module; "" of a key table without one."""
    return next((row.source for row in rows if row.target in EMBEDDINGS), "").removesuffix(".weight")


def whole_key(reader: Reader, module: str) -> str | None:
    """The key that holds the whole weight of an embedding or of the output layer, if the file has it."""
    held = set(reader.keys())
    return next((key for name in WHOLE if (key := f"{PREFIX}{module}.{name}") in held), None)


def adapter_tensors(config: PeftConfig, module: HFModule, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple]:
    """{name below the module: shape} of the tensors that a module's adapter must have."""
    d_in = shapes[module.weights[0]][-2]
    d_out = sum(shapes[weight][-1] for weight in module.weights)
    rank = config.rank(module.name)
    if module.table:
        if config.method != "lora":
            raise UserError(f"{module.name} is an embedding, which has no {config.method} here; merge it in PEFT first")
        return {f"{TABLE}A": (rank, d_in), f"{TABLE}B": (d_out, rank)}
    if config.method == "mora":
        if len(module.parts) > 1:
            raise UserError(f"{module.name} is fused here, and MoRA's square does not split; target other modules")
        size = int(((d_in + d_out) * rank) ** 0.5 + 0.5)
        size = size // 2 * 2 if config.mora_type == 6 else size
        return {"lora_A.weight": (size, size), "lora_B.weight": (size, size)}
    wanted = {"lora_A.weight": (rank, d_in), "lora_B.weight": (d_out, rank)}
    return wanted | ({MAGNITUDE: (d_out,)} if config.method == "dora" else {})


def saved_keys(files: PeftFiles, rows: Sequence[Row], layers: int, adapted: set[str]) -> dict[str, str]:
    """{key of the base's tensor: key in the file} of trained biases and of modules and tables saved whole.

    Raises:
      UserError: a trained embedding is the base's output layer too, and the file has no output layer.
    """
    config, reader = files.config, files.reader
    held, saved, targets = set(reader.keys()), {}, {row.target for row in rows}
    tables = (table_name(rows), HEAD)
    for row in rows:
        for source in row.sources(layers):
            module, _, leaf = source.rpartition(".")
            biased = leaf == "bias" and (config.bias == "all" or (config.bias == "lora_only" and module in adapted))
            # Of an adapted embedding or head, and of a resized one, PEFT saves the frozen weight too.
            whole = whole_key(reader, module) if leaf == "weight" and module in (*tables, *adapted) else None
            if not (biased or whole or config.saves(module)):
                continue
            tied = row.target.endswith("/embedding") and is_tied(row.target.rpartition("/")[0], targets)
            if tied and config.saves(module) and module not in adapted and not whole_key(reader, HEAD):
                raise UserError(
                    f"{reader.path}: a trained {module} is this base's output head too, and PEFT trains a copy of it "
                    "alone; merge it in PEFT first"
                )
            keys = [f"{PREFIX}{name}" for name in (source, f"{module}.base_layer.{leaf}")]
            saved[source] = whole or next((key for key in keys if key in held), keys[0])
    return saved


def token_keys(files: PeftFiles, rows: Sequence[Row]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{path of our table: (key of the rows' new values, their ids)} of tables of which single rows were trained."""
    first = table_name(rows)
    found = {}
    for row in rows:
        module = row.source.removesuffix(".weight")
        if module not in (first, HEAD):
            continue
        ids = files.config.rows_of(module, module == first)
        if ids is not None:
            found[row.target] = (f"{PREFIX}{module}.{DELTA}", ids)
    return found


def check_keys(
    files: PeftFiles, rows: Sequence[Row], adapted: Sequence[HFModule], shapes, saved: dict[str, str]
) -> None:
    """Checks that every key is used, none is missing, and all shapes are those of the config and the base.

    Raises:
      UserError: names the keys that do not fit.
    """
    config, reader = files.config, files.reader
    wanted: dict[str, tuple[int, ...] | None] = dict.fromkeys(saved.values())
    for module in adapted:
        for leaf, shape in adapter_tensors(config, module, shapes).items():
            wanted[f"{PREFIX}{module.name}.{leaf}"] = shape
    for path, (key, ids) in token_keys(files, rows).items():
        wanted[key] = (len(ids), shapes[path][0 if path.endswith("/kernel") else -1])
    copies = _copies(config, reader, saved) | _tied_copies(reader, rows, wanted)
    keys = reader.keys()
    held = [key for key in keys if key not in copies]
    if stray := [key for key in held if not key.startswith(PREFIX)]:
        raise UserError(f"{reader.path}: {some(stray)} lacks the prefix {PREFIX!r}; write it as PEFT does")
    missing, unknown = [key for key in wanted if key not in held], [key for key in held if key not in wanted]
    misshapen = [
        f"{key} {list(reader.shape(key))} instead of {list(shape)}"
        for key, shape in wanted.items()
        if shape and key in held and reader.shape(key) != shape
    ]
    faults = {"missing": missing, "unknown": unknown, "of another rank or shape": misshapen}
    if found := [f"{kind}: {some(keys)}" for kind, keys in faults.items() if keys]:
        raise UserError(f"{reader.path} does not fit its config and this base; {'; '.join(found)}")


def _copies(config: PeftConfig, reader: Reader, saved: dict[str, str]) -> set[str]:
    """Keys of copies: PEFT writes a saved module's biases (bias="all") or its resized table two more times.

    Raises:
      UserError: the copy in the trained module differs from what is read.
    """
    copies, held = set(), reader.keys()
    for key in held:
        module, kind, rest = _saved_part(key)
        # For a module inside the saved one, the key also has the adapter's name ("default").
        sources = [f"{module}.{name}" for name in (rest, rest.partition(".")[2]) if name]
        source = next((source for source in sources if source in saved), None)
        if not kind or source is None or not config.saves(module):
            continue
        if not (source.endswith("bias") and config.bias == "all") and f"{PREFIX}{source}" not in held:
            continue
        if kind == SAVED:
            trained = saved[source]
            if trained not in held or not np.array_equal(reader.read(key), reader.read(trained)):
                what = "bias" if source.endswith("bias") else "table"
                raise UserError(
                    f"{reader.path}: {key} and {trained} are one {what} in PEFT and differ here; save the adapter again"
                )
        copies.add(key)
    return copies


def _tied_copies(reader: Reader, rows: Sequence[Row], wanted: Mapping[str, Any]) -> set[str]:
    """Keys of an output layer that the base reads as its embedding, each equal to the embedding's.

    Raises:
      UserError: one differs.
    """
    if any(row.source == f"{HEAD}.weight" for row in rows):
        return set()
    table, held = table_name(rows), set(reader.keys())
    copies = set()
    for name in (*WHOLE, DELTA, f"{SAVED}.weight", f"{ORIGINAL}.weight"):
        key = f"{PREFIX}{HEAD}.{name}"
        if key not in held:
            continue
        twins = [f"{PREFIX}{table}.{DELTA}"] if name == DELTA else [f"{PREFIX}{table}.{whole}" for whole in WHOLE]
        twin = next((twin for twin in twins if twin in wanted and twin in held), None)
        if twin is None:
            continue  # reported as unknown
        if ORIGINAL not in name and not np.array_equal(reader.read(key), reader.read(twin)):
            raise UserError(f"{reader.path}: {key} and {twin} differ, and this base has one table for both")
        copies.add(key)
    return copies


def _saved_part(key: str) -> tuple[str, str, str]:
    """("classifier", "modules_to_save", "dense.bias") of "base_model.model.classifier.modules_to_save.dense.bias"."""
    name = key.removeprefix(PREFIX)
    for kind in (SAVED, ORIGINAL):
        module, found, rest = name.partition(f".{kind}.")
        if found:
            return module, kind, rest
    return name, "", ""


def read_finite(reader: Tensors, key: str) -> np.ndarray:
    """A tensor in float32; raises UserError where it has NaN or infinity."""
    value = np.asarray(reader.read(key), np.float32)
    if not np.isfinite(value).all():
        raise UserError(f"{reader.path}: {key} is not finite; use an earlier checkpoint")
    return value
