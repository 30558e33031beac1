"""Notes printed when a PEFT folder is loaded: what its files cannot confirm, and what further training changes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.interop.peft.config import CONFIG, HFModule, PeftConfig


def notes(
    folder: Path,
    config: PeftConfig,
    recorded: bool,
    per_site: Mapping[str, Mapping[int | None, tuple[Any, float, int]]],
    adapted: Sequence[HFModule],
    base_names: Sequence[str],
) -> tuple[str, ...]:
    """A line for each thing that its user should know.

    Args:
      recorded: whether the folder has scales beside its weights, which were compared with its config.
      per_site: {our site: {layer: (leaf, scale, rank)}}.
      adapted: the folder's modules.
      base_names: of the base in use.
    """
    found = []
    if not recorded:
        base = f"the base {config.base}" if config.base else "no base"
        used = " or ".join(base_names) or "one without a name"
        found.append(
            f"{folder} has no record to compare with: by {CONFIG} the scale is {_scales(per_site)}; "
            f"it names {base}, and {used} is in use"
        )
    fused = [module for module in adapted if len(module.parts) > 1]
    if fused:
        parts = ", ".join(part.rpartition("/")[2] for part in fused[0].parts)
        found.append(
            f"{folder}: PEFT has one lora_A for {fused[0].name} and others like it, we have one each for {parts}; "
            "outputs are equal, but further training lets them differ, and an export then has the sum of their ranks"
        )
    return tuple(found)


def _scales(per_site) -> str:
    """The sites by scale: "2 at layers/attention/query, layers/mlp/up (layer 1); 4 at layers/mlp/up (layers 0, 2)"."""
    places: dict[str, list[str]] = {}
    for path, layers in per_site.items():
        kinds: dict[str, list[int | None]] = {}
        for layer, (_, scale, _) in layers.items():
            kinds.setdefault(f"{scale:.6g}", []).append(layer)
        for scale, where in kinds.items():
            of = f" (layer{'s' * (len(where) > 1)} {', '.join(map(str, where))})" if len(kinds) > 1 else ""
            places.setdefault(scale, []).append(path + of)
    return "; ".join(f"{scale} at {', '.join(where)}" for scale, where in places.items())
