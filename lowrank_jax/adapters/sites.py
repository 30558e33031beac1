"""The sites of one adapter configuration: the modules of a model that it acts on, with each one's rank and shapes."""

import dataclasses
import math
from collections.abc import Mapping

from lowrank_jax.adapters.base import AdapterConfig, AdapterSpec, Family
from lowrank_jax.adapters.prefix.places import find_places
from lowrank_jax.adapters.registry import TABLES, get_family
from lowrank_jax.adapters.targets import check_names, checked_match, matches
from lowrank_jax.core.errors import UserError

# A pre-norm model ends in it; a post-norm one has its last norm inside the last block.
PRE_NORM = "final_norm"

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Site:
    """One module that a family acts on, e.g. path "layers/attention/query".

    Attributes:
      path: of the module.
      spec: what the family needs to know.
      table: the module is an embedding, and the update is of its rows.
    """

    path: str
    spec: AdapterSpec
    table: bool = False

    @property
    def config(self) -> AdapterConfig:
        """The configuration that put it here."""
        return self.spec.config

    @property
    def family(self) -> Family:
        """The family that serves the site."""
        return TABLES[self.config.method] if self.table else get_family(self.config.method)

    @property
    def weight(self) -> str:
        """Path below "params" of the weight that the update can be folded into; of families that merge."""
        return f"{self.path}/{'embedding' if self.table else 'kernel'}"

    @property
    def parameters(self) -> int:
        """Trainable scalars over the site's layers."""
        return self.family.parameters(self.spec) * math.prod(self.spec.stack)


def find_sites(config: AdapterConfig, kernels: dict[str, Shape], shapes: Mapping[str, Shape]) -> list[Site]:
    """The sites of one configuration.

    Args:
      config: the configuration; its method is not `none`.
      kernels: {path of a module: shape of its kernel}.
      shapes: {path of a leaf: its shape}, of all leaves.

    Raises:
      UserError: what `plan.make_plan` refuses of one configuration.
    """
    family, tables, beside = get_family(config.method), {}, {}
    if family.virtual:
        return [Site(path, spec) for path, spec in find_places(family, config, kernels, shapes).items()]
    if not family.merges:
        beside = _places(family, kernels, shapes)
        known = {path: kernels[kernel] for path, kernel in beside.items()}
        wanted = known
    else:
        all_tables = modules_with(shapes, "embedding") if config.method in TABLES else {}
        # A target that fits kernels means kernels alone: "all-linear" and ".*" never take a table along.
        named = [t for t in config.targets if not any(checked_match(t, path, "targets") for path in kernels)]
        tables = {path: shape for path, shape in all_tables.items() if any(matches(t, path) for t in named)}
        known = kernels | tables
        check_names(config, "targets", config.targets, known, all_tables)
        wanted = {path: shape for path, shape in known.items() if any(matches(t, path) for t in config.targets)}
    for name in ("exclude", "rank_pattern", "alpha_pattern"):
        entries = [entry if isinstance(entry, str) else entry[0] for entry in getattr(config, name)]
        check_names(config, name, entries, known, {})
    chosen = {
        path: shape for path, shape in sorted(wanted.items()) if not any(matches(t, path) for t in config.exclude)
    }
    if not chosen:
        of = f"adapter.targets {list(config.targets)}" if family.merges else f"{config.method}'s {sorted(wanted)}"
        raise UserError(f"adapter.exclude {list(config.exclude)} leaves nothing of {of}")
    for name in ("rank_pattern", "alpha_pattern"):
        for target, _ in getattr(config, name):
            if not any(matches(target, path) for path in chosen):
                raise UserError(f"adapter.{name} entry {target!r} matches none of the adapted kernels {list(chosen)}")
    faults = {path: _stack_fault(beside.get(path, path), shapes) for path in chosen}
    if wrong := [path for path, why in faults.items() if why]:
        raise UserError(
            f"{wrong[0]}: {faults[wrong[0]]}, hence the first axes are no layers of a scan (split heads as in "
            f"nn.MultiHeadDotProductAttention, a convolution); name in adapter.exclude: {', '.join(wrong)}"
        )
    return [_site(config, path, shape, path in tables) for path, shape in chosen.items()]


def modules_with(shapes: Mapping[str, Shape], leaf: str) -> dict[str, Shape]:
    """{path of a module: shape of its leaf of this name}."""
    ending = f"/{leaf}"
    return {path.removesuffix(ending): s for path, s in shapes.items() if path.endswith(ending) and len(s) >= 2}


def _stack_fault(path: str, shapes: Mapping[str, Shape]) -> str | None:
    """What shows that the axes before a weight's last two are no layers, as far as shapes tell; None where they may be.

    A scan stacks every leaf of the module that it repeats: the axes are layers where all leaves of a module around the
    weight begin with them. Otherwise its bias must be [*stack, d_out], and no kernel beside it may hold the same split
    heads: Flax's attention has [.., d, heads, d_head] and [.., heads, d_head, d]. A kernel by itself without a bias is
    refused where it is called (`attach`).
    """
    name = next(name for name in (f"{path}/kernel", f"{path}/embedding") if name in shapes)
    shape = shapes[name]
    stack = shape[:-2]
    if not stack:
        return None

    def begins(other: str) -> bool:
        axes = len(stack) + 2 * (other.rpartition("/")[2] in ("kernel", "embedding"))
        return shapes[other][: len(stack)] == stack and len(shapes[other]) >= axes

    bias = shapes.get(f"{path}/bias")
    if bias is not None and bias != (*stack, shape[-1]):
        return f"its bias {list(bias)} is not stacked as its kernel {list(shape)}"
    parts = path.split("/")
    for depth in range(len(parts)):
        around = "".join(f"{part}/" for part in parts[:depth])
        leaves = [other for other in shapes if other.startswith(around)]
        if len(leaves) > 1 and all(map(begins, leaves)):
            return None
    parent = path[: -len(parts[-1])]
    for other, of in shapes.items():
        near = other.startswith(parent) and other.endswith("/kernel") and other != name and len(of) == len(shape)
        if near and (of[-3:-1] == shape[-2:] or shape[-3:-1] == of[-2:]):
            return f"its kernel is {list(shape)} and that of {other.removesuffix('/kernel')} beside it {list(of)}"
    return None


def _site(config: AdapterConfig, path: str, shape: Shape, table: bool) -> Site:
    stack, dropped = shape[:-2], 0
    if not get_family(config.method).merges:
        dropped = config.bottleneck.drop_layers
        if dropped and (len(stack) != 1 or dropped >= stack[0]):
            layers = f"{stack[0]} layers, of which one at least keeps its adapter" if stack else "no stacked layers"
            raise UserError(
                f"adapter.bottleneck.drop_layers is {dropped} and {path} has {layers}; lower it, or name modules in "
                "adapter.exclude"
            )
        stack, shape = (stack[0] - dropped,) if dropped else stack, (shape[-1], shape[-1])
    spec = AdapterSpec(
        *shape[-2:],
        rank=next((rank for target, rank in config.rank_pattern if matches(target, path)), config.rank),
        alpha=next((alpha for target, alpha in config.alpha_pattern if matches(target, path)), config.alpha),
        stack=stack,
        dropped=dropped,
        config=config,
    )
    site = Site(path, spec, table)
    try:
        site.family.shapes(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return site


def _places(family: Family, kernels: dict[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, str]:
    """{path of a module that the family has a place at: path of the kernel beside it, whose output is as wide}."""
    found = {}
    for module, kernel in family.sites:
        for path in kernels:
            if path == kernel or path.endswith(f"/{kernel}"):
                found[path.removesuffix(kernel) + module] = path
    if not found:
        needed = " or ".join(kernel for _, kernel in family.sites)
        raise UserError(
            f"{family.name} has its place behind {needed}, which the model does not have; its kernels: "
            f"{', '.join(sorted({path.rpartition('/')[2] for path in kernels}))}"
        )
    if family.place == "norm":
        if any(path.split("/")[0] == PRE_NORM for path in shapes):
            raise UserError(
                f"{family.name} shares the norm behind the MLP, and this model's norms stand in front (it ends in "
                f"{PRE_NORM}); use houlsby or lin"
            )
        if missing := [path for path in found if f"{path}/scale" not in shapes]:
            raise UserError(f"{family.name} shares the norm {missing[0]}, which the model does not have; use houlsby")
    return found
