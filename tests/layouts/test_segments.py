"""A stack in segments and back: inverses, names, and what has no place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.layouts.segments import Segments, overlay, segments

TREE = {"embed": np.ones(3), "layers": {"a": {"kernel": np.arange(24.0).reshape(6, 2, 2)}, "b": np.arange(6)}}


def test_segments_have_their_layers_in_their_names():
    assert segments(12, (10,)) == (("layers_0_9", 0, 10), ("layers_10_11", 10, 12))
    assert segments(3, (1, 2)) == (("layers_0_0", 0, 1), ("layers_1_1", 1, 2), ("layers_2_2", 2, 3))
    assert segments(4) == (("layers", 0, 4),)


@pytest.mark.parametrize("cuts", [(), (4,), (1, 2, 5), tuple(range(1, 6))])
def test_joining_undoes_splitting(cuts):
    split = Segments(cuts).apply(TREE)
    assert len(split) == 2 + len(cuts)
    joined = flatten(Segments().undo(split))
    assert joined.keys() == flatten(TREE).keys()
    for path, leaf in flatten(TREE).items():
        np.testing.assert_array_equal(joined[path], leaf)


def test_more_than_ten_segments_join_in_the_order_of_their_layers():
    tree = {"layers": {"a": np.arange(13)}}
    np.testing.assert_array_equal(Segments().undo(Segments(range(1, 13)).apply(tree))["layers"]["a"], np.arange(13))


def test_shapes_split_too():
    shape = jax.ShapeDtypeStruct((6, 2), jnp.bfloat16)
    split = Segments((4,)).apply({"layers": {"a": shape}})
    assert split["layers_4_5"]["a"] == jax.ShapeDtypeStruct((2, 2), jnp.bfloat16)


def test_overlay_puts_trained_layers_in_their_places():
    trained = {"layers_4_5": {"b": np.array([-4, -5])}, "embed": np.zeros(3)}
    laid = overlay(TREE, trained)
    np.testing.assert_array_equal(laid["layers"]["b"], [0, 1, 2, 3, -4, -5])
    np.testing.assert_array_equal(laid["embed"], np.zeros(3))
    np.testing.assert_array_equal(TREE["layers"]["b"], np.arange(6))
    for strange in ({"ghost": np.ones(1)}, {"layers_6_7": {"b": np.ones(2)}}, {"layers_0_1": {"c": np.ones(2)}}):
        with pytest.raises(UserError, match="was trained, and this base does not have it"):
            overlay(TREE, strange)


@pytest.mark.parametrize("cuts", [(0,), (6,), (3, 3), (4, 2)])
def test_cuts_that_do_not_rise_within_the_stack(cuts):
    with pytest.raises(UserError, match=r"do not divide 6 layers; give rising numbers from 1 to 5"):
        Segments(cuts).apply(TREE)


def test_a_gap_is_no_stack():
    with pytest.raises(ValueError, match="no whole stack"):
        Segments().undo({"layers_1_2": {"a": np.ones(2)}})
    with pytest.raises(ValueError, match="no whole stack"):
        Segments().undo({"layers_0_1": {"a": np.ones(2)}, "layers_3_3": {"a": np.ones(1)}})
