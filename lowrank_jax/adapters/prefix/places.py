"""Where a prefix family acts on a causal language model, and which ids its virtual tokens have."""

import dataclasses
from collections.abc import Mapping, Sequence

from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec, Family
from lowrank_jax.core.errors import UserError

TABLE = "embed"  # the module of a causal model that reads token ids
KEY, VALUE = "attention/key", "attention/value"
KEY_NORM = "attention/key_norm"  # of models that norm keys: what is attended to is its output

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class VirtualTokens:
    """The virtual tokens of a plan.

    Attributes:
      first: the first one's id, which is the base's number of ids.
      prefix: how many stand before a prompt.
      infix: how many stand between prompt and completion; their ids follow.
    """

    first: int
    prefix: int
    infix: int

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """The ids before a prompt."""
        return tuple(range(self.first, self.first + self.prefix))

    @property
    def infix_ids(self) -> tuple[int, ...]:
        """The ids after it."""
        return tuple(range(self.first + self.prefix, self.first + self.prefix + self.infix))


def find_places(
    family: Family, config: AdapterConfig, kernels: Mapping[str, Shape], shapes: Mapping[str, Shape]
) -> dict[str, AdapterSpec]:
    """{path of a module: spec} of a prefix family; `d_in` is the base's number of ids, the first virtual token's id.

    Args:
      kernels: {path of a module: shape of its kernel}.
      shapes: {path below "params": shape}.

    Raises:
      UserError: the model is no causal language model.
    """
    table, keys = shapes.get(f"{TABLE}/embedding"), [path for path in kernels if path.endswith(f"/{KEY}")]
    if table is None or not keys:
        raise UserError(
            f"adapter.method {family.name} puts virtual tokens before a prompt, for causal language models alone: this "
            f"model has no {f'{TABLE}/embedding' if table is None else KEY}"
        )
    rows, width = table

    def spec(d_out: int, stack: Shape) -> AdapterSpec:
        return AdapterSpec(rows, d_out, rank=config.rank, alpha=config.alpha, stack=stack, config=config)

    if family.place == "tokens":
        return {TABLE: spec(width, ())}
    found = {}
    for path in keys:
        block, stack = path.removesuffix(f"/{KEY}"), kernels[path][:-2]
        if family.place == "states":
            found[block] = spec(width, stack)
            continue
        normed = any(other.startswith(f"{block}/{KEY_NORM}/") for other in shapes)
        for name, kernel in ((KEY_NORM if normed else KEY, KEY), (VALUE, VALUE)):
            found[f"{block}/{name}"] = spec(kernels[f"{block}/{kernel}"][-1], stack)
    return found


def virtual_tokens(specs: Sequence[AdapterSpec]) -> VirtualTokens | None:
    """The virtual tokens of a plan, from the specs of its prefix sites; None without any.

    Raises:
      UserError: they are of several configurations.
    """
    if not specs:
        return None
    if len(kinds := {spec.config for spec in specs}) > 1:
        names = " and ".join(sorted(config.method for config in kinds))
        raise UserError(
            f"{names} would share their virtual tokens; keep one prefix method (adapters of other kinds may stay)"
        )
    prefix = specs[0].config.prefix
    return VirtualTokens(specs[0].d_in, prefix.tokens, prefix.infix)
