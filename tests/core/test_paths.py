"""Leaves by path and ordered path rules."""

import gc
import weakref

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import first_match, flatten, nearest, unflatten, unknown_name

TREE = {"params": {"b": {"kernel": np.ones(2)}, "a": {"scale": np.zeros(1)}}, "scales": {"x": np.ones(())}}


def test_flatten_gives_paths_in_sorted_order():
    assert list(flatten(TREE)) == ["params/a/scale", "params/b/kernel", "scales/x"]


def test_unflatten_inverts_flatten():
    assert unflatten(flatten(TREE)) == TREE
    assert unflatten({}) == {}
    assert flatten({}) == {}


def test_flatten_keeps_the_leaves_themselves():
    assert flatten(TREE)["params/b/kernel"] is TREE["params"]["b"]["kernel"]


def test_empty_dicts_vanish():
    assert flatten({"a": {}, "b": {"c": {}, "d": 1}}) == {"b/d": 1}


def test_flatten_reads_any_mapping():
    from flax.core import freeze

    assert flatten(freeze({"a": {"b": 1}})) == {"a/b": 1}


@pytest.mark.parametrize("flat", [{"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}])
def test_a_path_cannot_be_both_a_leaf_and_a_branch(flat):
    with pytest.raises((TypeError, ValueError)):
        unflatten(flat)


def test_first_match_is_ordered_and_of_the_whole_path():
    rules = ((r".*/head/.*", 1), (r"params/.*", 2))
    assert first_match(rules, "params/head/kernel") == 1
    assert first_match(rules, "params/body/kernel") == 2
    assert first_match(rules, "xparams/body/kernel") is None
    assert first_match(((r"params", 1),), "params/body") is None
    assert first_match(rules, "other", default="none") == "none"


def test_first_match_keeps_falsy_values():
    assert first_match(((".*", False),), "a", default=True) is False
    assert first_match(((".*", ()),), "a", default=1) == ()


def test_a_rule_that_is_no_regular_expression_is_named():
    with pytest.raises(UserError, match=r"path rule '\*/bias' is no regular expression: nothing to repeat"):
        first_match((("*/bias", True), (".*", False)), "params/bias")


def test_nearest_names_look_alikes_first():
    assert nearest("querry", ["key", "query", "value"])[0] == "query"
    assert nearest("zzzz", ["key", "query"]) == []


def test_unknown_name_says_one_line_with_a_remedy():
    close, far = unknown_name("model", "pico-lama", ["pico-llama", "gpt2"]), unknown_name("model", "zzz", ["b", "a"])
    assert isinstance(close, UserError)
    assert "'pico-lama'" in str(close)
    assert "did you mean pico-llama?" in str(close)
    assert "known: a, b" in str(far)
    assert "\n" not in str(close) + str(far)


def test_flatten_keeps_no_leaf_alive():
    """Without a garbage collection: the leaves are gigabytes, and collections come when they come."""
    leaf = np.zeros(3)
    alive = weakref.ref(leaf)
    gc.disable()
    try:
        flatten({"a": {"b": leaf}})
        del leaf
        assert alive() is None
    finally:
        gc.enable()
