"""`experiments.load` measures a base model's loading and says so in one JSON line."""

import json


def test_load_prints_what_it_measured(program):
    ended = program("load", "--base=pico-llama", "--dtype=float32")
    assert ended.status == 0, ended.err
    record = json.loads(ended.out)
    assert record["params_gib"] == round(3_304_448 * 4 / 2**30, 3)
    assert record["seconds"] > 0
    assert record["largest_leaf_gib"] <= record["params_gib"]


def test_load_wants_a_base(program):
    ended = program("load")
    assert ended.status == 2
    assert "--base=FOLDER" in ended.err
