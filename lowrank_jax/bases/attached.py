"""Loads an adapter of any kind for a loaded base: from a run's adapter/, a PEFT folder, or the MoRA fork's."""

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

from lowrank_jax.adapters import Plan, make_plan, read_configs, residual
from lowrank_jax.bases.base import Base
from lowrank_jax.bases.peft import check_drawn, import_peft
from lowrank_jax.checkpoints.adapters_only import DESCRIPTION, load_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_text
from lowrank_jax.core.paths import flatten
from lowrank_jax.interop.peft.config import CONFIG
from lowrank_jax.interop.peft.files import find_peft
from lowrank_jax.layouts.segments import overlay
from lowrank_jax.text.chat_files import JINJA


def check_adapter(folder: str | os.PathLike) -> bool:
    """Whether the adapter in a folder is one of ours; otherwise it is PEFT's or the MoRA fork's.

    Args:
      folder: with the adapter, or of PEFT's also the folder above a single named one.

    Raises:
      UserError: there is no adapter, or several of PEFT's.
    """
    ours = kind_of(Path(folder) / DESCRIPTION) is not None
    if not ours and find_peft(folder) is None:
        raise UserError(f"{folder} has neither {DESCRIPTION} (ours) nor {CONFIG} (PEFT's); give an adapter's folder")
    return ours


def load_attached(folder: str | os.PathLike, base: Base, same_seed: bool = False) -> tuple[Base, Plan, dict[str, Any]]:
    """The base that the adapter belongs to, the adapter's plan, and the variables of both.

    Args:
      folder: as in `check_adapter`.
      base: with the head that the adapter was trained with. PEFT's adapters may change it, see `import_peft`.
      same_seed: leaves that the base's files lack were drawn as in the run that wrote the adapter, and may stay.

    Raises:
      UserError: there is no adapter, it is damaged or of another base, or neither has a head that the base needs.
    """
    if check_adapter(folder):
        return _with_template(base, Path(folder)), *_ours(folder, base, same_seed)
    base, adapter = import_peft(folder, base)
    return _with_template(base, find_peft(Path(folder)) or Path(folder)), adapter.plan, adapter.variables


def _with_template(base: Base, folder: Path) -> Base:
    """The base with the chat template that its adapter was trained with, where the folder has one."""
    if base.tokenizer is None or kind_of(folder / JINJA) is None:
        return base
    tokenizer = copy.copy(base.tokenizer)
    tokenizer.chat_template = read_text(folder / JINJA)
    return dataclasses.replace(base, tokenizer=tokenizer)


def _ours(folder: str | os.PathLike, base: Base, same_seed: bool) -> tuple[Plan, dict[str, Any]]:
    trained, scales, description = load_adapter(folder, base.fingerprint)
    plan = make_plan(base.params, read_configs(description["config"], str(Path(folder) / DESCRIPTION)))
    kept = trained.get("params", {})
    if not same_seed:
        check_drawn(base, base.fresh, flatten(kept), folder)
    return plan, {
        "params": overlay(residual(base.params, plan), kept),
        "adapters": trained.get("adapters", {}),
        "scales": scales,
    }
