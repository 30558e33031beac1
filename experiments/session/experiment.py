"""A run that is known on shapes: what it trains, its step and its data; and, once everything fits, its weights."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.plain import to_plain
from experiments.config.schema import RunConfig
from experiments.session.by_length import by_length
from experiments.session.warm_start import apply_start
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base, load_base, random_program
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unknown_name
from lowrank_jax.core.trees import combine, count, partition
from lowrank_jax.core.types import ApplyFn, Tree
from lowrank_jax.data.pipeline import Batches
from lowrank_jax.forms.base import Evaluation, Form, Setting
from lowrank_jax.forms.generation import SAMPLES
from lowrank_jax.layouts.fused import Fused, Groups
from lowrank_jax.layouts.run_time import layout_of, present
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.layouts.unstacked import Unstacked, compile_unstack
from lowrank_jax.models.parts.stack import is_unrolled
from lowrank_jax.ops.quantized import NONE
from lowrank_jax.sharding.mesh import batch_share
from lowrank_jax.sharding.rules import leaf_spec, tree_shardings
from lowrank_jax.tasks.base import Task
from lowrank_jax.train.best import BEST, LAST
from lowrank_jax.train.compiled.kept_step import describe, kept_step
from lowrank_jax.train.compiled.options import counting_options
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.state import TrainState, init_state, layer_cuts

SOURCES = ("lowrank_jax", "experiments")  # folders whose files make the step
NO_PART_OF_THE_STEP = ("name", "labels", "tracking", "checkpoint", "export")
COMPILING = "compiling the step (most take less than a minute) ..."
DECIDING = ("likelihood", "choices")  # types of evaluations that have a held-out loss, which decides what is best
NO_FILE = "no file"
ABSTRACT_KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)  # of jax.random.PRNGKey


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
          ahead: `load` follows; see `load_ahead`. The step may then be one that an earlier start has kept; otherwise
            process 0 prints COMPILING.
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
        with self.load_ahead():
            return kept_step(make, arguments, self.identity, SOURCES)

    @property
    def identity(self) -> dict[str, Any]:
        """What the traced step depends on besides its arguments and the source files: the config, and what is read."""
        config = {key: value for key, value in to_plain(self.config).items() if key not in NO_PART_OF_THE_STEP}
        parts = (self.base.config, self.base.model, self.plan, self.groups, self.rules, self.options)
        return {"config": config, "parts": [repr(part) for part in parts]}

    @property
    def described(self) -> str:
        """Everything that the compiled step depends on, as text; see `kept_step.describe`."""
        return describe(self.arguments, self.identity, SOURCES, list(self.mesh.devices.flat))

    def compile_merge(self) -> Any:
        """The compiled merge of a run with restarts; None without."""
        return self.merge and self.merge.lower(self.abstract_state, self.abstract_frozen).compile()

    @contextlib.contextmanager
    def load_ahead(self) -> Iterator[None]:
        """Compiles what `load` runs on other threads, beside what the caller compiles."""
        works = (self._compile_base, self._compile_create, self._compile_begin, self._compile_layers)
        with concurrent.futures.ThreadPoolExecutor(len(works)) as pool:
            ready = [pool.submit(work) for work in works]
            yield
            for one in ready:
                one.result()

    def _compile_base(self) -> None:
        if program := random_program(self.config.base, params_sharding(self.mesh)):
            program.lower(ABSTRACT_KEY).compile()

    def _compile_create(self) -> None:
        if self.plan.sites:
            given = (ABSTRACT_KEY, self.base.params) if adapters.needs_params(self.plan) else (ABSTRACT_KEY,)
            self._create(given).lower(*given).compile()

    def _compile_begin(self) -> None:
        rate = jax.ShapeDtypeStruct((), jnp.float32)
        self._begin().lower(self.abstract_state.trainable, rate, ABSTRACT_KEY).compile()

    def _compile_layers(self) -> None:
        compile_unstack(self.abstract_frozen.get("params", {}))

    def step_function(self, compiled: Any) -> Callable:
        """(state, frozen, batch) -> (state, metrics) for batches of every length.

        Args:
          compiled: of `compile`; steps of other lengths are compiled when a batch first has them.
        """
        return by_length(self.step, {self.task.seq_len: compiled}) if self.form.bucketed and self.task else compiled

    def load(self) -> tuple[TrainState, Any, str]:
        """Weights onto their shards, fresh adapters, fresh optimizer: (state, frozen, fingerprint of the base)."""
        base = self.load_base()
        assert base.fingerprint is not None  # of a loaded base
        fingerprint = base.fingerprint
        trainable, frozen = self.split(base)
        del base  # what is trained was copied: its first copy goes before the moments come
        frozen |= present(layout_of(self.groups, self.unrolled).apply(frozen.pop("params", {})))
        trainable, frozen = apply_start(self.config.start, trainable, frozen, self._is_fresh, fingerprint)
        return self.begin(trainable), frozen, fingerprint

    def load_base(self) -> Base:
        """The weights onto their shards; a fresh head drawn by the run's seed."""
        base_key, _ = self._keys()
        base = load_base(self.config.base, base_key, params_sharding(self.mesh), planned=self.base.config)
        return in_segments(base, self.config)

    def split(self, base: Base) -> tuple[Any, Any]:
        """(trainable, frozen) of a loaded base with fresh adapters of the run's seed; frozen before its layout."""
        _, adapter_key = self._keys()
        variables = {"params": adapters.residual(base.params, self.plan)}
        if self.plan.sites:
            given = (adapter_key, base.params) if adapters.needs_params(self.plan) else (adapter_key,)
            variables |= self._create(given)(*given)
            variables["params"] = jax.device_put(variables["params"], jax.tree.map(lambda x: x.sharding, base.params))
        return partition(variables, self.rules)

    def variables(self, state: TrainState, frozen: Any) -> dict[str, Any]:
        """All variables of a state, each kernel under its own name and stacked."""
        variables = combine(state.trainable, frozen)
        return variables | {"params": Fused(self.groups).undo(Unstacked().undo(variables["params"]))}

    def begin(self, trainable: Any) -> TrainState:
        """The state before the first step; the trainable tree is donated."""
        rate = np.float32(self.config.optimizer.learning_rate)
        return self._begin()(trainable, rate, jax.random.PRNGKey(self.config.seed))

    def _create(self, given: tuple) -> Any:
        create = functools.partial(adapters.create, self.plan)
        shardings = tree_shardings(jax.eval_shape(create, *given), self.mesh)
        return self._program("create", create, out_shardings=shardings)

    def _begin(self) -> Any:
        def init(trainable, rate, key):
            return init_state(trainable, self.optimizer, rate, seed=0)._replace(key=key)

        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return self._program("begin", init, out_shardings=shardings, donate_argnums=0)

    def _program(self, name: str, fn: Callable, **options: Any) -> Any:
        """The jitted function of a name; trials that are alike share it and its compilation."""
        if name not in self.programs:
            self.programs[name] = jax.jit(fn, **options)
        return self.programs[name]

    def _is_fresh(self, path: str) -> bool:
        return is_fresh(self.config, path)

    def base_key(self) -> jax.Array:
        """What draws a random or partly fresh base."""
        return self._keys()[0]

    def _keys(self) -> tuple[jax.Array, jax.Array]:
        """(of a random or partly fresh base, of the adapters)."""
        base_key, adapter_key = jax.random.split(jax.random.PRNGKey(self.config.seed))
        return base_key, adapter_key

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

    def evaluators(self, score: Callable[[Evaluation], Callable] | None = None) -> list[Evaluator]:
        """What is evaluated of the run, and when: `config.evals`, or the task's own; nothing without held-out data.

        Samples are no score: where `config.evals` has nothing else, the task's own evaluation is made too.

        Args:
          score: evaluation -> (state, frozen) -> metrics of each trial; by default of the one run.

        Raises:
          UserError: an entry of config.evals is of no type that the task's form has, or wants the best weights and
            nothing says which these are.
        """
        score, train, found = score or _score_one, self.config.train, []
        entries = {name: entry for name, entry in self.config.evals.items() if name not in self.absent}
        if self.absent and jax.process_index() == 0:
            print(f"not measured: {', '.join(f'{name} ({why})' for name, why in self.absent.items())}", flush=True)
        scores = [entry for entry in entries.values() if entry.type != SAMPLES]
        if not scores or train.eval_every or train.eval_steps:  # the short way for one
            found.append(("", (self.data.evaluation, None), LoopConfig.evaluates_at, LAST))
        for name, entry in entries.items():
            found.append((name, (entry.type or self.data.evaluation, entry.options), entry.due, entry.weights))
        kinds = {kind: self.evaluation(*kind) for kind in dict.fromkeys(kind for _, kind, _, _ in found)}
        made = {kind: (score(one), one.texts) for kind, one in kinds.items() if one is not None}
        return _deciding(
            [
                Evaluator(name, due, *made[kind], weights=weights, decides=kind[0] in DECIDING and weights == LAST)
                for name, kind, due, weights in found
                if kind in made
            ]
        )


def _deciding(evaluators: list[Evaluator]) -> list[Evaluator]:
    """The evaluators, those of the best weights last: a held-out loss of the same step then decides before they read.

    Raises:
      UserError: one reads the best weights, and none gives a held-out loss.
    """
    best = [one for one in evaluators if one.weights == BEST]
    if best and not any(one.decides for one in evaluators):
        raise UserError(
            f"config.evals.{best[0].name}.weights is 'best' and the run has no held-out loss to tell it by; set "
            'train.epochs or train.eval_every, or add an evaluation of the type "likelihood"'
        )
    return [one for one in evaluators if one.weights != BEST] + best


def _score_one(evaluation: Evaluation) -> Callable[[TrainState, Tree], list[dict[str, float]]]:
    return lambda state, frozen: [evaluation.one(combine(state.trainable, frozen))]


def is_fresh(config: RunConfig, path: str) -> bool:
    """Whether a leaf below "params" is one that the task draws anew: the head, and what base.fresh names."""
    return any(re.fullmatch(pattern, path) for pattern in ("head/.*", *config.base.fresh))


def params_sharding(mesh: Any) -> Any:
    """(path below "params", shape) -> NamedSharding, by the path rules."""
    return lambda path, shape: jax.sharding.NamedSharding(mesh, leaf_spec(f"params/{path}", shape, mesh))


def in_segments(base: Base, config: RunConfig) -> Base:
    """The base with its layers in the segments that `config.trainable` needs; the same base where it needs none."""
    cuts = layer_cuts(config.trainable, base.config.num_hidden_layers)
    if not cuts:
        return base
    return dataclasses.replace(base, model=base.model.clone(cuts=cuts), params=Segments(cuts).apply(base.params))
