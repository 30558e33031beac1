"""What a run watches beside its loss: speed a device, waits for data, memory, and the size and rank of its update."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from experiments.bench.training.work import PEAKS, step_flops, utilisation
from experiments.session.experiment import Experiment
from experiments.session.trial_group import TrialGroup
from lowrank_jax import adapters
from lowrank_jax.adapters.analysis.spectrum import singular_values
from lowrank_jax.adapters.analysis.updates import differences, size_and_rank
from lowrank_jax.core.paths import flatten
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.sharding.mesh import batch_share, replicated
from lowrank_jax.train.compiled import memory
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.rhythm import LoopConfig

GIB = 2**30


class Watch:
    """The measurements of a session with `tracking.observe_every`.

    Args:
      program: a run, or several in one program.
    """

    def __init__(self, program: Experiment | TrialGroup):
        self._program, self._every = program, program.lead.config.tracking.observe_every
        self._waited, self._positions = 0.0, 0
        self._kind, self._devices = jax.devices()[0].device_kind, program.mesh.size

    def stream(self, batches: Any) -> Any:
        """The stream, of which each batch is counted, and how long the loop waited for it."""
        return _Watched(batches, self._count)

    def more(self, step: int, seconds: float) -> Callable[[int, Mapping[str, Any]], dict[str, float]]:
        """(step, a record of the loss) -> what is added to it, at the first record of each `observe_every` steps.

        Each trial's records need a function of their own. The values are of all trials together:

        * tokens_per_second_per_device: counted as tokens_per_second is.
        * mfu: see `work.utilisation`; absent where the device's peak is unknown.
        * data_wait: share of the time in steps that the loop waited for a batch.
        * peak_gib: most memory of a device since the start.

        Args:
          step, seconds: done before this session, and the time in them.
        """
        last = {"step": step, "seconds": seconds, "waited": 0.0, "positions": 0}

        def found(step: int, record: Mapping[str, Any]) -> dict[str, float]:
            if "tokens_per_second" not in record or step // self._every == last["step"] // self._every:
                return {}
            seconds = record["train_seconds"] - last["seconds"]
            waited, positions = self._waited - last["waited"], self._positions - last["positions"]
            last.update(step=step, seconds=record["train_seconds"], waited=self._waited, positions=self._positions)
            rate = record["tokens_per_second"] * len(self._program.each) / self._devices
            values = {"tokens_per_second_per_device": rate, "data_wait": min(1.0, waited / seconds) if seconds else 0.0}
            if self._kind in PEAKS and seconds:
                mfu = utilisation(self._flops_per_token * positions, seconds, self._kind, self._devices)
                values["mfu"] = mfu or 0.0
            if peak := memory.peak_bytes():
                values["peak_gib"] = peak / GIB
            return values

        return found

    def evaluators(self) -> list[Evaluator]:
        """[norm and effective rank of the update], or [] where no kernel changes (bottleneck and prefix families)."""
        each = self._program.each
        if not all(map(_changes_kernels, each)):
            return []
        measures = [_measure(one) for one in each]

        def evaluate(state: Any, frozen: Any) -> list[dict[str, float]]:
            trials = (self._program.trial(state, frozen, index) for index in range(len(each)))
            return [measure(*trial) for measure, trial in zip(measures, trials, strict=True)]

        return [_Update("update", self._due, evaluate)]

    def _due(self, config: LoopConfig, step: int) -> bool:
        del config
        return step > 0 and step % self._every == 0

    def _count(self, seconds: float, batch: Mapping[str, Any]) -> None:
        self._waited += seconds
        self._positions += batch["tokens"].size * batch_share(self._program.lead.mesh)["process_count"]

    @functools.cached_property
    def _flops_per_token(self) -> float:
        return step_flops(self._program.lead, 1)


class _Update(Evaluator):
    """No score of the model: its keys do not begin with "eval/", which tables read."""

    def keys(self, values: dict[str, float]) -> dict[str, float]:
        return {f"{self.name}/{name}": value for name, value in values.items()}


class _Watched:
    """A stream that tells of each batch: (seconds that it took, the batch)."""

    def __init__(self, batches: Any, tell: Callable[[float, Mapping[str, Any]], None]):
        self._batches, self._tell = batches, tell

    def __next__(self) -> dict[str, Any]:
        begin = time.perf_counter()
        batch = next(self._batches)
        self._tell(time.perf_counter() - begin, batch)
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batches, name)


def _trains_kernels(one: Experiment) -> bool:
    trained = flatten(one.abstract_state.trainable.get("params", {}))
    return any(path.startswith("layers") and path.endswith("/kernel") for path in trained)


def _changes_kernels(one: Experiment) -> bool:
    """Whether the update is one of kernels alone."""
    merges = [site.family.merges for site in one.plan.sites]
    return all(merges) and (bool(merges) or _trains_kernels(one))


def _measure(one: Experiment) -> Callable[[Any, Any], dict[str, float]]:
    """(state, frozen) -> {"norm", "effective_rank"} of final minus initial kernels; every process takes part.

    Adapters alone are measured as they are; where kernels are trained, or merges change them, the base is read again.
    """
    read_again = _trains_kernels(one) or bool(one.config.restart.every)

    whole = replicated(one.mesh)
    of_adapters = jax.jit(lambda variables: size_and_rank(singular_values(variables, one.plan)), out_shardings=whole)
    of_kernels = jax.jit(lambda initial, final: size_and_rank(differences(initial, final)), out_shardings=whole)

    def measure(state: Any, frozen: Any) -> dict[str, float]:
        variables = one.variables(state, frozen)
        if not read_again:
            found = of_adapters(variables)
        else:
            final = Segments().undo(adapters.merge(variables, one.plan))  # checks values: not to be traced
            found = of_kernels(Segments().undo(one.weights.load_base().params), final)
        return {name: float(value) for name, value in found.items()}

    return measure
