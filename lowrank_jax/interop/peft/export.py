"""Writes adapters as a PEFT folder: LoRA, rsLoRA, DoRA for stock PEFT, MoRA for its authors' fork.

Ranks that were padded with zeros are cut back, and layers without an adapter (scale 0) are left out. Where the Hugging
Face model fuses several of our modules (GPT-2's query, key, value), their A are concatenated and B is block-diagonal.
A sequence classifier's head is written whole, trained or not: PEFT needs it for the task.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.adapters import AdapterConfig, Plan
from lowrank_jax.adapters.leaves.merge import is_tied
from lowrank_jax.adapters.sites import Site
from lowrank_jax.checkpoints.safetensors_file import write_safetensors
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.types import Tree
from lowrank_jax.interop.keymap import LAYER, Row
from lowrank_jax.interop.peft import mora_fork
from lowrank_jax.interop.peft.config import (
    CLASSIFIER,
    CONFIG,
    HEAD,
    WEIGHTS,
    HFModule,
    hf_modules,
    short_names,
    task_of,
)
from lowrank_jax.interop.peft.files import METADATA
from lowrank_jax.interop.peft.keys import DELTA, MAGNITUDE, PREFIX, TABLE

Leaf = dict[str, np.ndarray]


def save_peft(
    folder: str | os.PathLike,
    plan: Plan,
    variables: Mapping[str, Tree],
    rows: Sequence[Row],
    layers: int,
    base_name: str = "",
    fingerprint: str | None = None,
    trained: Sequence[str] = (),
    revision: str | None = None,
    token_rows: Mapping[str, Sequence[int]] | None = None,
) -> Path:
    """Writes adapter_model.safetensors and, last, adapter_config.json: a folder that has it is complete.

    `bases.peft.export_peft` takes these arguments from a loaded base.

    Args:
      folder: an adapter in it is replaced.
      plan: of the adapters.
      variables: {"params", "adapters", "scales"}.
      rows, layers: the base's key table in HF's names and number of layers.
      base_name: the name by which transformers loads the base (of the Hub, or a folder); PEFT's Auto classes need it.
      fingerprint: of the base; kept in the weights' header, where `load_peft` reads it.
      trained: paths below "params" that were trained too; they are written as biases or as whole modules.
      revision: of the base on the Hub.
      token_rows: {path of a table of which only some rows were trained: those rows}, PEFT's trainable_token_indices.

    Raises:
      UserError: PEFT cannot express the adapter, or the folder cannot be written.
    """
    if not plan.sites:
        raise UserError(f"there is no adapter to write to {folder}")
    config = _config_of(plan)
    flat = flatten({name: variables[name] for name in ("params", "adapters", "scales")})
    modules = hf_modules(rows, layers, tables=True)
    tensors, ranks, scales = _adapters(plan, config, flat, modules)
    if not tensors:
        raise UserError(f"every layer's adapter is switched off, so there is none to write to {folder}")
    task, hf_class = task_of(rows)
    if any(name.startswith(CLASSIFIER) or f"{name}." == CLASSIFIER for name in ranks):
        task = None  # with an adapter on a head, PEFT treats no other module as the head
    bias, whole = _beside(flat, rows, layers, set(trained), set(ranks), tensors, task == "SEQ_CLS")
    values = _config(config, modules, ranks, scales)
    values |= {"bias": bias, "modules_to_save": whole or None, "task_type": task}
    values |= {"base_model_name_or_path": base_name or None, "revision": revision}
    values["ensure_weight_tying"] = HEAD in whole and not any(row.source == f"{HEAD}.weight" for row in rows)
    if tokens := _token_rows(flat, rows, token_rows or {}, tensors):
        values["trainable_token_indices"] = tokens
    values["fan_in_fan_out"] = any(name in ranks for name in _conv1d(rows, layers))
    if task is None:
        values["auto_mapping"] = {"base_model_class": hf_class, "parent_library": "transformers"}
    note = json.dumps({"fingerprint": fingerprint, "scales": scales})
    return write_folder(Path(folder), tensors, values, note)


def _config_of(plan: Plan) -> AdapterConfig:
    """The plan's configuration for PEFT: several may differ only in sites, ranks and alphas.

    Raises:
      UserError: a family that PEFT lacks, several, of which a folder can have only one, or a LoftQ adapter.
    """
    if strange := sorted({site.family.name for site in plan.sites if not site.family.merges}):
        raise UserError(f"PEFT's LoRA has no {' and '.join(strange)}; keep that adapter in our own format")
    same = {"rank": 1, "alpha": 1.0, "targets": (), "exclude": (), "rank_pattern": (), "alpha_pattern": ()}
    if len({dataclasses.replace(config, **same) for config in plan.configs}) != 1:
        raise UserError(f"a PEFT folder has one method, not {plan.methods}; export the merged model")
    if plan.configs[0].init == "loftq":
        raise UserError(
            "a LoftQ adapter belongs to a 4-bit residual that PEFT cannot compute again; export the merged model"
        )
    return plan.configs[0]


def _adapters(
    plan: Plan, config: AdapterConfig, flat: Mapping[str, Any], modules: Mapping[str, HFModule]
) -> tuple[Leaf, dict[str, int], dict[str, float]]:
    """(tensors by PEFT's keys, ranks and scales by module) of the modules that have an adapter.

    Raises:
      UserError: a site has no module in the Hugging Face model.
    """
    homeless = {s.path for s in plan.sites} - {part for module in modules.values() for part in module.parts}
    if homeless:
        raise UserError(
            f"the Hugging Face model has no module for {sorted(homeless)}; leave them out of adapter.targets"
        )
    tensors, ranks, scales = {}, {}, {}
    for name, module in modules.items():
        found = _module(plan, config, flat, module)
        if found is None:
            continue
        leaf, scales[name], ranks[name] = found
        tensors |= {f"{PREFIX}{name}.{key}": np.ascontiguousarray(value) for key, value in leaf.items()}
    return tensors, ranks, scales


def _module(
    plan: Plan, config: AdapterConfig, flat: Mapping[str, Any], module: HFModule
) -> tuple[Leaf, float, int] | None:
    """(tensors below the module's name, scale, rank), or None without an adapter."""
    sites = {site.path: site for site in plan.sites if site.table == module.table}
    parts = [_part(sites[path], config, flat, module) if path in sites else None for path in module.parts]
    first = next((part for part in parts if part is not None), None)
    if first is None:
        return None
    rank = next(sites[path].spec.rank for path in module.parts if path in sites)
    if module.table:
        leaf, scale = first  # of one part
        return {f"{TABLE}A": leaf["a"].T, f"{TABLE}B": leaf["b"].T}, scale, leaf["a"].shape[1]
    if config.method == "mora":
        if len(parts) > 1:
            raise UserError(
                f"{module.name} is one module in PEFT, and MoRA's squares do not join; export the merged model"
            )
        return mora_fork.from_leaf(first[0]["m"]), 1.0, rank
    widths = [flat[f"params/{path}/kernel"].shape[-1] for path in module.parts]
    a, b, scale = _join([part and (part[0]["a"], part[0]["b"], part[1]) for part in parts], widths)
    tensors = {"lora_A.weight": a.T, "lora_B.weight": b.T}
    if config.method == "dora":
        norms = [
            part[0]["m"] if part else np.linalg.norm(_layer(flat[f"params/{path}/kernel"], module), axis=0)
            for part, path in zip(parts, module.parts, strict=True)
        ]
        tensors[MAGNITUDE] = np.concatenate(norms)
    return tensors, scale, a.shape[1]


def _part(site: Site, config: AdapterConfig, flat: Mapping[str, Any], module: HFModule) -> tuple[Leaf, float] | None:
    """(leaf, scale) of one of our sites in one layer; None where it is switched off."""
    path = site.path
    leaf = {name: _layer(flat[f"adapters/{path}/{name}"], module) for name in site.family.shapes(site.spec)}
    scale = float(np.asarray(flat[f"scales/{path}/scale"])[... if module.layer is None else module.layer])
    if config.method == "mora":
        return (leaf, scale) if scale else None
    if config.method == "dora" and not scale:
        # Left out, unless its magnitudes were trained.
        norms = np.linalg.norm(_layer(flat[f"params/{path}/kernel"], module), axis=0)
        if np.allclose(leaf["m"], norms, rtol=1e-5):
            return None
        leaf["a"], leaf["b"], scale = 0 * leaf["a"][:, :1], 0 * leaf["b"][:1], 1.0
    elif not scale:
        return None
    elif config.init not in ("pissa", "olora"):  # PEFT makes their residual by rank
        used = leaf["a"].any(0) | leaf["b"].any(1)
        rank = max(int(np.flatnonzero(used).max(initial=0)) + 1, 1)
        leaf["a"], leaf["b"] = leaf["a"][:, :rank], leaf["b"][:rank]
    return leaf, scale


def _layer(leaf: Any, module: HFModule) -> np.ndarray:
    return np.asarray(leaf if module.layer is None else leaf[module.layer], np.float32)


def _join(parts: list, widths: list[int]) -> tuple[np.ndarray, np.ndarray, float]:
    """One (A, B, scale) for concatenated outputs; zero columns of B where a part has no adapter."""
    held = [part for part in parts if part is not None]
    first_a, _, scale = held[0]
    same = all(np.array_equal(a, first_a) and s == scale for a, _, s in held)
    blocks, row, total = [], 0, first_a.shape[1] if same else sum(a.shape[1] for a, _, _ in held)
    for part, width in zip(parts, widths, strict=True):
        block = np.zeros((total, width), np.float32)
        if part is not None:
            rank = part[0].shape[1]
            block[row : row + rank] = part[1] * np.float32(part[2] / scale)
            row += 0 if same else rank
        blocks.append(block)
    a = first_a if same else np.concatenate([a for a, _, _ in held], axis=1)
    return a, np.concatenate(blocks, axis=1), scale


def _config(ours: AdapterConfig, modules, ranks: dict[str, int], scales: dict[str, float]) -> dict[str, Any]:
    """adapter_config.json's fields; the commonest rank and alpha, and patterns for the modules that differ."""
    rslora = ours.scaling == "rslora"
    if ours.method == "mora":
        alphas = dict.fromkeys(ranks, _whole(ours.alpha))
    else:
        alphas = {name: _whole(scales[name] * (rank**0.5 if rslora else rank)) for name, rank in ranks.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    values = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "inference_mode": True,
        "init_lora_weights": ours.init if ours.init in ("pissa", "olora") else True,
        "lora_alpha": alpha,
        "lora_dropout": ours.dropout,
        "r": rank,
        "rank_pattern": {name: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {name: a for name, a in alphas.items() if a != alpha},
        "target_modules": short_names(list(ranks), modules),
        "use_dora": ours.method == "dora",
        "use_rslora": rslora,
    }
    return values | ({"use_mora": True, "mora_type": mora_fork.type_of(ours.mora)} if ours.method == "mora" else {})


def _whole(value: float) -> float | int:
    """alpha as it was set: 16 for 5.3333335 x 3, as scales are float32."""
    near = round(value, 4)
    value = near if abs(near - value) <= 1e-6 * abs(value) else value
    return int(value) if value == int(value) else value


def _conv1d(rows: Sequence[Row], layers: int) -> set[str]:
    """Modules whose weight is [in, out], as GPT-2's, which PEFT calls fan_in_fan_out."""
    turned = [row for row in rows if row.target.endswith("/kernel") and not row.transform.transposed]
    return {source.removesuffix(".weight") for row in turned for source in row.sources(layers)}


def _beside(
    flat, rows, layers: int, trained: set[str], adapted: set[str], tensors: Leaf, classifies: bool
) -> tuple[str, list[str]]:
    """Adds the base's trained weights to `tensors`; returns PEFT's `bias` and `modules_to_save`.

    Args:
      classifies: add the whole classifier as a module too.
    """
    unknown = trained - {row.target for row in rows}
    if unknown:
        raise UserError(f"the Hugging Face model has no tensor for {sorted(unknown)}, so PEFT cannot save it")
    targets = {row.target for row in rows}
    tables = [path for path in trained if path.endswith("/embedding") and is_tied(path.rpartition("/")[0], targets)]
    if tables and "head/bias" in targets:
        raise UserError(
            f"a trained {tables[0]} is a masked-lm head too, which PEFT trains apart; export the merged model"
        )
    sources: dict[str, list[Row]] = {}  # for a fused tensor, the rows of its parts
    for row in rows:
        for source in row.sources(layers):
            sources.setdefault(source, []).append(row)
        if row.target in tables:  # PEFT trains a copy of a module: a tied output layer's goes along
            sources[f"{HEAD}.weight"] = [dataclasses.replace(row, source=f"{HEAD}.weight")]
    head = {source for source in sources if classifies and source.startswith(CLASSIFIER)}
    changed = {source for source, parts in sources.items() if trained & {row.target for row in parts}} - head
    biases = {source for source in sources if source.endswith(".bias")} - head
    ours = changed & biases
    beside = {source for source in biases if source.removesuffix(".bias") in adapted}
    whole = {source.rpartition(".")[0] for source in changed - ours}
    bias = "all" if ours and ours == biases else "lora_only" if ours and ours == beside else "none"
    if bias == "none":
        whole |= {source.removesuffix(".bias") for source in ours}
    if both := whole & adapted:
        raise UserError(f"PEFT cannot train {min(both)} and adapt it too; export the merged model")
    kept = [s for s in sources if s in head or s.rpartition(".")[0] in whole or (bias != "none" and s in ours)]
    for source in kept:
        parts = []
        for row in sources[source]:
            leaf = flat[f"params/{row.target}"]
            layer = row.sources(layers).index(source)
            parts.append(np.asarray(leaf[layer] if LAYER in row.source else leaf, np.float32))
        module, _, last = source.rpartition(".")
        key = f"{module}.base_layer.{last}" if module in adapted else source
        transform = sources[source][0].transform
        # A part's transform has no inverse: GPT-2's c_attn is query, key and value side by side, in our order.
        value = transform.backward(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=-1)
        if len(parts) > 1 and transform.transposed:
            value = value.T
        tensors[f"{PREFIX}{key}"] = np.ascontiguousarray(value)
    return bias, sorted({*whole, CLASSIFIER.rstrip(".")} if head else whole)


def _token_rows(flat, rows, token_rows: Mapping[str, Sequence[int]], tensors: Leaf) -> dict[str, list[int]]:
    """Adds single trained rows of tables to `tensors`; returns PEFT's `trainable_token_indices`.

    Raises:
      UserError: a path that is no table of the Hugging Face model.
    """
    names = {row.target: row.source.removesuffix(".weight") for row in rows}
    if strange := [path for path in token_rows if path not in names]:
        raise UserError(f"the Hugging Face model has no table {strange[0]}, so PEFT cannot save its rows")
    for path, ids in token_rows.items():
        table = np.asarray(flat[f"params/{path}"], np.float32)
        table = table.T if path.endswith("/kernel") else table
        tensors[f"{PREFIX}{names[path]}.{DELTA}"] = table[list(ids)]
    return {names[path]: list(ids) for path, ids in token_rows.items()}


def write_folder(folder: Path, tensors: Leaf, values: dict[str, Any], note: str) -> Path:
    """Writes tensors and config of an adapter; the config comes last.

    Args:
      folder: an adapter in it is replaced.
      tensors: by PEFT's keys; written in float32.
      values: of adapter_config.json.
      note: the JSON that `files.read_note` reads.

    Raises:
      UserError: a value that is not finite, or the folder cannot be written.
    """
    if bad := [key for key, value in tensors.items() if not np.isfinite(value).all()]:
        raise UserError(f"{bad[0]} is not finite; export an earlier checkpoint")
    part, text = folder / f".part-{WEIGHTS}", folder / f".part-{CONFIG}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(part, {k: v.astype(np.float32) for k, v in tensors.items()}, {"format": "pt", METADATA: note})
        text.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(part, folder / WEIGHTS)
        os.replace(text, folder / CONFIG)
    except OSError as error:
        part.unlink(missing_ok=True)
        text.unlink(missing_ok=True)
        raise UserError(f"cannot write {folder} ({' '.join(str(error).split())}); free space or name another") from None
    return folder
