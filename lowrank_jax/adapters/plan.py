"""The plan: where adapter configurations act on a model, with the rank and the parameters of each site."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lowrank_jax.adapters.base import ALL_LINEAR, AdapterConfig, AdapterSpec, Family
from lowrank_jax.adapters.registry import TABLES, get_family
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, nearest
from lowrank_jax.core.types import Tree

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
    kind = "kernel" if get_family(config.method).merges else "module"
    rows: list[tuple[Any, ...]] = [(kind, "layers", "d_in", "d_out", "rank", "leaves", "scale", "parameters")]
    for site in sites:
        spec, family = site.spec, site.family
        leaves = " ".join(f"{k} {'x'.join(map(str, v))}" for k, v in family.shapes(spec).items())
        scale, total = f"{family.scale(spec):g}", f"{site.parameters:,}"
        rows.append((site.path, math.prod(spec.stack), spec.d_in, spec.d_out, spec.rank, leaves, scale, total))
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
        place in the model, two configurations act on one module, a kernel's first axes are no layers (split heads, a
        convolution), or `params` are all variables.
    """
    configs = (config,) if isinstance(config, AdapterConfig) else tuple(config)
    if isinstance(params.get("params"), Mapping):
        raise UserError('make_plan takes the "params" tree alone: give it variables["params"], not all variables')
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(params).items()}
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
    return Plan(adapting or configs[:1], tuple(site for _, site in sorted(sites.items())))


def _modules(shapes: Mapping[str, Shape], leaf: str) -> dict[str, Shape]:
    """{path of a module: shape of its leaf of this name}."""
    ending = f"/{leaf}"
    return {path.removesuffix(ending): s for path, s in shapes.items() if path.endswith(ending) and len(s) >= 2}


def _sites(config: AdapterConfig, kernels: dict[str, Shape], shapes: Mapping[str, Shape]) -> list[Site]:
    """The sites of one configuration."""
    family, tables = get_family(config.method), {}
    if not family.merges:
        known = _places(family, kernels, shapes)
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
    for path, shape in chosen.items():
        _check_stack(path, shape, kernels, shapes)
    return [_site(config, path, shape, path in tables) for path, shape in chosen.items()]


def _check_stack(path: str, shape: Shape, kernels: Mapping[str, Shape], shapes: Mapping[str, Shape]) -> None:
    """Refuses axes in front of [d_in, d_out] that are no layers, as far as shapes tell.

    A scan stacks every leaf of a layer alike: a bias is then [*stack, d_out], and the kernels of one module have equal
    axes in front. Flax's attention has kernels [d, heads, d_head] and [heads, d_head, d], a convolution [width, d, d].
    One kernel by itself without a bias is refused where it is called (`attach`).
    """
    stack, parent = shape[:-2], path.rpartition("/")[0]
    if not stack:
        return
    bias = shapes.get(f"{path}/bias")
    beside = {other: s[:-2] for other, s in kernels.items() if other.rpartition("/")[0] == parent and parent}
    odd = next((other for other, axes in beside.items() if axes != stack), None)
    if bias is not None and bias != (*stack, shape[-1]):
        why = f"its bias {list(bias)} is not stacked as its kernel {list(shape)}"
    elif odd is not None:
        why = f"its kernel is {list(shape)} and that of {odd} beside it {list(kernels[odd])}"
    else:
        return
    raise UserError(
        f"{path}: {why}, hence the first axes are no layers of a scan (split heads, a convolution); name it in "
        "adapter.exclude"
    )


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


def _places(family: Family, kernels: dict[str, Shape], shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """{path of a module that the family has a place at: shape of the kernel beside it, whose output is as wide}."""
    found = {}
    for module, kernel in family.sites:
        for path, shape in kernels.items():
            if path == kernel or path.endswith(f"/{kernel}"):
                found[path.removesuffix(kernel) + module] = shape
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
    return re.fullmatch(rf"(?:.*/)?(?:{target})", path) is not None


def _matches(target: str, path: str, field: str) -> bool:
    try:
        return matches(target, path)
    except re.error as error:
        raise UserError(f"adapter.{field} entry {target!r} is no regular expression: {error}") from None


def _check_names(
    config: AdapterConfig, field: str, targets: Iterable[str], known: Mapping[str, Shape], near: Mapping[str, Shape]
) -> None:
    """Every entry of a field must name one of the known modules; `near` are further names to suggest."""
    kinds = "kernel" if get_family(config.method).merges else "place"
    for target in targets:
        if any(_matches(target, path, field) for path in known):
            continue
        ends = sorted({path.split("/")[-1] for path in known})
        close = nearest(target, {*known, *ends, *near})
        hint = f"did you mean {' or '.join(close)}?" if close else f"{kinds}s: {', '.join(ends)}"
        hint += f", or '{ALL_LINEAR}'" if kinds == "kernel" and not close else ""
        raise UserError(f"adapter.{field} entry {target!r} matches no {kinds} of the model; {hint}")
