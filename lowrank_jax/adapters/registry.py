"""The adapter families by name: the only list."""

from lowrank_jax.adapters import bottleneck, dora, embedding, lora, mora
from lowrank_jax.adapters.base import Family
from lowrank_jax.adapters.prefix import families as prefix
from lowrank_jax.core.paths import unknown_name

FAMILIES: dict[str, Family] = {
    family.name: family for family in (lora.FAMILY, mora.FAMILY, dora.FAMILY, *bottleneck.FAMILIES, *prefix.FAMILIES)
}
TABLES: dict[str, Family] = {"lora": embedding.FAMILY}  # what a method does at an embedding


def get_family(name: str) -> Family:
    """The family called `name`.

    Raises:
      UserError: no such family; names the nearest.
    """
    if name not in FAMILIES:
        raise unknown_name("adapter.method", name, FAMILIES)
    return FAMILIES[name]
