"""scripts/compare_processes.py: what it counts, and that its methods, meshes and keys are those of a run."""

from typing import get_args, get_type_hints

import numpy as np
import pytest

from experiments.cli import complete_file
from experiments.config.defaults import wrong_key
from experiments.config.files import ROOT, load_module
from lowrank_jax.adapters.base import PREFIX_METHODS, MoraConfig


@pytest.fixture(scope="module")
def script():
    return load_module(ROOT / "scripts" / "compare_processes.py")


def test_rows_within_the_limits_are_counted(script):
    alone = {"lora|1x1x1|sgd|losses": np.array([2.0, 1.0]), "lora|1x1x1|sgd|adapters/a": np.array([4.0, -8.0])}
    near = {"lora|1x8x1|sgd|losses": np.array([2.0, 1.0 + 5e-6]), "lora|1x8x1|sgd|adapters/a": np.array([4.0, -8.0])}
    far = {"lora|1x1x2|sgd|losses": np.array([2.0, 1.0]), "lora|1x1x2|sgd|adapters/a": np.array([4.0, -8.004])}
    rows = script.compared({"1": alone, "8": near, "2 x 1": far})
    assert [(row["topology"], row["mesh"], row["within"], row["steps"]) for row in rows] == [
        ("8", "1x8x1", True, 2), ("2 x 1", "1x1x2", False, 2),
    ]  # fmt: skip
    assert rows[1]["trained"] == pytest.approx(5e-4)
    assert rows[0]["learnt"] == 1.0
    found = script.summary(rows, "topology", "optimizer")
    assert found["8", "sgd"]["within"] == "1 of 1"
    assert found["2 x 1", "sgd"]["within"] == "0 of 1"


def test_its_methods_and_keys_are_those_of_the_config(script):
    config = complete_file(str(ROOT / "configs" / "mora_uuid.py"))
    for keys in (script.COMMON, *script.METHODS.values()):
        for key in keys:
            assert wrong_key(config, f"config.{key}") is None, key
    assert set(script.COMPRESSIONS) == {*get_args(get_type_hints(MoraConfig)["compression"])}
    assert {*PREFIX_METHODS, "lora", "dora", "full"} <= script.METHODS.keys()
    for name, (processes, devices) in script.TOPOLOGIES.items():
        assert all(np.prod(mesh) == processes * devices for mesh in script.MESHES[processes * devices]), name
