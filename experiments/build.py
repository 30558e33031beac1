"""From a config to the parts of a run: first on shapes alone, then, once everything fits, with the weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.schema import RunConfig
from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.segments import split_layers
from lowrank_jax.core.trees import combine, count, partition
from lowrank_jax.core.types import ApplyFn
from lowrank_jax.data.pipeline import Batches, one_pass
from lowrank_jax.data.tokenizers import check_vocabulary
from lowrank_jax.interop.sources import Base, abstract_base, load_base, resolve
from lowrank_jax.models.llama import init_cache
from lowrank_jax.sharding.mesh import batch_sharding, check_batch, make_mesh, replicated
from lowrank_jax.sharding.rules import leaf_spec, state_shardings, tree_shardings
from lowrank_jax.tasks.base import GenerationTask, LikelihoodTask, Task
from lowrank_jax.tasks.registry import build_task
from lowrank_jax.train.evaluate import make_generator, make_loss_evaluator
from lowrank_jax.train.optimizer import make_optimizer
from lowrank_jax.train.schedule import make_shape
from lowrank_jax.train.state import TrainState, init_state, layer_cuts, trainable_rules
from lowrank_jax.train.step import make_step, next_token_objective

EVAL_BATCH = 1024


@dataclasses.dataclass
class Experiment:
    """A run that has been checked and traced on shapes; no weight has been read yet.

    Attributes:
      config: the run's config, unpacked.
      mesh: the devices.
      base: the base model with ShapeDtypeStructs for params.
      plan: the adapters' sites.
      task: examples and scores; None for a bench on random tokens.
      apply_fn: the model with its adapters attached.
      abstract_state, abstract_frozen, abstract_batch: the step's arguments as shapes with shardings.
      step: jitted (state, frozen, batch) -> (state, metrics); donates the state.
    """

    config: RunConfig
    mesh: Any
    base: Base
    plan: adapters.Plan
    task: Task | None
    apply_fn: ApplyFn
    rules: Any
    optimizer: Any
    objective: Any
    abstract_state: TrainState
    abstract_frozen: Any
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    step: Any

    @property
    def parameters(self) -> dict[str, int]:
        """Scalars that are trained and that are not."""
        frozen = {name: tree for name, tree in self.abstract_frozen.items() if name != "scales"}
        return {"trainable": count(self.abstract_state.trainable), "frozen": count(frozen)}

    def compile(self) -> Any:
        """The compiled step, without running anything."""
        return self.step.lower(self.abstract_state, self.abstract_frozen, self.abstract_batch).compile()

    def load(self) -> tuple[TrainState, Any, str]:
        """Weights onto their shards, fresh adapters, fresh optimizer: (state, frozen, fingerprint of the base)."""
        config, seed = self.config, jax.random.PRNGKey(self.config.seed)
        base_key, adapter_key = jax.random.split(seed)
        base = _in_segments(load_base(config.base, key=base_key, sharding_fn=_params_sharding(self.mesh)), config)
        variables = {"params": adapters.residual(base.params, self.plan)}
        if self.plan.sites:
            create = functools.partial(adapters.create, self.plan)
            given = (adapter_key, base.params) if adapters.needs_params(self.plan) else (adapter_key,)
            shardings = tree_shardings(jax.eval_shape(create, *given), self.mesh)
            variables |= jax.jit(create, out_shardings=shardings)(*given)
            variables["params"] = jax.device_put(variables["params"], jax.tree.map(lambda x: x.sharding, base.params))
        trainable, frozen = partition(variables, self.rules)
        fingerprint = base.fingerprint
        del base, variables  # what is trained was copied: its first copy goes before the moments come
        init = functools.partial(
            init_state, optimizer=self.optimizer, learning_rate=config.optimizer.learning_rate, seed=config.seed
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        return jax.jit(init, out_shardings=shardings, donate_argnums=0)(trainable), frozen, fingerprint

    def batches(self) -> Batches:
        """The training stream, this process's share."""
        return Batches(
            self.task.train_source(),
            self.task.features,
            self.config.train.batch_size,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host batch on the mesh."""
        sharding = batch_sharding(self.mesh)
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

    def evaluator(self) -> Any:
        """(state, frozen) -> {metric: value}: decodes for a generation task, else averages the held-out loss."""
        if isinstance(self.task, GenerationTask):
            return self._generation_evaluator()
        if isinstance(self.task, LikelihoodTask) and self.task.validation_source() is not None:
            return self._likelihood_evaluator()
        return lambda state, frozen: {}

    def _generation_evaluator(self):
        prompts, targets = zip(*self.task.prompts(), strict=True)
        generate = make_generator(
            self.apply_fn,
            lambda batch, length: init_cache(self.base.config, batch, length, self.base.model.dtype),
            self.base.tokenizer,
            self.mesh,
            [self.task.prompt_tokens(prompt) for prompt in prompts],
            self.task.max_new_tokens,
            self.task.stop_id,
            EVAL_BATCH,
        )
        return lambda state, frozen: self.task.score(generate(combine(state.trainable, frozen)), targets)

    def _likelihood_evaluator(self):
        source, size = self.task.validation_source(), self.config.train.batch_size // self.config.train.accumulate
        sums = make_loss_evaluator(self.objective)

        def evaluate(state, frozen):
            variables = combine(state.trainable, frozen)
            shares = {"process_index": jax.process_index(), "process_count": jax.process_count()}
            batches = one_pass(source, self.task.features, size, **shares)
            loss, weight = sums(variables, map(self.place, batches))
            return self.task.validation_metrics(loss, weight)

        return evaluate


def build(config: RunConfig, seq_len: int | None = None) -> Experiment:
    """Checks a config and lays the run out, on shapes.

    Args:
      config: unpacked.
      seq_len: for a bench on random tokens: T, and no task is built.

    Raises:
      UserError: anything that can be known to be wrong before the weights are read.
    """
    if config.seed < 0:
        raise UserError(f"config.seed is {config.seed}; it must be at least 0")
    mesh = make_mesh(config.mesh)
    check_batch(mesh, config.train.batch_size, config.train.accumulate)
    base = _in_segments(abstract_base(config.base, sharding_fn=_params_sharding(mesh)), config)
    plan = adapters.make_plan(base.params, (config.adapter, *config.adapters))
    rules = trainable_rules(config.trainable)
    optimizer = make_optimizer(config.optimizer)
    shape = make_shape(config.schedule, config.train.steps)

    variables = {"params": base.params}
    if plan.sites:
        created = jax.eval_shape(functools.partial(adapters.create, plan), jax.random.PRNGKey(0), base.params)
        shardings = flatten(tree_shardings(created, mesh))
        variables |= _with_shardings(created, shardings)
    trainable, frozen = partition(variables, rules)
    abstract_state = jax.eval_shape(
        functools.partial(init_state, optimizer=optimizer, learning_rate=1.0, seed=0), trainable
    )
    layout = state_shardings(abstract_state, jax.tree.map(lambda leaf: leaf.sharding, trainable), mesh)
    abstract_state = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract_state, layout
    )

    apply_fn = adapters.attach(base.model, plan)
    adapters.check(base.model, plan, variables, jnp.zeros((1, 8), jnp.int32))
    objective = next_token_objective(apply_fn, config.train.chunk_tokens)
    step = make_step(objective, optimizer, shape, config.train.accumulate)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(layout, replicated(mesh)))

    task = None
    if seq_len is None:
        if base.tokenizer is None and not config.base.random_init:
            resolve(config.base.name, config.base.revision)  # says how to get weights that are not here
        if base.tokenizer is None:
            remedy = "put its tokenizer.json beside the weights"
            if config.base.random_init:
                remedy = "random weights read bytes alone (pico-llama, toy-llama), and experiments.bench no text"
            raise UserError(f"{config.base.name} comes without a tokenizer; {remedy}")
        check_vocabulary(base.tokenizer, base.config.vocab_size)
        task = build_task(config.task_name, config.task, base.tokenizer)
        seq_len = task.seq_len
    rows = (config.train.batch_size, seq_len)
    abstract_batch = {
        name: jax.ShapeDtypeStruct(rows, dtype, sharding=batch_sharding(mesh))
        for name, dtype in (("tokens", jnp.int32), ("weights", jnp.float32))
    }
    return Experiment(
        config, mesh, base, plan, task, apply_fn, rules, optimizer, objective,
        abstract_state, frozen, abstract_batch, jitted,
    )  # fmt: skip


def _in_segments(base: Base, config: RunConfig) -> Base:
    """The base with its layers in the segments that `config.trainable` needs; the same base where it needs none."""
    cuts = layer_cuts(config.trainable, base.config.num_hidden_layers)
    if not cuts:
        return base
    return dataclasses.replace(base, model=base.model.clone(cuts=cuts), params=split_layers(base.params, cuts))


def _params_sharding(mesh: Any) -> Any:
    return lambda path, shape: jax.sharding.NamedSharding(mesh, leaf_spec(f"params/{path}", shape, mesh))


def _with_shardings(tree: Any, shardings: dict[str, Any]) -> Any:
    return unflatten(
        {p: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[p]) for p, x in flatten(tree).items()}
    )
