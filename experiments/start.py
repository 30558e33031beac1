"""A run that starts from an adapter trained elsewhere: MRPC, RTE and STS-B from MNLI's (Hu et al., appendix D.1)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lowrank_jax.checkpoints.adapters_only import load_adapter
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten

HEAD = "params/head/"


@dataclasses.dataclass(frozen=True)
class StartConfig:
    """Where the trained leaves begin.

    Attributes:
      adapter: folder of a saved adapter (a run's `adapter/`) of the same base and plan; None: as the family starts.
      head: what becomes of the head that was trained with it. `fresh` leaves it there and draws this task's own, which
        is the only way from MNLI's three classes to two or to a score; `adapter` takes it over, classes being equal.
    """

    adapter: str | None = None
    head: Literal["fresh", "adapter"] = "fresh"

    def __post_init__(self):
        if self.head == "adapter" and not self.adapter:
            raise UserError("start.head is 'adapter' and start.adapter names none; give the folder of a saved adapter")


def check_start(config: StartConfig, abstract: Any) -> None:
    """Reads the adapter and compares it with the leaves that are to be trained, before any long work.

    Raises:
      UserError: see `apply_start`, but for the base's fingerprint, which only the weights have.
    """
    if config.adapter:
        _leaves(config, abstract, None)


def apply_start(config: StartConfig, trainable: Any, fingerprint: str) -> Any:
    """The trainable tree with the adapter's leaves in it, in their own sharding and dtype.

    Args:
      trainable: fresh, laid out on the mesh.
      fingerprint: of the base.

    Raises:
      UserError: no adapter there, one of another base or plan, or a head of other classes.
    """
    if not config.adapter:
        return trainable
    flat, given = dict(flatten(trainable)), _leaves(config, trainable, fingerprint)
    for path, value in given.items():
        flat[path] = jax.device_put(jnp.asarray(value, flat[path].dtype), flat[path].sharding)
    return unflatten(flat)


def _leaves(config: StartConfig, wanted: Any, fingerprint: str | None) -> dict[str, Any]:
    """The adapter's leaves by path, without its head unless the config takes that too."""
    trained, _, _ = load_adapter(config.adapter, fingerprint)
    given, shapes = dict(flatten(trained)), {path: leaf.shape for path, leaf in flatten(wanted).items()}
    if config.head == "fresh":
        given = {path: leaf for path, leaf in given.items() if not path.startswith(HEAD)}
        shapes = {path: shape for path, shape in shapes.items() if not path.startswith(HEAD)}
    wrong = [f"{path} is only in the {'run' if path in shapes else 'adapter'}" for path in given.keys() ^ shapes.keys()]
    wrong += [
        f"{path} is {tuple(given[path].shape)}, the run has {tuple(shape)}"
        for path, shape in shapes.items()
        if path in given and tuple(given[path].shape) != tuple(shape)
    ]
    if wrong:
        heads = any(HEAD in line for line in wrong)
        remedy = "start.head=fresh draws this task's own head" if heads else "use the adapter section it was made with"
        raise UserError(f"start.adapter {config.adapter} does not fit: {'; '.join(sorted(wrong)[:3])}; {remedy}")
    return given
