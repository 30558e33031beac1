"""A run that starts from an adapter trained elsewhere: MRPC, RTE and STS-B from MNLI's (Hu et al., appendix D.1)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lowrank_jax.adapters import AdapterConfig, read_configs
from lowrank_jax.adapters.leaves.inits import FROM_KERNEL
from lowrank_jax.checkpoints.adapters_only import load_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine
from lowrank_jax.ops.quantized import NONE

PARAMS = "params/"
# Sections of an adapter's config, and the families that read them.
SECTIONS = {
    "mora": ("mora",),
    "bottleneck": ("houlsby", "pfeiffer", "lin"),
    "prefix": ("preembed", "prelayer", "prefix"),
}


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where the trained leaves begin.

    Attributes:
      adapter: folder of a saved adapter (a run's `adapter/`) of the same base and plan; None: as the family starts.
        The base may be held otherwise than it was (base.quantize): its fingerprint is that of the weights as published.
      head: what becomes of the head (and of a pooler that was drawn with it). `fresh` leaves it there and draws this
        task's own, the only way from MNLI's three classes to two or to a score; `adapter` takes it, for equal classes.
    """

    adapter: str | None = None
    head: Literal["fresh", "adapter"] = "fresh"

    def __post_init__(self):
        if self.head == "adapter" and not self.adapter:
            raise UserError("start.head is 'adapter' and start.adapter names none; give the folder of a saved adapter")


def check_start(
    config: StartConfig,
    abstract: Any,
    frozen: Any,
    is_fresh: Callable[[str], bool],
    configs: Sequence[AdapterConfig],
    quantize: str = NONE,
) -> None:
    """Reads the adapter and compares it with the leaves that are to be trained, before any long work.

    Says so where it was trained beside a base that was held in another way than this one, by `quantize`.

    Args:
      abstract, frozen: the run's trees, on shapes.
      configs: of the run's plan.

    Raises:
      UserError: see `apply_start`, but for the base's fingerprint, which only the weights have; or leaves of equal
        shapes that mean something else, as the two kinds of virtual tokens do, or MoRA's compressions.
    """
    if not config.adapter:
        return
    _leaves(config, _with_adapters(abstract, frozen), is_fresh, None)
    description = load_adapter(config.adapter)[2]
    theirs = read_configs(description["config"], config.adapter)
    if configs and (wrong := _other_meaning(theirs, configs)):
        raise UserError(
            f"start.adapter {config.adapter} does not fit: {wrong}; use the adapter section it was made with"
        )
    then = description["base"].get("quantize", NONE)
    if then != quantize and jax.process_index() == 0:
        print(f"start.adapter {config.adapter}: trained with base.quantize={then}, goes on with {quantize}", flush=True)


def apply_start(
    config: StartConfig, trainable: Any, frozen: Any, is_fresh: Callable[[str], bool], fingerprint: str | None
) -> tuple[Any, Any]:
    """Both trees with the adapter's leaves in them, in their own sharding and dtype; rules may have frozen some.

    Args:
      trainable, frozen: fresh, laid out on the mesh.
      is_fresh: path below "params" -> whether the leaf belongs to the head.
      fingerprint: of the base.

    Raises:
      UserError: no adapter there, one of another base or plan, or a head of other classes.
    """
    if not config.adapter:
        return trainable, frozen
    given = _leaves(config, _with_adapters(trainable, frozen), is_fresh, fingerprint)

    def started(tree: Any) -> dict[str, Any]:
        flat = dict(flatten(tree))
        for path in flat.keys() & given.keys():
            flat[path] = jax.device_put(jnp.asarray(given[path], flat[path].dtype), flat[path].sharding)
        return unflatten(flat)

    held = frozen.get("adapters")
    return started(trainable), {**frozen, **started({"adapters": held})} if held else frozen


def _with_adapters(trainable: Any, frozen: Any) -> Any:
    """What an adapter's folder has: the trained leaves, and the adapters' that rules froze."""
    held = frozen.get("adapters")
    return combine(trainable, {"adapters": held}) if held else trainable


def _leaves(
    config: StartConfig, wanted: Any, is_fresh: Callable[[str], bool], fingerprint: str | None
) -> dict[str, Any]:
    """The adapter's leaves by path, without its head unless the config takes that too."""

    def heads(path):
        return path.startswith(PARAMS) and is_fresh(path.removeprefix(PARAMS))

    assert config.adapter is not None  # the callers ask
    trained, _, _ = load_adapter(config.adapter, fingerprint)
    given, shapes = dict(flatten(trained)), {path: leaf.shape for path, leaf in flatten(wanted).items()}
    if config.head == "fresh":
        given = {path: leaf for path, leaf in given.items() if not heads(path)}
        shapes = {path: shape for path, shape in shapes.items() if not heads(path)}
    wrong = [f"{path} is only in the {'run' if path in shapes else 'adapter'}" for path in given.keys() ^ shapes.keys()]
    wrong += [
        f"{path} is {tuple(given[path].shape)}, the run has {tuple(shape)}"
        for path, shape in shapes.items()
        if path in given and tuple(given[path].shape) != tuple(shape)
    ]
    if wrong:
        of_head = all(heads(line.split(" ")[0]) for line in wrong)
        remedy = (
            "start.head=fresh draws this task's own head" if of_head else "use the adapter section it was made with"
        )
        raise UserError(f"start.adapter {config.adapter} does not fit: {'; '.join(sorted(wrong)[:3])}; {remedy}")
    return given


def _other_meaning(theirs: Sequence[AdapterConfig], ours: Sequence[AdapterConfig]) -> str:
    """What gives the adapter's leaves another meaning in the run; "" for nothing. Scales and dropout may differ."""
    methods = [" and ".join(one.method for one in configs) for configs in (theirs, ours)]
    if methods[0] != methods[1]:
        return f"it is of {methods[0]}, the run of {methods[1]}"
    for their, own in zip(map(_read, theirs), map(_read, ours), strict=True):
        for key, value in own.items():
            if their[key] != value:
                return f"its adapter.{key} is {their[key]}, the run's {value}"
    return ""


def _read(config: AdapterConfig) -> dict[str, Any]:
    """The keys by which a family reads its leaves, with their values."""
    section = next((name for name, methods in SECTIONS.items() if config.method in methods), "")
    values = dataclasses.asdict(getattr(config, section)) if section else {}
    found = {f"{section}.{key}": value for key, value in values.items() if key != "init"}
    return found | {"init": config.init if config.init in FROM_KERNEL else "any"}  # of these the base lacks a part
