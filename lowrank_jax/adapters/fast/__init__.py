"""The families' updates as they run best; `tests/adapters/test_fast.py` compares them with the equations."""

from lowrank_jax.adapters.base import Family
from lowrank_jax.adapters.fast import bottleneck, dora, lora, mora
from lowrank_jax.adapters.fast.base import Fast

FAST: dict[str, Fast] = {
    "lora": lora.FAST,
    "mora": mora.FAST,
    "dora": dora.FAST,
    **{name: bottleneck.FAST for name in ("houlsby", "pfeiffer", "lin")},
}


def get_fast(family: Family) -> Fast:
    """The fast form of a family by its name; its own functions where there is none."""
    return FAST.get(family.name) or Fast(family.delta, family.apply)
