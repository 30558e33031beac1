"""Labelled examples: the objective's sums, predictions put back in order, and lengths in epochs."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.forms.evaluate import in_order, make_predictor
from lowrank_jax.forms.label import label_objective
from lowrank_jax.train.rhythm import LoopConfig

LOGITS = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5], [9.0, 9.0, 9.0]], np.float32)
BATCH = {
    "tokens": np.zeros((3, 4), np.int32),
    "types": np.zeros((3, 4), np.int32),
    "mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]], bool),
    "labels": np.array([0, 2, 0], np.int32),
    "weights": np.array([1, 1, 0], np.float32),  # the last row only fills the batch
}


def model(outputs, seen=None):
    def apply_fn(variables, tokens, rngs=None, **inputs):
        if seen is not None:
            seen.update(inputs)
        return jnp.asarray(outputs)

    return apply_fn


def test_classes_by_hand_and_a_filler_row_counts_for_nothing():
    loss, sums = label_objective(model(LOGITS))({}, BATCH, None)
    expected = [-np.log(np.exp(2) / np.exp(LOGITS[0]).sum()), -np.log(np.exp(0.5) / np.exp(LOGITS[1]).sum())]
    np.testing.assert_allclose(loss, sum(expected), rtol=1e-6)
    assert (float(sums["weight"]), float(sums["correct"]), float(sums["tokens"])) == (2, 1, 5)


def test_scores_are_fitted_by_squared_error():
    batch = {**BATCH, "labels": np.array([1.0, 2.0, 7.0], np.float32)}
    loss, sums = label_objective(model(np.array([1.5, 0.0, 0.0], np.float32)), regression=True)({}, batch, None)
    np.testing.assert_allclose(loss, 0.25 + 4)
    assert float(sums["correct"]) == 0


@pytest.mark.parametrize(("types", "given"), [(True, {"mask", "types"}), (False, {"mask"})])
def test_a_model_without_token_types_is_not_given_any(types, given):
    seen = {}
    label_objective(model(LOGITS, seen), types=types)({}, BATCH, None)
    assert seen.keys() == given
    seen.clear()
    make_predictor(model(LOGITS, seen), types=types)({}, BATCH)
    assert seen.keys() == given


def test_rows_come_back_in_the_sources_order_and_none_may_be_missing():
    batches = [(np.array([2, 0]), np.array([[2.0], [0.0]])), (np.array([1, -1]), np.array([[1.0], [9.0]]))]
    np.testing.assert_array_equal(in_order(3, batches)[:, 0], [0, 1, 2])
    with pytest.raises(ValueError, match="1 of 4 rows"):
        in_order(4, batches)


def test_epochs_become_steps_with_an_evaluation_each():
    """3,668 rows in batches of 16: 229.25 steps an epoch."""
    config = LoopConfig(epochs=3, batch_size=16, eval_steps=(100, 9000)).over(3668)
    assert (config.steps, config.epochs) == (688, 0)
    assert config.eval_steps == (100, 229, 458, 688)
    assert LoopConfig(steps=7).over(3668) == LoopConfig(steps=7)
    assert LoopConfig(epochs=2, batch_size=64).over(8).steps == 1
    with pytest.raises(UserError, match=r"stop_at is 900; it must lie in \[0, 688\]"):
        LoopConfig(epochs=3, batch_size=16, stop_at=900).over(3668)
    with pytest.raises(UserError, match=r"train\.epochs is -1"):
        LoopConfig(epochs=-1)
