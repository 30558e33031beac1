"""A run that starts from an adapter trained elsewhere: MRPC, RTE and STS-B from MNLI's (Hu et al., appendix D.1)."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lowrank_jax.checkpoints.adapters_only import load_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.ops.quantized import NONE

PARAMS = "params/"


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


def check_start(config: StartConfig, abstract: Any, is_fresh: Callable[[str], bool], quantize: str = NONE) -> None:
    """Reads the adapter and compares it with the leaves that are to be trained, before any long work.

    Says so where it was trained beside a base that was held in another way than this one, by `quantize`.

    Raises:
      UserError: see `apply_start`, but for the base's fingerprint, which only the weights have.
    """
    if not config.adapter:
        return
    _leaves(config, abstract, is_fresh, None)
    then = load_adapter(config.adapter)[2]["base"].get("quantize", NONE)
    if then != quantize and jax.process_index() == 0:
        print(f"start.adapter {config.adapter}: trained with base.quantize={then}, goes on with {quantize}", flush=True)


def apply_start(config: StartConfig, trainable: Any, is_fresh: Callable[[str], bool], fingerprint: str | None) -> Any:
    """The trainable tree with the adapter's leaves in it, in their own sharding and dtype.

    Args:
      trainable: fresh, laid out on the mesh.
      is_fresh: path below "params" -> whether the leaf belongs to the head.
      fingerprint: of the base.

    Raises:
      UserError: no adapter there, one of another base or plan, or a head of other classes.
    """
    if not config.adapter:
        return trainable
    flat, given = dict(flatten(trainable)), _leaves(config, trainable, is_fresh, fingerprint)
    for path, value in given.items():
        flat[path] = jax.device_put(jnp.asarray(value, flat[path].dtype), flat[path].sharding)
    return unflatten(flat)


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
