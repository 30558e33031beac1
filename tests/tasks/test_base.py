"""Features and the registry: padding, protocols, bad input."""

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.base import (
    ChoiceTask,
    GenerationTask,
    LabelTask,
    LikelihoodTask,
    Task,
    make_features,
    pad_id,
    round_up,
)
from lowrank_jax.tasks.glue.task import GlueConfig
from lowrank_jax.tasks.mnli import MnliConfig
from lowrank_jax.tasks.nlg.task import NlgConfig
from lowrank_jax.tasks.registry import TASKS, build_task, task_config
from lowrank_jax.tasks.text import TextConfig
from lowrank_jax.tasks.uuid import UuidConfig
from lowrank_jax.text.tokenizers import ByteTokenizer


def test_features_are_padded_on_the_right_and_the_first_token_is_no_target():
    made = make_features([5, 6, 7], [1, 1, 0.5], 5, 9)
    assert made["tokens"].tolist() == [5, 6, 7, 9, 9]
    assert made["tokens"].dtype == np.int32
    assert made["weights"].tolist() == [0, 1, 0.5, 0, 0]
    assert made["weights"].dtype == np.float32


@pytest.mark.parametrize("length", [0, 1, 4])
def test_features_of_edge_lengths(length):
    made = make_features(range(length), [1] * length, 4, 9)
    assert made["weights"].sum() == max(length - 1, 0)


def test_long_examples_are_refused():
    with pytest.raises(UserError, match="has 5 tokens, seq_len is 4; raise it"):
        make_features(range(5), [1] * 5, 4, 9)
    with pytest.raises(ValueError, match="2 tokens but 1 weights"):
        make_features([1, 2], [1], 4, 9)


def test_small_helpers():
    class Bare(ByteTokenizer):
        pad_id = None

    assert pad_id(ByteTokenizer()) == 258
    assert pad_id(Bare()) == 0
    assert [round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]


def serves(task, protocol):
    return isinstance(task, protocol)


def test_every_task_builds_by_name_and_keeps_its_protocol(tmp_path, tiny_glue, tiny_nlg):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n')
    configs = {
        "uuid": UuidConfig(pairs=2),
        "text": TextConfig(path=str(tmp_path / "a.jsonl"), seq_len=8),
        "glue": GlueConfig(data_dir=str(tiny_glue), allow_partial=True),
        "mnli": MnliConfig(data_dir=str(tiny_glue), allow_partial=True),
        "nlg": NlgConfig(data_dir=str(tiny_nlg), allow_partial=True),
    }
    assert set(configs) == set(TASKS)
    for name, config in configs.items():
        task = build_task(name, config, ByteTokenizer())
        assert serves(task, Task)
        assert task.name == name
        assert task_config(name) is type(config)
        assert serves(task, GenerationTask) == (name in ("uuid", "mnli", "nlg"))  # mnli for samples
        assert serves(task, LikelihoodTask) == (name in ("text", "nlg"))
        assert serves(task, LabelTask) == (name == "glue")
        assert serves(task, ChoiceTask) == (name == "mnli")
        made = task.features(task.train_source()[0])
        if name == "glue":
            assert {k: v.dtype for k, v in made.items()} == {
                **dict.fromkeys(("tokens", "types", "labels"), np.int32),
                "weights": np.float32,
            }
            continue
        if name == "mnli":
            assert {k: v.dtype for k, v in made.items()} == {"tokens": np.int32, "weights": np.float32}
            continue
        assert {k: (v.shape, v.dtype) for k, v in made.items()} == {
            "tokens": ((task.seq_len,), np.int32),
            "weights": ((task.seq_len,), np.float32),
        }


def test_unknown_names_and_wrong_configs():
    with pytest.raises(UserError, match="unknown task 'uid'; did you mean uuid"):
        build_task("uid", UuidConfig(), ByteTokenizer())
    with pytest.raises(UserError, match="task 'text' takes a TextConfig, got a UuidConfig"):
        build_task("text", UuidConfig(), ByteTokenizer())
