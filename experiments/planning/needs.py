"""What a step needs of each device of its mesh: bytes by what they are for, FLOPs and transfers."""

import dataclasses
from typing import Any

import jax

from experiments.planning.topology import Target, Topology
from experiments.session.experiment import Experiment
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import combine, nbytes_a_device
from lowrank_jax.ops.flops import product_flops
from lowrank_jax.sharding.collectives import Collective, collectives
from lowrank_jax.sharding.mesh import BATCH_AXES
from lowrank_jax.train.compiled.memory import GIB, memory_report
from lowrank_jax.train.compiled.options import TRITON

KIB, MIB = 2**10, 2**20
LISTED = 8  # sizes of transfers that a plan lists; the others are summed up
FULL = "RESOURCE_EXHAUSTED"  # how XLA's error begins where a program does not fit its device
UNTILED = "No supported config found"  # XLA's words of a Triton product that it cannot time, and has no tiles for


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Bytes a device of what a step is given, from shapes and shardings alone.

    Attributes:
      params: frozen and trained.
      optimizer: its moments and counters.
      batch: the rows.
    """

    params: int
    optimizer: int
    batch: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.params + self.optimizer + self.batch


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a compiled step needs.

    Attributes:
      needed: bytes a device; None where the compiler refused a program that does not fit.
      temporary: of them, buffers of the step alone: gradients, activations, gathered weights.
      refusal: the compiler's words.
      collectives: what one step transfers.
    """

    needed: int | None
    temporary: int = 0
    refusal: str = ""
    collectives: tuple[Collective, ...] = ()

    def fits(self, usable: int) -> bool:
        """Whether it runs on devices with so many bytes."""
        return self.needed is not None and self.needed <= usable


def arguments(experiment: Experiment) -> Arguments:
    """What the step is given, a device."""
    state = experiment.abstract_state
    rest = state._replace(trainable={})
    return Arguments(
        nbytes_a_device((state.trainable, experiment.abstract_frozen)),
        nbytes_a_device(rest),
        nbytes_a_device(experiment.abstract_batch),
    )


def needs(experiment: Experiment) -> Needs:
    """Compiles the step and reads what it needs.

    Raises:
      UserError: the backend does not count memory.
    """
    try:
        compiled = _compiled(experiment)
    except jax.errors.JaxRuntimeError as error:
        if FULL not in str(error):
            raise
        return Needs(None, refusal=" ".join(str(error).partition(FULL)[2].strip(": ").split())[:200])
    report = memory_report(compiled)
    if report is None:
        raise UserError("this backend does not count a step's memory; leave --topology out")
    moved = tuple(collectives(compiled.as_text()))
    return Needs(report.needed + report.code, report.temporaries, collectives=moved)


def _compiled(experiment: Experiment) -> Any:
    """The step; without Triton's products where the compiler must time them, and no card is here.

    XLA has no tiles of its own for some bfloat16 products, among them those whose rows are no multiple of 8.
    """
    try:
        return experiment.compile()
    except jax.errors.JaxRuntimeError as error:
        if UNTILED not in str(error):
            raise
    given = experiment.abstract_state, experiment.abstract_frozen, experiment.abstract_batch
    return experiment.step.lower(*given).compile({TRITON: False})


def activations(experiment: Experiment) -> int:
    """Bytes a device of what the forward pass keeps for the backward pass, of one micro-batch.

    They are counted as traced: what JAX's derivative keeps besides the step's arguments. Rows are divided over the
    batch axes, a division of features along "tensor" is not counted.
    """
    frozen = experiment.abstract_frozen
    parts = experiment.config.train.accumulate
    batch = {
        name: jax.ShapeDtypeStruct((leaf.shape[0] // parts, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in experiment.abstract_batch.items()
    }

    def kept(trainable: Any, frozen: Any, batch: Any, key: Any) -> list:
        objective = lambda tree: experiment.objective(combine(tree, frozen), batch, {"dropout": key})  # noqa: E731
        return jax.tree.leaves(jax.vjp(objective, trainable, has_aux=True)[1])

    key = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    jaxpr = jax.make_jaxpr(kept)(experiment.abstract_state.trainable, frozen, batch, key).jaxpr
    given = {id(one) for one in (*jaxpr.invars, *jaxpr.constvars)}
    new: dict[int, Any] = {id(one): one.aval for one in jaxpr.outvars if id(one) not in given}
    shares = 1
    for axis in BATCH_AXES:
        shares *= experiment.mesh.shape[axis]
    return sum(aval.size * aval.dtype.itemsize for aval in new.values()) // shares


def step_flops(experiment: Experiment) -> int:
    """FLOPs of a step in products: weights', attention's, and those that are computed again in the backward pass."""
    given = experiment.abstract_state, experiment.abstract_frozen, experiment.abstract_batch
    return product_flops(experiment.step, *given)


def described(experiment: Experiment, slice_: Topology, target: Target, found: Needs) -> list[str]:
    """The lines of a plan for one slice."""
    given, flops, count = arguments(experiment), step_flops(experiment), slice_.count
    mesh = " ".join(f"{axis}={length}" for axis, length in experiment.mesh.shape.items())
    temporary = "unknown" if found.needed is None else f"{size(found.temporary)}, activations among them"
    lines = [
        f"{slice_}: {count} x {slice_.kind.jax}, mesh {mesh}; {target.how}",
        f"bytes a device: params {size(given.params)}, optimizer {size(given.optimizer)}, batch {size(given.batch)}, "
        f"activations {size(activations(experiment))}, temporary {temporary}",
        f"FLOPs: {flops:.3e} a step in products, {flops / count:.3e} a device",
    ]
    if found.needed is not None:
        lines += ["collectives of a step, a device:", *(f"  {line}" for line in transfers(found.collectives))]
    lines.append(verdict(found, slice_))
    return lines


def verdict(found: Needs, slice_: Topology) -> str:
    """Whether the step fits, in a line."""
    limit = f"{slice_.usable / GIB:.2f} GiB a device"
    if found.needed is None:
        return f"does not fit {limit}: {found.refusal}"
    return f"needs {found.needed / GIB:.2f} of {limit}: {'fits' if found.fits(slice_.usable) else 'does not fit'}"


def transfers(found: tuple[Collective, ...]) -> list[str]:
    """The largest transfers, and the sum of the others."""
    lines = [f"{one.kind} {size(one.nbytes)} x {one.times} = {size(one.total)}" for one in found[:LISTED]]
    if rest := found[LISTED:]:
        lines.append(f"{sum(one.times for one in rest)} others = {size(sum(one.total for one in rest))}")
    return lines or ["none"]


def size(nbytes: int) -> str:
    """A number of bytes, in the unit that suits it."""
    for unit, bytes_of_it in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if nbytes >= bytes_of_it:
            return f"{nbytes / bytes_of_it:,.1f} {unit}"
    return f"{nbytes} B"
