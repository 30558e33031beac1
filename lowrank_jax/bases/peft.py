"""Writes adapters of a loaded base as a PEFT folder, with the base's name from which PEFT's Auto classes load it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowrank_jax.adapters import Plan
from lowrank_jax.bases.base import Base, architecture_of
from lowrank_jax.bases.locate import KNOWN
from lowrank_jax.core.types import Tree
from lowrank_jax.interop.peft.export import save_peft


def export_peft(
    folder: str | os.PathLike, plan: Plan, variables: Mapping[str, Tree], base: Base, trained: Sequence[str] = ()
) -> Path:
    """`save_peft` for a loaded base: with its name, revision and fingerprint, and its freshly drawn leaves.

    Args:
      folder, plan, variables, trained: as there; fresh leaves, which the base's files lack, count as trained.

    Raises:
      UserError: as there.
    """
    rows, layers = architecture_of(base.config).interop.hf_table(base.config), base.config.num_hidden_layers
    name, revision, fresh = base.name, None, set(base.fresh)
    if base.path is None:  # random: PEFT has no name to load it by
        name, fresh = "", set()
    elif base.name in KNOWN:
        name = KNOWN[base.name].repository
    elif base.source.startswith("hub:"):
        revision = base.path.name
    else:
        file = base.path.resolve()
        name = str(file if file.is_dir() or file.suffix == ".gguf" else file.parent)
    kept = sorted({*trained, *fresh})
    return save_peft(folder, plan, variables, rows, layers, name, base.fingerprint, kept, revision)
