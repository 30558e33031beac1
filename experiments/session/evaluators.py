"""What is evaluated of a run, when and with which weights: `config.evals`, or the task's own evaluation."""

from collections.abc import Callable

import jax

from experiments.config.schema import RunConfig
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import Tree
from lowrank_jax.forms.base import Evaluation
from lowrank_jax.forms.generation import SAMPLES
from lowrank_jax.train.best import BEST, LAST
from lowrank_jax.train.evaluations import Evaluator
from lowrank_jax.train.rhythm import LoopConfig
from lowrank_jax.train.state import TrainState

DECIDING = ("likelihood", "choices")  # types of evaluations that have a held-out loss, which decides what is best


def evaluators_of(
    config: RunConfig,
    own: str,
    absent: dict[str, str],
    make: Callable[..., Evaluation | None],
    score: Callable[[Evaluation], Callable],
) -> list[Evaluator]:
    """What is evaluated of the run, and when: `config.evals`, or the task's own; nothing without held-out data.

    Samples are no score: where `config.evals` has nothing else, the task's own evaluation is made too.

    Args:
      config: the run's.
      own: the type of the task's own evaluation.
      absent: {name: why} of the entries that are left out, which process 0 prints.
      make: (type, options) -> the evaluation; None where nothing is held out.
      score: evaluation -> (state, frozen) -> metrics of each trial.

    Raises:
      UserError: an entry of config.evals is of no type that the task's form has, or wants the best weights and nothing
        says which these are.
    """
    train, found = config.train, []
    entries = {name: entry for name, entry in config.evals.items() if name not in absent}
    if absent and jax.process_index() == 0:
        print(f"not measured: {', '.join(f'{name} ({why})' for name, why in absent.items())}", flush=True)
    scores = [entry for entry in entries.values() if entry.type != SAMPLES]
    if not scores or train.eval_every or train.eval_steps:  # train.eval_every asks for the task's own
        found.append(("", (own, None), LoopConfig.evaluates_at, LAST))
    for name, entry in entries.items():
        found.append((name, (entry.type or own, entry.options), entry.due, entry.weights))
    kinds = {kind: make(*kind) for kind in dict.fromkeys(kind for _, kind, _, _ in found)}
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


def score_one(evaluation: Evaluation) -> Callable[[TrainState, Tree], list[dict[str, float]]]:
    """(state, frozen) -> [metrics] of a program of one run."""
    return lambda state, frozen: [evaluation.one(combine(state.trainable, frozen))]
