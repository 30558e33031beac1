"""Runs that share a program: built once on shapes, their states stacked over one base."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from experiments.config.schema import RunConfig
from experiments.session.build import build
from experiments.session.by_length import by_length
from experiments.session.experiment import SOURCES, Experiment
from experiments.session.fit import chosen, fit
from experiments.session.warm_start import apply_start
from experiments.session.weights import is_fresh, params_sharding
from lowrank_jax.bases.base import Base, redraw
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine
from lowrank_jax.data.stacked import StackedBatches
from lowrank_jax.forms.base import Evaluation
from lowrank_jax.layouts.run_time import layout_of, present
from lowrank_jax.models.parts.attention_kernel import BY_HEAD
from lowrank_jax.ops.capability import platform
from lowrank_jax.sharding.mesh import replicated
from lowrank_jax.train import trials
from lowrank_jax.train.compiled.kept_step import describe
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.schedule import make_shape
from lowrank_jax.train.state import TrainState


class TrialGroup:
    """Trials of configs that `compatible.check_alike` has passed.

    Attributes:
      each: the experiment of every trial, on one device.
      wide, lead: the trial of the widest rank and its experiment, whose program all share.
      mesh: of the axis "trial".
      bucketed: batches have several lengths.
      abstract_state: stacked shapes with shardings.

    Args:
      configs: one a trial.
      seq_len: for a bench on random tokens; see `build`.

    Raises:
      UserError: what `build` refuses.
    """

    def __init__(self, configs: Sequence[RunConfig], seq_len: int | None = None):
        if any(config.restart.every for config in configs):
            raise UserError(
                "restart.every merges adapters into the base, which the trials of a program share; run them one by one"
            )
        device, configs = jax.local_devices()[:1], [with_masks_by_head(config) for config in configs]
        self.wide = max(range(len(configs)), key=lambda i: configs[i].adapter.rank)
        self.lead = build(configs[self.wide], seq_len=seq_len, devices=device)
        self.each = [self._alike(config, device, seq_len) for config in configs]
        self.mesh = trials.trial_mesh(len(configs), jax.local_devices())
        self.bucketed = self.lead.form.bucketed and self.lead.task is not None
        self._axes = trials.frozen_axes(self.lead.abstract_frozen)
        self.abstract_state = self._stacked(self.lead.abstract_state)
        step = trials.make_trial_step(self.lead.objective, self.lead.optimizer, self.lead.config.train.accumulate)
        self.step = trials.together(step, self._axes, self.mesh, self.lead.options)
        lasts = [one.config.train.last_step for one in self.each]
        tables = [
            trials.schedule_table(
                make_shape(one.config.schedule, one.config.train.steps), one.config.train.steps, width
            )
            for one in self.each
            for width in [max(other.config.train.steps for other in self.each) + 1]
        ]
        self._tables = self.place(np.stack(tables))
        self._lasts = self.place(np.asarray(lasts, np.int32))

    @property
    def arguments(self) -> tuple:
        """The step's arguments for the longest batch: shapes, and as arrays the schedules' tables and last steps."""
        frozen = {
            name: jax.tree.map(self._whole if axis is None else self._split, self.lead.abstract_frozen[name])
            for name, axis in self._axes.items()
        }
        batch = {name: self._split(leaf) for name, leaf in self.lead.abstract_batch.items()}
        return self.abstract_state, frozen, batch, self._tables, self._lasts

    @property
    def described(self) -> str:
        """Everything that the compiled step depends on, as text; see `kept_step.describe`."""
        return describe(self.arguments, self.lead.identity, SOURCES, list(self.mesh.devices.flat))

    def compile(self, ahead: bool = False, counted: bool = False) -> Any:
        """The compiled step of all trials, for the longest batch; see `Experiment.compile`."""
        return self.lead.compile_step(self.step, self.arguments, ahead, counted)

    def compile_merge(self) -> None:
        """None: runs with restarts share no program."""

    def step_function(self, compiled: Any) -> Callable:
        """(state, frozen, batch) -> (state, metrics)."""
        step = by_length(self.step, {self.lead.data.seq_len: compiled}) if self.bucketed else compiled
        return lambda state, frozen, batch: step(state, frozen, batch, self._tables, self._lasts)

    def load(self) -> tuple[TrainState, dict[str, Any], str]:
        """(stacked state, shared frozen tree, fingerprint): each trial starts as a run of its own would."""
        base = self.lead.weights.load_base()
        states, frozen = [], []
        for one in self.each:
            trainable, rest = one.weights.split(self._redrawn(base, one))
            if len(self.each) > 1 and frozen:
                rest = {**rest, trials.SHARED: frozen[0].get(trials.SHARED)} if trials.SHARED in rest else rest
            fresh = functools.partial(is_fresh, one.config)
            trainable, rest = apply_start(one.config.start, trainable, rest, fresh, base.fingerprint)
            wide = trials.widen(trainable, self.lead.abstract_state.trainable)
            states.append(one.weights.begin(wide))
            frozen.append(rest)
        state, shared = trials.place(trials.stack(states), self.mesh), trials.share(frozen)
        assert base.fingerprint is not None  # of a loaded base
        fingerprint = base.fingerprint
        del base, rest, frozen  # the shared parameters are laid out anew, and a base may not fit twice
        layout = layout_of(self.lead.groups, self.lead.unrolled)
        shared |= present(layout.apply(shared.pop(trials.SHARED, {})))
        return state, trials.place_frozen(shared, self.mesh), fingerprint

    def batches(self) -> StackedBatches:
        """The trials' streams, stacked; equal seeds share one."""
        streams = {one.config.seed: one for one in self.each}
        made = {seed: one.batches() for seed, one in streams.items()}
        last = max(one.config.train.last_step for one in self.each)
        return StackedBatches([made[one.config.seed] for one in self.each], last, self.bucketed)

    def place(self, batch: Any) -> Any:
        """Host arrays with a leading trial axis, on the devices."""
        return trials.place(batch, self.mesh)

    def evaluators(self) -> list[Evaluator]:
        """As `Experiment.evaluators`, of every trial."""
        return self.lead.evaluators(self._score)

    def _score(self, evaluation: Evaluation) -> Callable[[TrainState, Any], list[dict[str, float]]]:
        if evaluation.many is not None:
            evaluate = evaluation.many(self._axes, self.mesh)
            return lambda state, frozen: evaluate(state.trainable, frozen)

        def in_turn(state, frozen):
            each = (self._one(state, frozen, i) for i in range(len(self.each)))
            return [evaluation.one(combine(one.trainable, rest)) for one, rest in each]

        return in_turn

    def trial(self, state: TrainState, frozen: Any, index: int) -> tuple[TrainState, Any]:
        """State and frozen tree of one trial as a run of its own has them, its own rank included."""
        state, frozen = self._one(state, frozen, index)
        shapes = self.each[index].abstract_state.trainable
        return state._replace(trainable=trials.narrow(state.trainable, shapes)), frozen

    def _one(self, state: TrainState, frozen: Any, index: int) -> tuple[TrainState, Any]:
        def home(tree):
            return jax.device_put(tree, replicated(self.lead.mesh))

        own = {n: tree if self._axes[n] is None else trials.take(tree, index) for n, tree in frozen.items()}
        # The optimizer's moments stay: nothing that looks at one trial reads them.
        single = trials.take(state._replace(opt_state=()), index)
        return home(single), home(own)

    def _alike(self, config: RunConfig, device: list, seq_len: int | None) -> Experiment:
        """The experiment of a trial; built anew only where its adapters differ from the lead's."""
        if config.adapter != self.lead.config.adapter:
            return build(config, seq_len=seq_len, task=self.lead.task, devices=device)
        config = dataclasses.replace(config, base=self.lead.config.base)
        fitted = fit(config, self.lead.task, self.lead.mesh)
        return dataclasses.replace(self.lead, config=fitted, chosen=chosen(config, fitted))

    def _redrawn(self, base: Base, one: Experiment) -> Base:
        """The base with the fresh leaves of the trial's own seed."""
        if one.config.seed == self.lead.config.seed or not base.fresh:
            return base
        flat = dict(flatten(base.params))
        new = redraw(base, one.weights.base_key(), params_sharding(one.mesh))
        held = flatten(self.lead.abstract_frozen.get(trials.SHARED, {}))
        if frozen := sorted(set(new) & set(held)):
            raise UserError(
                f"seeds {self.lead.config.seed} and {one.config.seed} draw other frozen weights ({frozen[0]}); run "
                "them separately, or train what is drawn"
            )
        return dataclasses.replace(base, params=unflatten({**flat, **new}))

    def _stacked(self, tree: Any) -> Any:
        return jax.tree.map(self._split, tree)

    def _split(self, leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.mesh, PartitionSpec(trials.TRIAL))
        return jax.ShapeDtypeStruct((len(self.each), *leaf.shape), leaf.dtype, sharding=sharding)

    def _whole(self, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))


def with_masks_by_head(config: RunConfig) -> RunConfig:
    """The config; where trials pack documents on a GPU, cuDNN's attention gets a mask for each head (see BY_HEAD)."""
    if not getattr(config.task, "segmented", False) or platform() != "gpu":
        return config
    if config.base.attention not in ("auto", "cudnn"):
        return config
    return dataclasses.replace(config, base=dataclasses.replace(config.base, attention=config.base.attention + BY_HEAD))
