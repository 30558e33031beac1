"""The plan: which kernels an adapter configuration touches, with the rank and the parameters of each."""

import dataclasses
import math
import re
from collections.abc import Iterable

from lowrank_jax.adapters.base import ALL_LINEAR, AdapterConfig, AdapterSpec, Family
from lowrank_jax.adapters.registry import get_family
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, nearest
from lowrank_jax.core.types import Tree

# Output layers, which `all-linear` leaves out: PEFT does so for a model's output embedding ("lm_head") and for
# "score" and "classifier", and adapts BERT's pooler. "head" is our Llama's.
OUTPUT_HEADS = ("head", "lm_head", "classifier", "score")


@dataclasses.dataclass(frozen=True)
class Site:
    """One module whose kernel gets an update, e.g. path "layers/attention/query"."""

    path: str
    spec: AdapterSpec


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sites of one adapter configuration, in path order. Static and hashable."""

    config: AdapterConfig
    sites: tuple[Site, ...]

    @property
    def family(self) -> Family:
        """The family that serves every site."""
        return get_family(self.config.method)

    @property
    def parameters(self) -> int:
        """Trainable scalars over all sites and layers."""
        return sum(self.family.parameters(site.spec) * math.prod(site.spec.stack) for site in self.sites)

    def __str__(self) -> str:
        """The table that is printed before training."""
        if not self.sites:
            return "adapters: none"
        rows = [("kernel", "layers", "d_in", "d_out", "rank", "leaves", "scale", "parameters")]
        for site in self.sites:
            spec, layers = site.spec, math.prod(site.spec.stack)
            leaves = " ".join(f"{k} {'x'.join(map(str, v))}" for k, v in self.family.shapes(spec).items())
            scale, total = f"{self.family.scale(spec):g}", f"{layers * self.family.parameters(spec):,}"
            rows.append((site.path, layers, spec.d_in, spec.d_out, spec.rank, leaves, scale, total))
        widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        kind = self.config.method
        if kind == "mora":
            kind += f" ({self.config.mora.compression})"
        return "\n".join(
            [*(line.rstrip() for line in lines), f"{kind}: {self.parameters:,} trainable parameters, float32"]
        )


def make_plan(params: Tree, config: AdapterConfig) -> Plan:
    """Matches the targets against the kernels of a model.

    Args:
      params: the "params" tree (arrays or ShapeDtypeStructs). A kernel is a leaf named "kernel" whose last two axes are
        [d_in, d_out]; axes before them are layers stacked by a scan.
      config: the adapter configuration; method `none` gives a plan without sites.

    Raises:
      UserError: a target or pattern matches no kernel (the near misses are named), or the family refuses a shape.
    """
    if config.method == "none":
        return Plan(config, ())
    family = get_family(config.method)
    kernels = {
        path.removesuffix("/kernel"): leaf.shape
        for path, leaf in flatten(params).items()
        if path.endswith("/kernel") and len(leaf.shape) >= 2
    }
    for name in ("targets", "exclude", "rank_pattern", "alpha_pattern"):
        for entry in getattr(config, name):
            target = entry if isinstance(entry, str) else entry[0]
            try:
                re.compile(target)
            except re.error as error:
                raise UserError(f"adapter.{name} entry {target!r} is no regular expression: {error}") from None
            if not any(matches(target, path) for path in kernels):
                raise UserError(_no_match(name, target, kernels))
    chosen = {
        path: shape
        for path, shape in sorted(kernels.items())
        if any(matches(t, path) for t in config.targets) and not any(matches(t, path) for t in config.exclude)
    }
    if not chosen:
        raise UserError(
            f"adapter.exclude {list(config.exclude)} leaves nothing of adapter.targets {list(config.targets)}"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        for target, _ in getattr(config, name):
            if not any(matches(target, path) for path in chosen):
                raise UserError(f"adapter.{name} entry {target!r} matches none of the adapted kernels {list(chosen)}")
    sites = []
    for path, shape in chosen.items():
        spec = AdapterSpec(
            *shape[-2:],
            rank=next((rank for target, rank in config.rank_pattern if matches(target, path)), config.rank),
            alpha=next((alpha for target, alpha in config.alpha_pattern if matches(target, path)), config.alpha),
            scaling=config.scaling,
            dropout=config.dropout,
            init=config.init,
            init_std=config.init_std,
            stack=tuple(shape[:-2]),
            mora=config.mora,
        )
        try:
            family.shapes(spec)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        sites.append(Site(path, spec))
    return Plan(config, tuple(sites))


def matches(target: str, path: str) -> bool:
    """Whether a target names the module at `path`: a regular expression for the whole path or its last parts.

    `all-linear` names every module but those called as one of OUTPUT_HEADS and those inside one at the model's top.
    """
    if target == ALL_LINEAR:
        parts = path.split("/")
        return not {parts[0], parts[-1]} & set(OUTPUT_HEADS)
    return re.fullmatch(rf"(?:.*/)?(?:{target})", path) is not None


def _no_match(name: str, target: str, kernels: Iterable[str]) -> str:
    ends = sorted({path.split("/")[-1] for path in kernels})
    close = nearest(target, set(kernels) | set(ends))
    hint = f"did you mean {' or '.join(close)}?" if close else f"kernels: {', '.join(ends)}, or '{ALL_LINEAR}'"
    return f"adapter.{name} entry {target!r} matches no kernel of the model; {hint}"
