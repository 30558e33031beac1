"""Slices of TPUs and GPUs by name ("v5e:4x4", "h200:8"), and devices to compile for where none of them is here."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from experiments.planning import cards
from lowrank_jax.core.errors import UserError
from lowrank_jax.ops.capability import meant_for
from lowrank_jax.train.compiled.memory import GIB

SIMULATED = "--xla_force_host_platform_device_count"
# libtpu looks for a TPU's metadata server, writes its log to stderr and holds a lock: a plan needs none of them.
LIBTPU = {"TPU_SKIP_MDS_QUERY": "1", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of accelerator.

    Attributes:
      name: ours, before the colon.
      jax: jax's `device_kind`.
      gib: memory of one device that programs may use.
      shapes: the slices that are offered, the smallest first.
      platform: "tpu" or "gpu".
    """

    name: str
    jax: str
    gib: float
    shapes: tuple[str, ...]
    platform: str = "tpu"


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
COUNTS = ("1", "2", "4", "8", "16", "32", "64", "128", "256")
# Memory: of TPUs what libtpu 0.0.42 says that a program may use ("Used ... of 15.75G hbm"); of GPUs all that the card
# has, of which `usable` takes jax's share.
KINDS = {
    kind.name: kind
    for kind in (
        Kind("v5e", "TPU v5 lite", 15.75, FLAT),
        Kind("v6e", "TPU v6 lite", 31.25, FLAT),
        Kind("v5p", "TPU v5", 95.74, CUBES),
        *(Kind(name, card.name, card.gib, COUNTS, "gpu") for name, card in cards.CARDS.items()),
    )
}
FRACTION, DEFAULT_FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: its kind and its shape ("4x4"; of GPUs their number)."""

    kind: Kind
    shape: str

    def __str__(self) -> str:
        return f"{self.kind.name}:{self.shape}"

    @property
    def count(self) -> int:
        """Devices in it."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def usable(self) -> int:
        """Bytes of a device that a program may use; of a GPU, the share that jax takes at its start.

        Raises:
          UserError: the environment's share is no number above 0.
        """
        share = _share() if self.kind.platform == "gpu" else 1.0
        return int(self.kind.gib * share * GIB)

    def others(self) -> list["Topology"]:
        """All slices of this kind that are offered, the smallest first."""
        return [Topology(self.kind, shape) for shape in self.kind.shapes]


def _share() -> float:
    given = os.environ.get(FRACTION) or str(DEFAULT_FRACTION)
    try:
        share = float(given)
    except ValueError:
        share = math.nan
    if not 0 < share < math.inf:
        raise UserError(
            f"{FRACTION}={given[:40]} is no share of a card's memory; give a number such as 0.9, or unset it"
        )
    return share


def parse(text: str) -> Topology:
    """The slice of a name.

    Raises:
      UserError: it is not "KIND:SIZE" with a known kind and a possible size.
    """
    name, colon, shape = text.partition(":")
    kind = KINDS.get(name)
    if kind is None or not colon:
        raise UserError(
            f"--topology is {text[:40]!r}; write KIND:SIZE with one of {', '.join(KINDS)}, e.g. v5e:4x4 or h200:8"
        )
    example = kind.shapes[3]
    axes = len(example.split("x"))
    if not re.fullmatch(rf"[1-9][0-9]{{0,3}}(x[1-9][0-9]{{0,3}}){{{axes - 1}}}", shape):
        sizes = "a number of cards" if axes == 1 else f"{axes} sizes"
        raise UserError(f"--topology={text[:40]}: a slice of {name} is written with {sizes}, e.g. {name}:{example}")
    found = Topology(kind, shape)
    most = max(found.others(), key=lambda one: one.count)
    if found.count > most.count or (kind.platform == "tpu" and shape not in kind.shapes):
        offered = f"1 to {most.count} cards" if axes == 1 else ", ".join(kind.shapes)
        raise UserError(f"--topology={text[:40]}: {name} is offered as {offered}")
    return found


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      devices: as many as the slice has.
      exact: whether the compiler is the slice's own.
      how: in words, for the reader.
      absent: whether they are GPUs that this machine does not have.
    """

    devices: Sequence[Any]
    exact: bool
    how: str
    absent: bool = False


def prepare(asked: Topology) -> None:
    """Settles which devices jax starts, before it does: of libtpu's compiler the CPU alone, otherwise the CPU too.

    JAX_PLATFORMS may name another platform, which need not be here.

    Raises:
      UserError: as `Topology.usable`.
    """
    import jax

    _ = asked.usable  # a wrong share is named before anything is compiled
    given = getattr(jax.config, "jax_platforms", None)
    if compiles_for_tpu(asked):
        jax.config.update("jax_platforms", "cpu")  # a TPU that is here stays free for others
        return
    if compiles_for_cards(asked):
        cards.prepare()
        if given and "cpu" not in given.split(","):
            jax.config.update("jax_platforms", f"{given},cpu")
        return
    if given:
        jax.config.update("jax_platforms", "cpu")
    if SIMULATED not in os.environ.get("XLA_FLAGS", ""):
        count = max(one.count for one in (asked, *asked.others()))
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {SIMULATED}={count}".strip()


def compiles_for_tpu(asked: Topology) -> bool:
    """Whether libtpu is here, whose compiler needs no TPU."""
    return asked.kind.platform == "tpu" and importlib.util.find_spec("libtpu") is not None


def compiles_for_cards(asked: Topology) -> bool:
    """Whether jax's CUDA plugin, whose compiler needs no card, is here to compile for it."""
    return asked.kind.platform == "gpu" and cards.has_compiler()


@contextlib.contextmanager
def planning_for(asked: Topology, found: Target) -> Iterator[None]:
    """Inside, programs are traced as the slice's devices run them, if their own compiler compiles (`found.exact`)."""
    if not found.exact:
        yield
        return
    with (
        meant_for(found.devices[0]),
        cards.cudnn_is_there(asked.kind.name) if found.absent else contextlib.nullcontext(),
    ):
        yield


def target(asked: Topology) -> Target:
    """The devices of a slice: this machine's own, those that the slice's compiler describes, or simulated ones.

    Raises:
      UserError: a compiler refuses the slice, or XLA_FLAGS asks for fewer simulated devices than it has.
    """
    import jax

    if compiles_for_tpu(asked):
        return Target(_of_libtpu(asked), True, "compiled by libtpu for that slice, not run")
    if jax.default_backend() == "gpu":
        own = [one for one in jax.devices() if one.device_kind == asked.kind.jax]
        if len(own) >= asked.count:
            return Target(own[: asked.count], True, "compiled for this machine's own cards")
    if compiles_for_cards(asked):
        return Target(_of_cuda(asked), True, "compiled by XLA's CUDA compiler for these cards, not run", absent=True)
    simulated = jax.devices("cpu")[: asked.count]
    if len(simulated) < asked.count:
        raise UserError(
            f"{asked} needs {asked.count} simulated devices and XLA_FLAGS asks for {len(simulated)}; unset {SIMULATED}"
        )
    tpu = asked.kind.platform == "tpu"
    missing = "libtpu is not installed" if tpu else "no such cards are here, nor jax's CUDA plugin"
    return Target(
        simulated, False, f"an estimate: {missing}, so XLA compiled for simulated CPU devices, whose memory differs"
    )


def _of_libtpu(asked: Topology) -> Sequence[Any]:
    from jax.experimental import topologies

    for name, value in LIBTPU.items():
        os.environ.setdefault(name, value)
    one = {"chips_per_host_bounds": (1, 1, 1)} if asked.count == 1 else {}
    try:
        return topologies.get_topology_desc(str(asked), "tpu", **one).devices
    except Exception as error:
        line = str(error).strip().splitlines()[0][:200]
        raise UserError(f"libtpu does not know the slice {asked} ({line}); take another one") from error


def _of_cuda(asked: Topology) -> Sequence[Any]:
    try:
        return cards.devices(asked.kind.name, asked.count)
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"jax's CUDA plugin cannot compile for {asked} ({line}); install the plugin of this jax's version"
        ) from error
