"""A run described by shapes, before any weight is loaded: what it trains, its step, data and evaluations."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.config.plain import to_plain
from experiments.config.schema import RunConfig
from experiments.session.by_length import by_length
from experiments.session.evaluators import evaluators_of, score_one
from experiments.session.weights import Weights, is_fresh
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base
from lowrank_jax.core.paths import flatten, unknown_name
from lowrank_jax.core.trees import combine, count
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.forms.base import Evaluation, Form, Setting
from lowrank_jax.layouts.fused import Fused, Groups
from lowrank_jax.layouts.unstacked import Unstacked
from lowrank_jax.models.parts.stack import is_unrolled
from lowrank_jax.ops.quantized import NONE
from lowrank_jax.sharding.mesh import batch_share
from lowrank_jax.tasks.base import Task
from lowrank_jax.train.compiled.kept_step import describe, kept_step
from lowrank_jax.train.compiled.options import counting_options
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.state import TrainState

SOURCES = ("lowrank_jax", "experiments")  # folders whose files make the step
# Sections and keys of the config without influence on the traced step; a seed and a rate are its arguments.
NO_PART_OF_THE_STEP = ("name", "labels", "tracking", "checkpoint", "export", "seed")
COMPILING = "compiling the step (most take less than a minute) ..."
NO_FILE = "no file"


@dataclasses.dataclass
class Experiment:
    """A run that has been checked and traced on shapes; no weight has been read yet.

    Attributes:
      config: the run's config, unpacked; its length is in steps, keys left to the data have values (see `fit`), and its
        base has the head that the task needs.
      mesh: the devices.
      base: the base model with ShapeDtypeStructs for params.
      plan: the adapters' sites.
      form: what kind of task it is.
      task: examples and scores; None for a bench on random tokens.
      setting: what the form is given of the run.
      apply_fn: the model with its adapters attached.
      groups: frozen kernels that lie side by side (`base.fused`), else none.
      abstract_state, abstract_frozen, abstract_batch: the step's arguments as shapes with shardings.
      step: jitted (state, frozen, batch) -> (state, metrics); donates the state.
      merge: with restarts, jitted (state, frozen) -> (state, frozen); donates both. None without.
      options: of the compiler, for the step; None where it has XLA's own.
      chosen: {key: value} of the keys that were left to the data.
      programs: what `load` has jitted, which `dataclasses.replace` hands on.
    """

    config: RunConfig
    mesh: Any
    base: Base
    plan: adapters.Plan
    form: Form
    task: Task | None
    setting: Setting
    apply_fn: ApplyFn
    groups: Groups
    rules: Any
    optimizer: Any
    objective: Any
    abstract_state: TrainState
    abstract_frozen: Any
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    step: Any
    options: dict[str, bool | int | str] | None
    chosen: dict[str, int] = dataclasses.field(default_factory=dict)
    merge: Any = None
    programs: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def lead(self) -> "Experiment":
        """Itself: a run is a program of one trial; see `trial_group.TrialGroup`."""
        return self

    @property
    def each(self) -> list["Experiment"]:
        """The one run."""
        return [self]

    def trial(self, state: TrainState, frozen: Tree, index: int) -> tuple[TrainState, Tree]:
        """State and frozen tree of run `index`, which is 0."""
        del index
        return state, frozen

    @property
    def data(self) -> Task:
        """The task of a run that is no bench on random tokens."""
        assert self.task is not None
        return self.task

    @property
    def parameters(self) -> dict[str, int]:
        """Scalars that are trained and that are not; "head": of the trained, those of a fresh head (and pooler)."""
        frozen = {name: tree for name, tree in self.abstract_frozen.items() if name != "scales"}
        trainable = self.abstract_state.trainable
        counts = {"trainable": count(trainable), "frozen": count(frozen)}
        if self.form.head:
            flat = flatten(trainable.get("params", {}))
            counts["head"] = count([leaf for path, leaf in flat.items() if is_fresh(self.config, path)])
        return counts

    @property
    def trained(self) -> dict[str, int]:
        """Trained scalars by what they are part of: {"adapters", "head", "base"}, those that there are."""
        trainable = self.abstract_state.trainable
        flat = flatten(trainable.get("params", {}))
        head = count([leaf for path, leaf in flat.items() if is_fresh(self.config, path)])
        found = {"adapters": count(trainable.get("adapters", {})), "head": head, "base": count(flat) - head}
        return {part: number for part, number in found.items() if number}

    def base_record(self, fingerprint: str) -> dict[str, str]:
        """What a record and an adapter say of the base: {"name", "fingerprint"}, and "quantize" where it is."""
        record, kind = {"name": self.base.name, "fingerprint": fingerprint}, self.config.base.quantize
        return record if kind == NONE else {**record, "quantize": kind}

    @functools.cached_property
    def absent(self) -> dict[str, str]:
        """{name: why} of the entries of `config.evals` that are left out: optional exams without a file."""
        entries = self.config.evals.items()
        return {name: NO_FILE for name, entry in entries if getattr(entry, "is_absent", False)}

    def record_notes(self) -> dict[str, Any]:
        """What a record must say of the data (see `forms.base.Form`); "missing" also names the exams left out."""
        found = self.form.record_notes(self.data)
        missing = {**found.get("missing", {}), **self.absent}
        return {**found, **({"missing": missing} if missing else {})}

    @property
    def unrolled(self) -> bool:
        """Whether the compiled step has no loop over the layers."""
        return is_unrolled(self.config.base.scan_unroll, self.base.config.num_hidden_layers)

    @property
    def arguments(self) -> tuple:
        """The step's arguments as shapes."""
        return self.abstract_state, self.abstract_frozen, self.abstract_batch

    def compile(self, ahead: bool = False, counted: bool = False) -> Any:
        """The compiled step, without running anything; for batches of several lengths, that of the longest.

        Args:
          ahead: `load` follows; see `Weights.compiling`. The step may then be one that an earlier start has kept;
            otherwise process 0 prints COMPILING.
          counted: only its memory will be read; see `compiled.options.counting_options`.
        """
        return self.compile_step(self.step, self.arguments, ahead, counted)

    def compile_step(self, step: Any, arguments: tuple, ahead: bool, counted: bool = False) -> Any:
        """A jitted step of this experiment, or of its trials, compiled for arguments; see `compile`."""
        more = counting_options(self.mesh.devices.flat[0]) if counted else None

        def make() -> Any:
            if ahead and jax.process_index() == 0:
                print(COMPILING, flush=True)
            return step.lower(*arguments).compile({**(self.options or {}), **more} if more else None)

        if not ahead:
            return make()
        with self.weights.compiling():
            return kept_step(make, arguments, self.identity, SOURCES)

    @property
    def identity(self) -> dict[str, Any]:
        """What the traced step depends on besides its arguments and the source files: the config, and what is read."""
        config = {key: value for key, value in to_plain(self.config).items() if key not in NO_PART_OF_THE_STEP}
        config["optimizer"] = {key: value for key, value in config["optimizer"].items() if key != "learning_rate"}
        parts = (self.base.config, self.base.model, self.plan, self.groups, self.rules, self.options)
        return {"config": config, "parts": [repr(part) for part in parts]}

    @property
    def described(self) -> str:
        """Everything that the compiled step depends on, as text; see `kept_step.describe`."""
        return describe(self.arguments, self.identity, SOURCES, list(self.mesh.devices.flat))

    def compile_merge(self) -> Any:
        """The compiled merge of a run with restarts; None without."""
        return self.merge and self.merge.lower(self.abstract_state, self.abstract_frozen).compile()

    def step_function(self, compiled: Any) -> Callable:
        """(state, frozen, batch) -> (state, metrics) for batches of every length.

        Args:
          compiled: of `compile`; steps of other lengths are compiled when a batch first has them.
        """
        return by_length(self.step, {self.task.seq_len: compiled}) if self.form.bucketed and self.task else compiled

    @property
    def weights(self) -> Weights:
        """What the run begins with, still to be loaded."""
        return Weights(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Weights)})

    def load(self) -> tuple[TrainState, Any, str]:
        """Weights onto their shards, fresh adapters, fresh optimizer: (state, frozen, fingerprint of the base)."""
        return self.weights.load()

    def variables(self, state: TrainState, frozen: Any) -> dict[str, Any]:
        """All variables of a state, each kernel under its own name and stacked."""
        variables = combine(state.trainable, frozen)
        return variables | {"params": Fused(self.groups).undo(Unstacked().undo(variables["params"]))}

    def batches(self) -> Batches:
        """The training stream, this process's share."""
        return self.form.stream(self.data, self.config.train.batch_size, self.config.seed, **batch_share(self.mesh))

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh."""
        return self.setting.place(batch)

    def evaluation(self, kind: str | None = None, options: Any = None) -> Evaluation | None:
        """One of the form's evaluations, by default the task's own; None where nothing is held out.

        Args:
          kind: an evaluation's type; None takes the task's own.
          options: of the evaluation; None where it has none.
        """
        kind, known = kind or self.data.evaluation, self.form.evaluations
        if kind not in known:
            raise unknown_name("evaluation", kind, known)
        return known[kind](self.setting, self.task, *(() if options is None else (options,)))

    def evaluators(self, score: Callable[[Evaluation], Callable] = score_one) -> list[Evaluator]:
        """What is evaluated of the run, and when; see `evaluators.evaluators_of`.

        Args:
          score: evaluation -> (state, frozen) -> metrics of each trial; by default of the one run.

        Raises:
          UserError: what `evaluators_of` refuses.
        """
        return evaluators_of(self.config, self.data.evaluation, self.absent, self.evaluation, score)
