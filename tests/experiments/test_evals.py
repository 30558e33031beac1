"""`config.evals`: a run's evaluations by name, each with its own rhythm, and what they do to its name."""

import json
import shutil

import jax
import pytest

from experiments.config.plain import content_hash, to_plain
from experiments.config.schema import unpack_run
from experiments.records.run_folder import read_result
from lowrank_jax.bases.base import export_params, random_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

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
        ('{"never": {"every": 7, "at_end": False}}', "config.evals.never is never due (every 7 of 6 steps"),
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


# ---- samples ----


def rows_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


SAMPLES = {
    "held": {"type": "samples", "with_train": True, "count": 3, "max_new_tokens": 4},
    "drawn": {"type": "samples", "steps": (3,), "at_end": False, "prompts": ("1 and", "2"), "temperature": 1.0,
              "max_new_tokens": 5, "seed": 1},
    "scored": {"every": 3},
}  # fmt: skip


@pytest.fixture
def text_run(run, tmp_path):
    """text_run(...) -> a run of 4 steps on rows with prompts, with samples of held-out rows and of drawn texts."""
    rows = [{"prompt": f"{a} and {b} is ", "completion": str(a + b)} for a in range(4) for b in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "evals.json").write_text(json.dumps(SAMPLES))

    def call(**changes):
        own = {"task__path": tmp_path / "train.jsonl", "task__validation_path": tmp_path / "train.jsonl"}
        evals = changes.pop("evals", SAMPLES)
        return run(
            f"--config.evals={json.dumps(evals)}", config="configs/mora_uuid.py:data=text", task__pairs=None,
            task__eval_pairs=None, task__seq_len=32, train__eval_steps=None, train__steps=4, **own, **changes,
        )  # fmt: skip

    return call


def test_samples_are_written_shown_and_cut_on_resumption(text_run):
    """Of held-out rows with what they have as completion, and of prompts that the config lists."""
    ended = text_run(checkpoint__every=2, train__stop_at=3)
    assert ended.status == 0, ended.err
    found = rows_of(ended.folder)
    assert [(row["step"], row["name"]) for row in found] == [(2, "held")] * 3 + [(3, "drawn")] * 2 + [(3, "held")] * 3
    assert [(row["prompt"], row["reference"]) for row in found[:3]] == [
        ("0 and 0 is ", "0"),
        ("0 and 1 is ", "1"),
        ("0 and 2 is ", "2"),
    ]
    drawn = found[3:5]
    assert [row["prompt"] for row in drawn] == ["1 and", "2"]
    assert drawn[0].keys() == {"step", "name", "prompt", "continuation"}
    assert "step 2, held: '0 and 0 is ' => " in ended.out
    assert ended.out.count("step 3, held: ") == 1
    assert not any(key.startswith(("eval/held", "eval/drawn")) for key in (ended.folder / "metrics.jsonl").read_text())
    assert "scored/loss" in read_result(ended.folder / "result.json")["evaluations"][-1]

    (ended.folder / "result.json").unlink()  # as if a signal had stopped it after its checkpoint of step 2
    shutil.rmtree(ended.folder / "checkpoints" / "3")
    again = text_run(checkpoint__every=2)
    assert again.status == 0, again.err
    after = rows_of(ended.folder)
    assert [row["step"] for row in after] == [2] * 3 + [3] * 2 + [4] * 3
    assert after[:3] == found[:3]
    assert after[3:5] == drawn


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"counts": 2}, "unknown config key config.evals.held.counts; did you mean count"),
        ({"count": 0}, "config.evals.held.count is 0; it must be at least 1"),
        ({"top_p": 2.0}, "config.evals.held.top_p is 2.0; it must lie in (0, 1]"),
        ({"prompts": ["x" * 600]}, "the samples' longest prompt has 600 tokens, and 64 new ones exceed the model's"),
        ({"prompts": "none.jsonl"}, "none.jsonl: no such file"),
        ({"prompts": [""]}, "a prompt has no tokens"),
        ({"max_new_tokens": 10**6}, "exceed the model's"),
        ({"stop": [""]}, "a stop string is empty"),
    ],
)
def test_mistakes_in_samples(text_run, entry, words):
    ended = text_run(evals={"held": {"type": "samples", **entry}})
    assert ended.status == 2
    assert words in ended.err
    assert ended.err.count("\n") == 1
    assert not ended.folder.exists()


def test_samples_enter_a_name_only_where_they_are_set():
    named = content_hash(plain_of({"s": {"type": "samples", "every": 5}}))
    assert content_hash(plain_of({"s": {"type": "samples", "every": 5, "count": 4, "temperature": 0.0}})) == named
    assert content_hash(plain_of({"s": {"type": "samples", "every": 5, "count": 5}})) != named


def test_trials_write_their_own_samples(program, toy, tmp_path):
    shape, base = get_model("toy-llama"), tmp_path / "base"  # of a random one each seed draws another
    export_params(random_params(shape, jax.random.key(0), "float32"), shape, base, tokenizer=ByteTokenizer())
    evals = {"s": {"type": "samples", "count": 1, "every": 2}}
    words = toy(tmp_path, train__steps=2, base__name=base, base__random_init=False, task__eval_pairs=None)
    words = [word for word in words if not word.startswith("--name=")]
    ended = program("trials", *words, "--seeds=0,1", f"--config.evals={json.dumps(evals)}")
    assert ended.status == 0, ended.err
    folders = [path.parent for path in sorted(tmp_path.glob("*/samples.jsonl"))]
    assert len(folders) == 2
    for folder in folders:
        (row,) = rows_of(folder)
        assert (row["step"], len(row["reference"]), row["prompt"][-1]) == (2, 36, ":")
    assert ended.out.count("step 2, s: ") == 1
