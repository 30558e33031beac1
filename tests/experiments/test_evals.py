"""`config.evals`: a run's evaluations by name, each with its own rhythm, and what they do to its name."""

import json

import pytest

from experiments.config.plain import content_hash, to_plain
from experiments.config.schema import unpack_run
from experiments.records.run_record import read_result
from lowrank_jax.core.errors import UserError

FILE = """
from configs.mora_uuid import get_config as of_table

def get_config(arg=None):
    config = of_table(arg)
    config.train.eval_steps = ()
    config.evals = {evals}
    return config
"""


def plain_of(evals=None, **train):
    """A plain config of few keys."""
    config = {"base": {"name": "toy-llama"}, "task": {"name": "uuid"}, "train": train}
    return to_plain(config if evals is None else {**config, "evals": evals})


def test_each_has_its_own_rhythm_and_name(run, tmp_path, records):
    file = tmp_path / "evals.py"
    file.write_text(FILE.format(evals='{"quick": {"every": 2, "at_end": False}, "last": {"type": "generation"}}'))
    ended = run(config=f"{file}:method=lora", train__eval_steps=None, adapter__rank=2)
    assert ended.status == 0, ended.err
    found = {}
    for line in records(ended.folder):
        for key in line:
            if key.startswith("eval/"):
                found.setdefault(key, []).append(line["step"])
    assert found["eval/quick/char_accuracy"] == [2, 4, 6]
    assert found["eval/last/char_accuracy"] == [6]
    assert not any(key.count("/") == 1 for key in found)  # the short way was not asked for
    result = read_result(ended.folder / "result.json")
    assert {"quick/char_accuracy", "last/char_accuracy"} <= result["evaluations"][-1].keys()
    assert json.loads((ended.folder / "config.json").read_text())["evals"]["quick"] == {"at_end": False, "every": 2}


@pytest.mark.parametrize(
    ("evals", "words"),
    [
        ('{"quick": {"type": "generations"}}', "unknown evaluation 'generations'; did you mean generation"),
        ('{"quick": {"type": "likelihood"}}', "the evaluation 'likelihood' needs a task with held-out text"),
        ('{"quick": {"often": 2}}', "unknown config key config.evals.quick.often"),
        ('{"quick": {"every": -1}}', "config.evals.quick.every is -1; it must be at least 0"),
        ('{"a/b": {"every": 1}}', "config.evals.a/b: name an evaluation with letters"),
        ('{"ok": {}, "late": {"steps": (2, 9)}}', "config.evals.late.steps [9] lie beyond the last step, 6"),
        ('{"never": {"at_end": False}}', "config.evals.never is never due (no every, no steps, at_end=False)"),
        (
            '{"never": {"every": 7, "at_end": False}}',
            "config.evals.never is never due (every 7 of 6 steps, at_end=False); set every, steps, at_start or at_end",
        ),
    ],
)
def test_mistakes(run, tmp_path, evals, words):
    file = tmp_path / "evals.py"
    file.write_text(FILE.format(evals=evals))
    ended = run(config=f"{file}:method=lora", train__eval_steps=None, adapter__rank=2)
    assert ended.status == 2
    assert words in ended.err
    assert not ended.folder.exists()


def test_they_enter_a_name_only_where_they_are_set():
    bare = content_hash(plain_of(eval_every=0))
    assert content_hash(plain_of({}, eval_every=0)) == bare
    named = content_hash(plain_of({"quick": {"every": 5}}))
    assert named != bare
    assert content_hash(plain_of({"quick": {"every": 5, "at_end": True, "type": ""}})) == named
    assert unpack_run(plain_of({"quick": {"every": 5}})).evals["quick"].every == 5
    with pytest.raises(UserError, match=r"config\.evals=3 is not a section"):
        unpack_run(plain_of(3))


def test_an_exam_enters_a_name_without_its_folder():
    """Where the files are is no part of what is measured; a further key counts only where it is set."""

    def name(**entry):
        return content_hash(plain_of({"mmlu": {"type": "choice", "task": "mmlu", **entry}}))

    assert name() == name(data_dir="/here") == name(data_dir="/there", shots=0, truncate=False, batch=0)
    assert len({name(), name(shots=5), name(max_rows=9), name(subjects=["anatomy"])}) == 4
    old = {"write": True, "type": "generation"}
    assert content_hash(plain_of({"a": old})) == content_hash(plain_of({"a": {**old, "task": "", "shots": 0}}))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (
            {"type": "choice"},
            r"config\.evals\.exam: an evaluation of the type 'choice' needs a task: one of mmlu",
        ),
        ({"type": "choice", "task": "mmul"}, "unknown exam 'mmul'; did you mean mmlu"),
        (
            {"type": "choice", "task": "mmlu", "shot": 5},
            r"unknown config key config\.evals\.exam\.shot; did you mean shots",
        ),
        ({"type": "choice", "task": "mmlu", "shots": -1}, r"config\.evals\.exam\.shots is -1; it must be at least 0"),
        (
            {"type": "generation", "shots": 5},
            r"config\.evals\.exam: shots belongs to an exam; name the exam as task, or leave shots out",
        ),
    ],
)
def test_mistakes_in_an_exam_s_entry(entry, words):
    with pytest.raises(UserError, match=words):
        unpack_run(plain_of({"exam": entry}))
