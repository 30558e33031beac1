"""loralib state dicts both ways: Linear, Embedding, MergedLinear (fused query, key, value with some of them enabled).

A state dict has neither alpha nor the enabled parts: the caller gives both.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_jax.adapters import Plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.types import Tree
from lowrank_jax.interop.keymap import Row
from lowrank_jax.interop.peft.config import HFModule, hf_modules, parse_config
from lowrank_jax.interop.peft.folder import PeftAdapter, replace_tensors, stack_layers
from lowrank_jax.interop.peft.keys import read_finite

HALVES = (".lora_A", ".lora_B")


class _Held:
    """A state dict as a reader."""

    def __init__(self, tensors: Mapping[str, Any]):
        self.path, self.metadata, self._tensors = Path("the loralib state dict"), {}, tensors

    def keys(self) -> list[str]:
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> np.ndarray:
        return np.asarray(self._tensors[key])


def load_loralib(
    tensors: Mapping[str, Any],
    params: Tree,
    rows: Sequence[Row],
    layers: int,
    alpha: float,
    enable_lora: Sequence[bool] | None = None,
) -> PeftAdapter:
    """Reads a loralib state dict for a base.

    Args:
      tensors: {name: array or CPU tensor}, e.g. of `torch.load(path, weights_only=True)`: "<module>.lora_A",
        "<module>.lora_B", and whole tensors of the base that were trained too (biases, a classifier).
      params, rows, layers: as in `peft.load_peft`.
      alpha: lora_alpha of the layers; the scale is alpha / r.
      enable_lora: of MergedLinear, for the parts of every fused module in order.

    Raises:
      UserError: one line: keys that are missing or unknown, shapes that do not fit, no enable_lora.
    """
    reader, modules = _Held(tensors), hf_modules(rows, layers, tables=True)
    flat = dict(flatten(params))
    names = {key.rpartition(".")[0] for key in tensors if key.endswith(HALVES)}
    sources = {source for row in rows for source in row.sources(layers)}
    unknown = [key for key in tensors if key not in sources and key.rpartition(".")[0] not in modules.keys() & names]
    missing = [f"{name}{half}" for name in sorted(names) for half in HALVES if f"{name}{half}" not in tensors]
    if unknown or missing or not names:
        found = "; ".join(
            f"{kind}: {', '.join(keys[:4])}" for kind, keys in (("missing", missing), ("unknown", unknown))
        )
        raise UserError(f"the state dict does not fit this base; {found or 'it has no lora_A'}")
    per_site: dict[str, dict] = {}
    for name in sorted(names):
        module = modules[name]
        a, b = (read_finite(reader, f"{name}{half}") for half in HALVES)
        for path, leaf in _parts(module, a, b, flat, enable_lora).items():
            rank = leaf["a"].shape[1]
            per_site.setdefault(path, {})[module.layer] = (leaf, alpha / rank, rank)
    rank = next(iter(next(iter(per_site.values())).values()))[2]
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": sorted(names)}
    config = parse_config(fields, "loralib")
    plan, adapters, scales = stack_layers(config, per_site, params, {path: x.shape for path, x in flat.items()})
    changed = replace_tensors(flat, reader, rows, layers, {key: key for key in tensors if key in sources})
    return PeftAdapter(plan, unflatten(adapters), unflatten(scales), unflatten(flat), tuple(sorted(changed)))


def to_loralib(
    plan: Plan, variables: Mapping[str, Tree], rows: Sequence[Row], layers: int
) -> tuple[dict[str, np.ndarray], float, tuple[bool, ...] | None]:
    """(state dict, alpha, enable_lora), to load into LoRA layers built with this alpha and rank.

    Every layer of a site has the site's rank; where a layer's scale differs from the site's, its B is scaled.
    enable_lora is None where no module is fused.

    Raises:
      UserError: another method than lora, or ranks and scales that one alpha and one r cannot express in a fused
        module.
    """
    if other := [config.method for config in plan.configs if config.method != "lora"]:
        raise UserError(f"loralib has no {other[0]}; export a PEFT folder or the merged model")
    flat = flatten({name: variables[name] for name in ("params", "adapters", "scales")})
    specs = {site.path: site.spec for site in plan.sites}
    ranks = {spec.rank for spec in specs.values()}
    if len(ranks) != 1:
        raise UserError(f"one loralib alpha does not fit ranks {sorted(ranks)}; use one rank, or export a PEFT folder")
    rank, alpha = ranks.pop(), plan.sites[0].family.scale(plan.sites[0].spec) * plan.sites[0].spec.rank
    tensors, enabled = {}, None
    for name, module in hf_modules(rows, layers, tables=True).items():
        held = [path for path in module.parts if path in specs]
        if not held:
            continue
        if len(module.parts) > 1:
            enabled = tuple(path in specs for path in module.parts)
        index = ... if module.layer is None else module.layer
        a = [np.asarray(flat[f"adapters/{path}/a"][index], np.float32).T for path in held]
        factors = [float(np.asarray(flat[f"scales/{path}/scale"])[index]) * rank / alpha for path in held]
        b = [np.asarray(flat[f"adapters/{p}/b"][index], np.float32).T * f for p, f in zip(held, factors, strict=True)]
        tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"] = np.concatenate(a), np.concatenate(b)
    return tensors, alpha, enabled


def _parts(module: HFModule, a: np.ndarray, b: np.ndarray, flat, enable_lora) -> dict[str, dict[str, np.ndarray]]:
    """{our path: leaf} of one module; MergedLinear's rows of A and B come in groups, one per enabled part."""
    shapes = {path: flat[weight].shape[-2:] for path, weight in zip(module.parts, module.weights, strict=True)}
    if len(module.parts) == 1:
        enable_lora = (True,)
    elif enable_lora is None or len(enable_lora) != len(module.parts) or not any(enable_lora):
        raise UserError(
            f"{module.name} is fused: give enable_lora for {', '.join(p.rpartition('/')[2] for p in shapes)}"
        )
    on = [path for path, enabled in zip(module.parts, enable_lora, strict=True) if enabled]
    d_in, d_out = shapes[on[0]]
    rank = b.shape[-1]
    if a.shape != (len(on) * rank, d_in) or b.shape != (len(on) * d_out, rank):
        raise UserError(
            f"{module.name}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit {len(on)} enabled part(s) of "
            f"{d_in} x {d_out}; check enable_lora and the base"
        )
    halves = zip(on, np.split(a, len(on)), np.split(b, len(on)), strict=True)
    return {path: {"a": one.T, "b": other.T} for path, one, other in halves}
