"""The papers' equations and their life: plan, create, attach, merge."""

from lowrank_jax.adapters.analysis.spectrum import spectrum
from lowrank_jax.adapters.attach import attach, check
from lowrank_jax.adapters.base import AdapterConfig, BottleneckConfig, MoraConfig, PrefixConfig
from lowrank_jax.adapters.description import describe, read_configs
from lowrank_jax.adapters.leaves.create import create, needs_params, residual
from lowrank_jax.adapters.leaves.merge import attach_folded, column_norms, fold, merge, unmerge
from lowrank_jax.adapters.plan import Plan, make_plan

__all__ = [
    "AdapterConfig",
    "BottleneckConfig",
    "MoraConfig",
    "Plan",
    "PrefixConfig",
    "attach",
    "attach_folded",
    "check",
    "column_norms",
    "create",
    "describe",
    "fold",
    "make_plan",
    "merge",
    "needs_params",
    "read_configs",
    "residual",
    "spectrum",
    "unmerge",
]
