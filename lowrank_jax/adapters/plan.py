"""The plan: where adapter configurations act on a model, with the rank and the parameters of each site."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_jax.adapters.base import ALL_LINEAR, AdapterConfig, AdapterSpec, Family
from lowrank_jax.adapters.prefix.places import VirtualTokens, find_places, virtual_tokens
from lowrank_jax.adapters.registry import TABLES, get_family
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, nearest
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.types import Tree

TEMPLATE = r"(?:.*/)?(?:{})"  # a target names a whole path or its last parts
# Output layers, which `all-linear` leaves out: PEFT does so for a model's output embedding ("lm_head") and for
# "score" and "classifier", and adapts BERT's pooler. "head" is our Llama's.
OUTPUT_HEADS = ("head", "lm_head", "classifier", "score")
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites of one or several adapter configurations, in path order. Static and hashable."""

    configs: tuple[AdapterConfig, ...]
    sites: tuple[Site, ...]

    @property
    def config(self) -> AdapterConfig:
        """The only configuration.

        Raises:
          UserError: there are several.
        """
        if len(self.configs) != 1:
            raise UserError(f"the plan holds {self.methods}; this works for one family at a time")
        return self.configs[0]

    @property
    def methods(self) -> str:
        """The families' names, in words."""
        return " and ".join(config.method for config in self.configs)

    @property
    def family(self) -> Family:
        """The family of the only configuration; see `config`."""
        return get_family(self.config.method)

    @property
    def virtual(self) -> VirtualTokens | None:
        """The virtual tokens of a prefix family; None where the plan has none."""
        return virtual_tokens([site.spec for site in self.sites if site.family.virtual])

    @property
    def parameters(self) -> int:
        """Trainable scalars over all sites and layers."""
        return sum(site.parameters for site in self.sites)

    def __str__(self) -> str:
        """The table that is printed before training: one part for each configuration, then their sum."""
        if not self.sites:
            return "adapters: none"
        parts = [_table(config, [site for site in self.sites if site.config == config]) for config in self.configs]
        if len(parts) > 1:
            parts.append(f"together: {self.parameters:,} trainable parameters, float32")
        return "\n".join(parts)


def _table(config: AdapterConfig, sites: Sequence[Site]) -> str:
    kind, virtual = "kernel" if get_family(config.method).merges else "module", get_family(config.method).virtual
    sizes = ("prefix", "infix", "width") if virtual else ("d_in", "d_out", "rank")
    rows: list[tuple[Any, ...]] = [(kind, "layers", *sizes, "leaves", "scale", "parameters")]
    for site in sites:
        spec, family = site.spec, site.family
        leaves = " ".join(f"{k} {'x'.join(map(str, v))}" for k, v in family.shapes(spec).items())
        scale, total = f"{family.scale(spec):g}", f"{site.parameters:,}"
        of_prefix = (config.prefix.tokens, config.prefix.infix, spec.d_out)
        size = of_prefix if virtual else (spec.d_in, spec.d_out, spec.rank)
        rows.append((site.path, math.prod(spec.stack), *size, leaves, scale, total))
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    name = config.method
    if name == "mora":
        name += f" ({config.mora.compression})"
    total = sum(site.parameters for site in sites)
    return "\n".join([*(line.rstrip() for line in lines), f"{name}: {total:,} trainable parameters, float32"])


def make_plan(params: Tree, config: AdapterConfig | Sequence[AdapterConfig]) -> Plan:
    """Finds where each configuration acts on a model.

    Args:
      params: the "params" tree (arrays or ShapeDtypeStructs). A kernel is a leaf named "kernel" whose last two axes are
        [d_in, d_out]; axes before them are layers stacked by a scan. A table is a leaf named "embedding" [rows, d].
      config: the adapter configuration, or several, each with its own sites; method `none` has no site.

    Raises:
      UserError: a target or pattern matches nothing (the near misses are named), the family refuses a shape or finds no
        place in the model, two configurations act on one module or both have virtual tokens, a kernel's first axes are
        no layers (split heads, a convolution), or `params` are all variables.
    """
    configs = (config,) if isinstance(config, AdapterConfig) else tuple(config)
    shapes = {path: tuple(leaf.shape) for path, leaf in flat_params(params, "make_plan").items()}
    kernels = _modules(shapes, "kernel")
    sites: dict[str, Site] = {}
    for one in configs:
        for site in _sites(one, kernels, shapes) if one.method != "none" else ():
            if other := sites.get(site.path):
                raise UserError(
                    f"{site.path} is adapted by {other.config.method} and by {one.method}; name it in the "
                    "adapter.exclude of one of them"
                )
            sites[site.path] = site
    adapting = tuple(one for one in configs if one.method != "none")
    plan = Plan(adapting or configs[:1], tuple(site for _, site in sorted(sites.items())))
    virtual_tokens([site.spec for site in plan.sites if site.family.virtual])  # refuses several
    return plan


def flat_params(params: Tree, reader: str) -> dict[str, Any]:
    """`flatten(params)`, of what is a "params" tree of arrays or shapes.

    Args:
      reader: the function that was given them, for messages.

    Raises:
      UserError: they are all variables, or boxes (`nn.with_partitioning`).
    """
    if isinstance(params.get("params"), Mapping):
        raise UserError(f'{reader} takes the "params" tree alone: give it variables["params"], not all variables')
    flat = flatten(params)
    if boxed := [path for path, leaf in flat.items() if not hasattr(leaf, "shape")]:
        kind = type(flat[boxed[0]]).__name__
        raise UserError(f"{boxed[0]} is a {kind}, no array: give {reader} flax.linen.meta.unbox(variables)['params']")
    return flat


def weight_of(site: Site, flat: Mapping[str, Any]) -> Any:
    """The weight that a site's update goes into, among the leaves of `flat_params`.

    Raises:
      UserError: it is not there, or has another shape than the plan was made of.
    """
    wanted = (*site.spec.stack, site.spec.d_in, site.spec.d_out)
    leaf = flat.get(site.weight)
    if leaf is None or tuple(leaf.shape) != wanted:
        found = "is not there" if leaf is None else f"has shape {tuple(leaf.shape)}"
        raise UserError(f"{site.weight} {found} where the plan has {wanted}; make the plan from these params")
    return leaf


def _modules(shapes: Mapping[str, Shape], leaf: str) -> dict[str, Shape]:
    """{path of a module: shape of its leaf of this name}."""
    ending = f"/{leaf}"
    return {path.removesuffix(ending): s for path, s in shapes.items() if path.endswith(ending) and len(s) >= 2}


def _sites(config: AdapterConfig, kernels: dict[str, Shape], shapes: Mapping[str, Shape]) -> list[Site]:
    """The sites of one configuration."""
    family, tables, beside = get_family(config.method), {}, {}
    if family.virtual:
        return [Site(path, spec) for path, spec in find_places(family, config, kernels, shapes).items()]
    if not family.merges:
        beside = _places(family, kernels, shapes)
        known = {path: kernels[kernel] for path, kernel in beside.items()}
        wanted = known
    else:
        all_tables = _modules(shapes, "embedding") if config.method in TABLES else {}
        # A target that fits kernels means kernels alone: "all-linear" and ".*" never take a table along.
        named = [t for t in config.targets if not any(_matches(t, path, "targets") for path in kernels)]
        tables = {path: shape for path, shape in all_tables.items() if any(matches(t, path) for t in named)}
        known = kernels | tables
        _check_names(config, "targets", config.targets, known, all_tables)
        wanted = {path: shape for path, shape in known.items() if any(matches(t, path) for t in config.targets)}
    for name in ("exclude", "rank_pattern", "alpha_pattern"):
        entries = [entry if isinstance(entry, str) else entry[0] for entry in getattr(config, name)]
        _check_names(config, name, entries, known, {})
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


def matches(target: str, path: str) -> bool:
    """Whether a target names the module at `path`: a regular expression for the whole path or its last parts.

    `all-linear` names every module but those called as one of OUTPUT_HEADS and those inside one at the model's top.
    """
    if target == ALL_LINEAR:
        parts = path.split("/")
        return not {parts[0], parts[-1]} & set(OUTPUT_HEADS)
    return re.fullmatch(TEMPLATE.format(target), path) is not None


def _matches(target: str, path: str, field: str) -> bool:
    check_pattern(f"adapter.{field} entry", target, TEMPLATE)
    return matches(target, path)


def _check_names(
    config: AdapterConfig, field: str, targets: Iterable[str], known: Mapping[str, Shape], near: Mapping[str, Shape]
) -> None:
    """Every entry of a field must name one of the known modules; `near` are further names to suggest."""
    kinds = "kernel" if get_family(config.method).merges else "place"
    for target in targets:
        if any(_matches(target, path, field) for path in known):
            continue
        if not known and not near:
            raise UserError(f"adapter.{field} entry {target!r}: the params have no {kinds} below a module's name")
        ends = sorted({path.split("/")[-1] for path in known})
        close = nearest(target, {*known, *ends, *near})
        hint = f"did you mean {' or '.join(close)}?" if close else f"{kinds}s: {', '.join(ends)}"
        hint += f", or '{ALL_LINEAR}'" if kinds == "kernel" and not close else ""
        raise UserError(f"adapter.{field} entry {target!r} matches no {kinds} of the model; {hint}")
