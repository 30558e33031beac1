"""How a run's model is scored: by decoding, by labels, or by the loss on held-out text; for one state or for many."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lowrank_jax.core.trees import combine
from lowrank_jax.data.pipeline import bucketed_pass, one_pass
from lowrank_jax.forms.evaluate import in_order, make_generator, make_loss_evaluator, make_predictor
from lowrank_jax.models.causal import init_cache
from lowrank_jax.sharding.mesh import replicated
from lowrank_jax.tasks.base import GenerationTask, LabelTask, LikelihoodTask

EVAL_BATCH = 1024  # prompts decoded at a time
LABEL_BATCH = 128  # labelled rows at a time

Evaluator = Callable[[Any, Any], dict[str, float]]  # (state, frozen) -> {metric: value}


def make_evaluator(experiment: Any) -> Evaluator:
    """The evaluator that the experiment's task asks for; one that gives nothing where there is nothing held out."""
    task = experiment.task
    if isinstance(task, GenerationTask):
        return _generation(experiment)
    if isinstance(task, LabelTask):
        return _labels(experiment)
    if isinstance(task, LikelihoodTask) and task.validation_source() is not None:
        return _likelihood(experiment)
    return lambda state, frozen: {}


def make_trials_evaluator(experiment: Any, axes: Any, mesh: Any, one: Callable) -> Callable[[Any, Any], list[dict]]:
    """(stacked state, frozen) -> metrics of each trial: labels predicted in one program, all else trial by trial.

    Args:
      experiment: of all the trials.
      axes: prefix of `frozen` for `jax.vmap`: 0 where it has a trial axis.
      mesh: of the axis "trial".
      one: (state, frozen, i) -> state and frozen of trial i on the experiment's own mesh.
    """
    task = experiment.task
    if not isinstance(task, LabelTask):
        evaluate = make_evaluator(experiment)

        def in_turn(state, frozen):
            return [evaluate(*one(state, frozen, i)) for i in range(len(state.step))]

        return in_turn
    predict = make_predictor(experiment.apply_fn, experiment.takes_types)
    outputs = jax.jit(
        jax.vmap(lambda trainable, frozen, batch: predict(combine(trainable, frozen), batch), in_axes=(0, axes, None)),
        out_shardings=NamedSharding(mesh, PartitionSpec()),
    )

    def together(state, frozen):
        found = {}
        for name, source in task.validation_sources().items():
            batches = _label_batches(experiment, source)
            rows = (
                (indices, np.moveaxis(np.asarray(outputs(state.trainable, frozen, batch)), 0, 1))
                for indices, batch in batches
            )
            found[name] = in_order(len(source), rows)
        return [task.score({name: rows[:, i] for name, rows in found.items()}) for i in range(len(state.step))]

    return together


def _labels(experiment: Any) -> Evaluator:
    task, predict = experiment.task, make_predictor(experiment.apply_fn, experiment.takes_types)
    outputs = jax.jit(predict, out_shardings=replicated(experiment.mesh))

    def evaluate(state, frozen):
        variables, found = combine(state.trainable, frozen), {}
        for name, source in task.validation_sources().items():
            placed = ((indices, experiment.place(batch)) for indices, batch in _label_batches(experiment, source))
            rows = ((indices, np.asarray(outputs(variables, batch))) for indices, batch in placed)
            found[name] = in_order(len(source), rows)
        return task.score(found)

    return evaluate


def _label_batches(experiment: Any, source: Any) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    task, shards = experiment.task, experiment.mesh.size
    return bucketed_pass(
        source,
        task.features,
        -(-LABEL_BATCH // shards) * shards,
        lengths=task.lengths(source),
        buckets=task.buckets,
        pad=task.pad,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _generation(experiment: Any) -> Evaluator:
    task, base = experiment.task, experiment.base
    prompts, targets = zip(*task.prompts(), strict=True)
    generate = make_generator(
        experiment.apply_fn,
        lambda batch, length: init_cache(base.config, batch, length, base.model.dtype),
        base.tokenizer,
        experiment.mesh,
        [task.prompt_tokens(prompt) for prompt in prompts],
        task.max_new_tokens,
        task.stop_id,
        EVAL_BATCH,
    )
    return lambda state, frozen: task.score(generate(combine(state.trainable, frozen)), targets)


def _likelihood(experiment: Any) -> Evaluator:
    task, train = experiment.task, experiment.config.train
    source, size = task.validation_source(), train.batch_size // train.accumulate
    sums = make_loss_evaluator(experiment.objective)

    def evaluate(state, frozen):
        shares = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        batches = one_pass(source, task.features, size, **shares)
        loss, weight = sums(combine(state.trainable, frozen), map(experiment.place, batches))
        return task.validation_metrics(loss, weight)

    return evaluate
