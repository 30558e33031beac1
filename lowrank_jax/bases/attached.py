"""A base with an adapter from a folder: one that a run here wrote, PEFT's or the MoRA fork's."""

import os
from pathlib import Path
from typing import Any

from lowrank_jax.adapters import Plan, make_plan, read_configs, residual
from lowrank_jax.bases.base import Base, architecture_of
from lowrank_jax.bases.locate import KNOWN
from lowrank_jax.checkpoints.adapters_only import DESCRIPTION, load_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.interop.peft.config import CONFIG
from lowrank_jax.interop.peft.folder import load_peft
from lowrank_jax.layouts.segments import overlay


def check_adapter(folder: str | os.PathLike) -> bool:
    """Whether the adapter in a folder is one of ours.

    Raises:
      UserError: there is none.
    """
    ours, peft = (kind_of(Path(folder) / name) is not None for name in (DESCRIPTION, CONFIG))
    if not ours and not peft:
        raise UserError(f"{folder} has neither {DESCRIPTION} (ours) nor {CONFIG} (PEFT's); give an adapter's folder")
    return ours


def load_attached(folder: str | os.PathLike, base: Base) -> tuple[Base, Plan, dict[str, Any]]:
    """The base that the adapter belongs to, the adapter's plan, and the variables of both.

    Raises:
      UserError: there is no adapter, it is damaged, or it is of another base.
    """
    if check_adapter(folder):
        return base, *_ours(folder, base)
    rows = architecture_of(base.config).interop.hf_table(base.config)
    names = [base.name, *([KNOWN[base.name].repository] if base.name in KNOWN else [])]
    adapter = load_peft(folder, base.params, rows, base.config.num_hidden_layers, names, base.fingerprint)
    return base, adapter.plan, adapter.variables


def _ours(folder: str | os.PathLike, base: Base) -> tuple[Plan, dict[str, Any]]:
    trained, scales, description = load_adapter(folder, base.fingerprint)
    plan = make_plan(base.params, read_configs(description["config"], str(Path(folder) / DESCRIPTION)))
    return plan, {
        "params": overlay(residual(base.params, plan), trained.get("params", {})),
        "adapters": trained.get("adapters", {}),
        "scales": scales,
    }
