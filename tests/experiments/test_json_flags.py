"""Keys that hold sections or rules of their own, given as JSON: adapters, evals, trainable."""

import json
import shlex

import numpy as np
import pytest

from experiments.config.json_flags import KEYS, take, way
from experiments.sweeps import engine, grid
from lowrank_jax.checkpoints.adapters_only import load_adapter
from lowrank_jax.core.errors import UserError

FURTHER = [{"method": "houlsby", "rank": 3}]
RULES = [["adapters/.*/b", True], [".*", False]]


def test_each_key_reaches_the_run(run):
    """A second family, an evaluation and a list of rules, by which only LoRA's B [4, d_out] is trained: AsyLoRA's."""
    two = run("--config.adapters", json.dumps(FURTHER), name="two", train__steps=2, train__eval_steps="()")
    assert two.status == 0, two.err
    assert json.loads((two.folder / "config.json").read_text())["adapters"] == FURTHER
    described = json.loads((two.folder / "adapter" / "adapter.json").read_text())["config"]
    assert [(one["method"], one["rank"]) for one in described] == [("mora", 4), ("houlsby", 3)]

    words = (f"--config.trainable={json.dumps(RULES)}", '--config.evals={"quick": {"every": 1, "at_end": false}}')
    quick = dict(train__steps=2, train__eval_steps="()", adapter__init="asylora")
    ended = run(*words, config="configs/mora_uuid.py:method=lora", **quick)
    assert ended.status == 0, ended.err
    result = json.loads((ended.folder / "result.json").read_text())
    assert result["config"]["trainable"] == RULES
    assert [list(one)[1].partition("/")[0] for one in result["evaluations"]] == ["quick", "quick"]
    assert 0 < result["parameters"]["trainable"] < result["parameters"]["frozen"]
    assert (result["labels"]["method"], result["labels"]["variant"]) == ("asylora", "frozen A")
    saved, *_ = load_adapter(ended.folder / "adapter")  # with the A that nobody trained: the update needs it
    leaf = saved["adapters"]["layers"]["attention"]["query"]
    np.testing.assert_allclose(leaf["a"][0].T @ leaf["a"][0], np.eye(4), atol=1e-5)
    assert leaf["b"].any()


def test_a_plain_word_and_other_flags_stay():
    words = ["run", "--config.trainable=full", "--config.adapter.rank=3", "--fresh", "--config.trainable", "bitfit"]
    assert take(None, words) == words


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--config.adapters=lora", "config.adapters is not JSON"),
        ("--config.adapters={}", "config.adapters is JSON but not a list"),
        ("--config.evals=[1]", "config.evals is JSON but not an object"),
        ("--config.trainable=[(1, 2)]", "config.trainable is not JSON"),
        ("--config.adapters=" + "[" * 100_000, "config.adapters is not JSON"),
    ],
)
def test_a_wrong_value_names_the_way(word, said):
    with pytest.raises(UserError) as error:
        take(None, ["run", word])
    assert said in str(error.value)
    assert way(word.removeprefix("--config.").partition("=")[0]) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_of_them_names_the_way(run):
    refused = run("--config.adapters.0.rank=3")
    assert refused.status == 2
    assert refused.err.strip() == f"error: config.adapters has no part '0.rank' to set; {way('adapters')}"
    wrong = run('--config.adapters=[{"methods": "lora"}]')
    assert "config.adapters[0].methods; did you mean method" in wrong.err


@pytest.mark.parametrize("key", KEYS)
def test_the_example_of_a_message_is_valid(key):
    assert isinstance(json.loads(KEYS[key][1]), KEYS[key][0])


def test_a_grid_may_have_them(tmp_path):
    """The cell's command, as printed, gives the cell's config."""
    file = tmp_path / "grid.py"
    overrides = {"adapters": FURTHER, "trainable": RULES, "seed": 2}
    file.write_text(f"def cells():\n    return [dict(arg='method=lora', overrides={overrides})]\n")
    made = grid.Grid("configs/mora_uuid.py", str(file))
    ((name, cell),) = made.cells.items()
    assert (cell.plain["adapters"], cell.plain["trainable"]) == (FURTHER, RULES)
    words = shlex.split(shlex.join(engine.Sweep(made, str(tmp_path)).command(cell)))
    assert f"--config.adapters={json.dumps(FURTHER)}" in words
    assert f"--config.trainable={json.dumps(RULES)}" in words
    assert f"--name={name}" in words
    plain = grid.Grid("configs/mora_uuid.py", str(file))._plain("", {"trainable": "full"})
    assert plain["trainable"] == "full"
