"""The papers' equations and their life: plan, create, attach, merge."""

from lowrank_jax.adapters.attach import attach, check
from lowrank_jax.adapters.base import AdapterConfig, MoraConfig
from lowrank_jax.adapters.create import create, needs_params, residual
from lowrank_jax.adapters.merge import column_norms, fold, merge, unmerge
from lowrank_jax.adapters.plan import Plan, make_plan

__all__ = [
    "AdapterConfig",
    "MoraConfig",
    "Plan",
    "attach",
    "check",
    "column_norms",
    "create",
    "fold",
    "make_plan",
    "merge",
    "needs_params",
    "residual",
    "unmerge",
]
