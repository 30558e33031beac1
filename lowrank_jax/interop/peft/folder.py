"""Reads PEFT adapter folders: LoRA, rsLoRA, DoRA and the MoRA fork's, for any architecture with a key table.

PEFT keeps one A [r, d_in] and one B [d_out, r] a module; ours are stacked over layers, [L, d_in, R] and [L, R, d_out],
with one scale a layer; an embedding's are A [rows, r] and B [r, d]. A layer of a smaller rank is padded with zeros up
to the largest, R, and a layer without an adapter is zero with scale 0: both compute exactly what PEFT does, get no
gradient, and are left out again on saving. (But a left-out layer of DoRA has its kernel's norms as magnitudes, which
further training would change.) GPT-2's fused c_attn is query, key and value with one A. `interop.peft.export` is the
way back.
"""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lowrank_jax.adapters import AdapterConfig, MoraConfig, Plan, make_plan, residual
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.fingerprints import same, shown
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree
from lowrank_jax.interop.keymap import LAYER, Row
from lowrank_jax.interop.peft import mora_fork
from lowrank_jax.interop.peft.config import CONFIG, HEAD, HFModule, PeftConfig, hf_modules, task_of
from lowrank_jax.interop.peft.files import PeftFiles, open_peft, some
from lowrank_jax.interop.peft.keys import (
    GROWN,
    MAGNITUDE,
    PREFIX,
    TABLE,
    check_keys,
    read_finite,
    saved_keys,
    spelled,
    table_name,
    token_keys,
)
from lowrank_jax.interop.peft.notes import notes
from lowrank_jax.interop.readers import Reader, Tensors


@dataclasses.dataclass(frozen=True)
class PeftAdapter:
    """The content of a PEFT folder.

    Attributes:
      plan: its sites, with an AdapterConfig that describes them.
      adapters, scales: as from `adapters.create`; NumPy arrays.
      params: the base's params with the adapter's changes: trained biases, modules saved whole, and the residual
        kernels of PiSSA and OLoRA. Other leaves are the same arrays.
      changed: paths of those leaves.
      token_rows: {path of a changed table: its rows that were trained alone}, PEFT's trainable_token_indices.
      notes: the lines printed at loading, see `peft.notes`.
    """

    plan: Plan
    adapters: dict[str, Any]
    scales: dict[str, Any]
    params: Tree
    changed: tuple[str, ...]
    notes: tuple[str, ...] = ()
    token_rows: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "adapters", "scales"}, for `attach` and `merge`."""
        return {"params": self.params, "adapters": self.adapters, "scales": self.scales}


def load_peft(
    folder: str | os.PathLike,
    params: Tree,
    rows: Sequence[Row],
    layers: int,
    base_names: Sequence[str] = (),
    fingerprint: str | None = None,
) -> PeftAdapter:
    """Reads a PEFT folder for a base; checks everything before it returns, and prints `PeftAdapter.notes`.

    Args:
      folder: with adapter_config.json and adapter_model.safetensors (or .bin), or with one named folder that has them.
      params: the base's params.
      rows, layers: the base's key table in HF's names (`llama.hf_table(config)` and its like) and number of layers.
      base_names: names of the base; an adapter that names another Hub repository is refused. Empty: any is accepted.
      fingerprint: of the base; compared where the adapter, written here, names one.

    Raises:
      UserError: one line: no adapter in the folder, an unknown method or feature, another base, keys that are missing,
        unknown or without PEFT's prefix, shapes or ranks that contradict the config, an alpha that differs from the one
        saved, a value that is not finite.
    """
    files = open_peft(folder)
    folder, config, reader, note = files.folder, files.config, files.reader, files.note
    check_base(folder, config.base, note, base_names, fingerprint)
    rows = spelled(rows, reader, task_of(rows)[0] == "FEATURE_EXTRACTION")
    modules = hf_modules(rows, layers, tables=True)
    adapted = [module for module in modules.values() if is_adapted(files, rows, module)]
    if not adapted:
        raise UserError(f"{folder / CONFIG}: target_modules {config.target_modules} matches no module of this base")
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    saved = saved_keys(files, rows, layers, {m.name for m in adapted})
    check_keys(files, rows, adapted, shapes, saved)
    for name, scale in note.get("scales", {}).items():
        if name in modules and not np.isclose(config.scale(name), scale, rtol=1e-5):
            raise UserError(
                f"{folder / CONFIG}: lora_alpha and r give {name} the scale {config.scale(name):g}, and the adapter "
                f"was written with {scale:g}; restore the config that came with it"
            )
    per_site = _leaves(reader, config, adapted, shapes)
    plan, adapters, scales = stack_layers(config, per_site, params, shapes)
    flat = dict(flatten(params))
    changed = replace_tensors(flat, reader, rows, layers, saved)
    tokens = token_keys(files, rows)
    changed += [path for path in _replace_rows(flat, files, tokens) if path not in changed]
    if config.start != "kaiming_uniform":
        _check_even(config, adapted, per_site, shapes)
        flat |= flatten(residual(unflatten(flat), plan))
        changed += [site.weight for site in plan.sites]
    said = notes(folder, config, "scales" in note, per_site, adapted, base_names)
    for line in said:
        print(line, flush=True)
    trees = unflatten(adapters), unflatten(scales), unflatten(flat)
    ids = {path: rows for path, (_, rows) in tokens.items()}
    return PeftAdapter(plan, *trees, tuple(sorted(changed)), said, ids)


def check_base(
    folder: Path, base: str, note: Mapping[str, Any], base_names: Sequence[str], fingerprint: str | None
) -> None:
    """Refuses an adapter that was made for another base.

    Args:
      folder: of the adapter, for the message.
      base: the base's name in the adapter's config.
      note: what our own exports keep beside the weights, see `files.read_note`.
      base_names, fingerprint: as in `load_peft`.

    Raises:
      UserError: another fingerprint, or, where none is known, another repository's name.
    """
    made = note.get("fingerprint")
    if made and fingerprint:
        if not same(str(made), fingerprint, f"the adapter in {folder}"):
            raise UserError(
                f"the adapter in {folder} was made for the base {base!r} with other weights or another config "
                f"({shown(str(made))})"
            )
        return
    # A path does not tell which base was in it.
    ours = {name.rpartition("/")[2].lower() for name in base_names if not Path(name).exists()}
    local = not base or Path(base).is_absolute() or Path(base).exists()
    if ours and not local and base.rpartition("/")[2].lower() not in ours:
        raise UserError(f"the adapter in {folder} was made for {base}, not for {' or '.join(base_names)}")


def is_adapted(files: PeftFiles, rows: Sequence[Row], module: HFModule) -> bool:
    """Whether the folder has an adapter on a module: by name, or on an output layer that follows its embedding."""
    config = files.config
    if module.name == HEAD and config.ensure_weight_tying and config.adapts(table_name(rows)):
        return f"{PREFIX}{HEAD}.lora_A.weight" in set(files.reader.keys())
    return config.adapts(module.name) and not (module.table and config.all_linear)


def _replace_rows(flat: dict[str, Any], files: PeftFiles, tokens: Mapping[str, tuple[str, tuple[int, ...]]]) -> list:
    """Replaces the rows of tables that were trained alone; returns the tables' paths.

    Raises:
      UserError: an id that the table does not have.
    """
    for path, (key, ids) in tokens.items():
        leaf, values = flat[path], read_finite(files.reader, key)
        table = np.array(leaf, np.float32)
        table = table.T if path.endswith("/kernel") else table
        if max(ids) >= len(table):
            raise UserError(
                f"{files.folder / CONFIG}: trainable_token_indices has the id {max(ids)}, and {path} {len(table)} "
                f"rows: {GROWN}"
            )
        table[list(ids)] = values
        flat[path] = (table.T if path.endswith("/kernel") else table).astype(leaf.dtype)
    return list(tokens)


def _leaves(
    reader: Reader, config: PeftConfig, adapted, shapes
) -> dict[str, dict[int | None, tuple[dict, float, int]]]:
    """{our site: {layer: (leaf, scale, rank)}}; a fused module's B and magnitude are cut into its parts."""
    sites: dict[str, dict] = {}
    for module in adapted:
        read = lambda leaf, name=module.name: read_finite(reader, f"{PREFIX}{name}.{leaf}")  # noqa: E731
        halves = (f"{TABLE}{half}" if module.table else f"lora_{half}.weight" for half in "AB")
        first, second = map(read, halves)
        if config.method == "mora":
            leaves = [mora_fork.to_leaf(first, second, module.name)]
        else:
            ends = np.cumsum([shapes[weight][-1] for weight in module.weights])[:-1]
            leaves = [{"a": first.T, "b": part.T} for part in np.split(second, ends)]
            if config.method == "dora":
                for leaf, part in zip(leaves, np.split(read(MAGNITUDE), ends), strict=True):
                    leaf["m"] = part
        for part, leaf in zip(module.parts, leaves, strict=True):
            sites.setdefault(part, {})[module.layer] = (leaf, config.scale(module.name), config.rank(module.name))
    return sites


def stack_layers(config: PeftConfig, per_site, params: Tree, shapes) -> tuple[Plan, dict, dict]:
    """The plan, and adapters and scales by path, from the leaves of single layers."""
    ranks = {path: max(rank for _, _, rank in found.values()) for path, found in per_site.items()}
    if config.method == "mora" and any(len({rank for *_, rank in found.values()}) > 1 for found in per_site.values()):
        raise UserError(
            "layers of one stack have MoRA squares of different sizes, which is not supported here; merge it first"
        )
    scaling = "rslora" if config.use_rslora else "standard"
    alphas = {
        path: next(iter(found.values()))[1] * (ranks[path] ** 0.5 if config.use_rslora else ranks[path])
        for path, found in per_site.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    ours = AdapterConfig(
        method=config.method,
        rank=rank,
        alpha=float(alpha),
        scaling=scaling,
        targets=tuple(sorted(per_site)),
        dropout=config.lora_dropout,
        init=config.start,
        rank_pattern=tuple((path, r) for path, r in sorted(ranks.items()) if r != rank),
        alpha_pattern=tuple((path, float(a)) for path, a in sorted(alphas.items()) if a != alpha),
        mora=mora_fork.options(config.mora_type) if config.method == "mora" else MoraConfig(),
    )
    plan = make_plan(params, ours)
    adapters, scales = {}, {}
    for site in plan.sites:
        stack, found = site.spec.stack, per_site[site.path]
        wanted = {name: np.zeros((*stack, *shape), np.float32) for name, shape in site.family.shapes(site.spec).items()}
        scale = np.zeros(stack, np.float32)
        if config.method == "dora" and stack and len(found) < stack[0]:
            kernel = flatten(params)[f"{site.path}/kernel"]
            wanted["m"][:] = np.stack([np.linalg.norm(np.asarray(layer, np.float32), axis=0) for layer in kernel])
        for layer, (leaf, factor, _) in found.items():
            index = () if layer is None else (layer,)
            for name, value in leaf.items():
                wanted[name][(*index, *(slice(n) for n in value.shape))] = value
            scale[index] = factor
        adapters |= {f"{site.path}/{name}": value for name, value in wanted.items()}
        scales[f"{site.path}/scale"] = scale
    return plan, adapters, scales


def _check_even(config: PeftConfig, adapted, per_site, shapes) -> None:
    """PiSSA and OLoRA decompose the kernel by rank and scale, which must be equal within a stack."""
    for path, found in per_site.items():
        kinds = {(rank, scale) for _, scale, rank in found.values()}
        stack = shapes[f"{path}/kernel"][:-2]
        if len(kinds) > 1 or (stack and len(found) < stack[0]) or any(len(m.parts) > 1 for m in adapted):
            raise UserError(
                f"init_lora_weights {config.start!r} with ranks, scales or layers that differ within {path}, or on a "
                "fused module, is not supported here; convert the adapter to plain LoRA with PEFT's save_pretrained"
            )


def replace_tensors(flat: dict[str, Any], reader: Tensors, rows, layers: int, saved: dict[str, str]) -> list[str]:
    """Replaces the base's weights by trained biases and whole modules; returns their paths."""
    changed = []
    for row in rows:
        found = {i: saved[source] for i, source in enumerate(row.sources(layers)) if source in saved}
        if not found:
            continue
        leaf = flat[row.target]
        parts = {i: row.transform.forward(read_finite(reader, key)) for i, key in found.items()}
        shape = leaf.shape[1:] if LAYER in row.source else leaf.shape
        if wrong := [found[i] for i, part in parts.items() if part.shape != tuple(shape)]:
            raise UserError(f"{reader.path}: {some(wrong)} has another shape than the base's {list(shape)}")
        if LAYER in row.source:
            whole = np.array(leaf, np.float32) if len(parts) < layers else np.empty(leaf.shape, np.float32)
            for i, part in parts.items():
                whole[i] = part
        else:
            whole = parts[0]
        whole = whole.astype(leaf.dtype)
        if isinstance(leaf, jax.ShapeDtypeStruct) or not np.array_equal(whole, leaf):
            flat[row.target] = whole
            changed.append(row.target)
    return changed
