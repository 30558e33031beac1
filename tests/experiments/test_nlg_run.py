"""Runs of configs/lora_nlg.py at toy size: best epoch, beams, scores, stop and resume, mistakes."""

import json
import shutil

import pytest
from safetensors.numpy import load_file

from experiments.records.lines import read_lines
from experiments.records.run_record import read_result
from lowrank_jax.train.tracking import read_decoded

CONFIG = "configs/lora_nlg.py"
TOY = {
    "base.name": "toy-llama",
    "base.random_init": True,
    "task.allow_partial": True,
    "task.max_prompts": 3,
    "train.epochs": 3,
    "train.batch_size": 8,
    "optimizer.learning_rate": 0.03,
    "schedule.warmup_fraction": 0.0,
    "schedule.kind": "constant",
    "adapter.targets": '("up","down")',
    "checkpoint.every": 2,
    "checkpoint.keep": 9,
    "mesh.data": 1,
    "mesh.tensor": -1,
    "tracking.wandb": "disabled",
}
DECODE = {"type": "generation", "weights": "best", "write": True, "beams": 2, "max_new_tokens": 3, "no_repeat_ngram": 2}


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR, ROUGE-L and CIDEr are then missing, whatever this machine has: they take seconds."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.fixture(scope="module")
def data(tiny_nlg, tmp_path_factory):
    """E2E whose held-out texts are of letters that training never has: the more is learnt, the worse is their loss."""
    folder = tmp_path_factory.mktemp("spoilt") / "e2e"
    shutil.copytree(tiny_nlg / "e2e", folder)
    (folder / "devset.csv").write_text('mr,ref\n"name[Ωμέγα]",ΩΨΦΩΨΦΩΨΦ\n', encoding="utf-8")
    return folder


@pytest.fixture
def words(data, tmp_path):
    """words("--name=run", KEY=VALUE, ...) -> the command line of a toy run of the config."""

    def make(*more, **changes):
        settings = TOY | {"task.data_dir": str(data), "evals": json.dumps({"decode": DECODE})}
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        pairs = [f"--config.{key}={value}" for key, value in settings.items()]
        return [f"--config={CONFIG}:model=pico-llama", f"--workdir={tmp_path}", *pairs, *more]

    return make


def test_a_run_decodes_its_best_epoch_and_resumes_bit_for_bit(program, words, tmp_path, saved, records):
    """The first of three epochs is the best: kept, decoded, scored, exported and loaded; also after a stop."""
    ended = program("run", *words("--name=run"))
    assert ended.status == 0, ended.err
    folder = tmp_path / "run"
    result = read_result(folder / "result.json")
    losses = {one["step"]: one["loss"] for one in result["evaluations"]}
    assert list(losses) == [2, 4, 6]  # 15 rows in batches of 8
    assert losses[2] < losses[4] < losses[6]
    assert result["best"] == {"step": 2, "loss": pytest.approx(losses[2], rel=1e-6)}
    last = result["evaluations"][-1]
    assert last["decode/best_step"] == 2
    assert not any(key.startswith("decode/") for one in result["evaluations"][:-1] for key in one)
    assert last["decode/bleu"] >= 0
    assert result["partial"]
    assert result["missing"]["cider"] == "not computed: needs Java"
    assert "e2e train: 15 texts, officially 42,061" in result["notes"]
    assert result["labels"] == {
        "method": "lora", "model": "pico-llama", "rank": 4, "reading": "paper", "stage": "full", "task": "e2e",
        "variant": "up+down",
    }  # fmt: skip
    texts = read_decoded(folder)
    names = ["Blue Spice test", "The Vaults test café", "Aromi test"]
    assert [text["prompt"] for text in texts] == [f"name : {name} | Type : pub" for name in names]
    assert texts[1]["references"] == [f"The Vaults test café is a pub, said {j}." for j in (0, 1)]
    assert {(text["step"], text["name"]) for text in texts} == {(6, "decode")}

    state = saved(folder, 2)
    exported = load_file(folder / "adapter" / "adapter.safetensors")
    trained = [path for path in exported if path.startswith("adapters/")]
    assert len(trained) == 4
    for path in trained:
        (leaf,) = (leaf for leaf in state if leaf == "train" + "".join(f"['{part}']" for part in path.split("/")))
        assert state[leaf][2] == exported[path].tobytes(), path

    shutil.copytree(folder, tmp_path / "again", ignore=shutil.ignore_patterns("6", "result.json", "adapter"))
    resumed = program("run", *words("--name=again"))
    assert resumed.status == 0, resumed.err
    first, second = ((each / "metrics.jsonl").read_text().splitlines() for each in (folder, tmp_path / "again"))
    assert (first[1] == second[1], first[-1] == second[-1]) == (True, False)  # by their times: resumed at step 4
    whole, parts = saved(folder, 6), saved(tmp_path / "again", 6)
    assert parts == whole
    assert sum("best" in name for name in whole) == 2 + len(trained)
    assert records(tmp_path / "again") == records(folder)
    assert read_decoded(tmp_path / "again") == texts
    assert read_result(tmp_path / "again" / "result.json")["best"] == result["best"]

    check_scoring_again(program, folder, result)
    shutil.rmtree(folder / "adapter")  # the checkpoint is left, as after full fine-tuning
    ended = program("generate", f"--run={folder}", "--prompt=name", "--max_new_tokens=2", f"--out={tmp_path / 'out'}")
    assert ended.status == 0, ended.err
    found = json.loads((tmp_path / "out").read_text())
    assert found["step"] == 2


def check_scoring_again(program, folder, result):
    """experiments.score: the record of a machine that computed nothing becomes that of the run; others' data do not.

    An exam that was left out stays so.
    """
    result = json.loads(json.dumps(result))
    result["config"]["evals"]["asked"] = {"type": "generation", "task": "ner", "optional": True}
    result["missing"]["asked"] = "no file"
    scores = [key for key in result["evaluations"][-1] if key.startswith("decode/") and key != "decode/best_step"]
    bare = json.loads(json.dumps(result))
    for key in scores:
        del bare["evaluations"][-1][key]
    bare["missing"] = {key.removeprefix("decode/"): "not computed: needs sacrebleu" for key in scores}
    bare["missing"]["asked"] = "no file"
    (folder / "result.json").write_text(json.dumps(bare))
    place = folder.parent / "scored"
    ended = program("score", f"--runs={folder}", f"--results={place}")
    assert ended.status == 0, ended.err
    assert read_result(folder / "result.json") == result
    assert read_lines(place.with_suffix(".jsonl")) == {"run": result}

    kept = (folder / "decoded.jsonl").read_bytes()
    for damage, message in (
        (kept.replace(b"Aromi", b"Other"), "decoded text 3 is of another input than"),
        (kept[kept.index(b"\n") + 1 :], "it decoded 2 inputs and the data have 3"),
        (kept.replace(b'"step": 6', b'"step": 4'), "has no evaluation 'decode' at step 4"),
    ):
        (folder / "decoded.jsonl").write_bytes(damage)
        ended = program("score", f"--runs={folder}")
        assert (ended.status, message in ended.err, len(ended.err.splitlines())) == (2, True, 1), ended.err
    (folder / "decoded.jsonl").unlink()
    ended = program("score", f"--runs={folder}")
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert "has no decoded.jsonl: no entry of its evals wrote its texts" in ended.err
    (folder / "decoded.jsonl").write_bytes(kept)
    assert read_result(folder / "result.json") == result


def test_a_run_whose_layers_are_in_segments_decodes(program, data, tmp_path, four_layers):
    """FT-Top2 trains the last two of four layers, an array of their own; beams and samples read the cache of both."""
    samples = {"type": "samples", "count": 1, "max_new_tokens": 2}
    settings = TOY | {"task.data_dir": str(data), "evals": json.dumps({"decode": DECODE, "show": samples})}
    settings |= {"train.epochs": 1, "base.name": four_layers, "base.random_init": False, "checkpoint.every": 0}
    pairs = [f"--config.{key}={value}" for key, value in settings.items() if not key.startswith("adapter.")]
    ended = program("run", f"--config={CONFIG}:model=pico-llama,method=ft-top2", f"--workdir={tmp_path}", *pairs)
    assert ended.status == 0, ended.err
    (folder,) = tmp_path.iterdir()
    assert len(read_decoded(folder)) == 3
    ended = program("generate", f"--run={folder}", "--prompt=name", "--max_new_tokens=2")
    assert ended.status == 0, ended.err


MISTAKES = {
    "nothing says what is best": (
        {"train__epochs": 0, "train__steps": 4},
        "config.evals.decode.weights is 'best' and the run has no held-out loss",
    ),
    "a penalty without beams": (
        {"evals": '{"d": {"type": "generation", "length_penalty": 0.9}}'},
        "length_penalty is for beams",
    ),
    "an over-long prompt": (
        {"evals": json.dumps({"decode": {**DECODE, "max_new_tokens": 480}}), "task__truncate": False},
        "testset_w_refs.csv, row 3: its prompt has 42 tokens, and 480 new ones exceed the model's 512 positions; "
        "set task.truncate=True to cut the beginnings of long prompts, lower",
    ),
    "no such weights": ({"evals": '{"d": {"weights": "first"}}'}, "config.evals.d.weights='first'"),
    "an unknown special token": ({"task__separator": "<|eot|>"}, "unknown special token"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(program, words, tmp_path, what):
    changes, message = MISTAKES[what]
    ended = program("run", *words("--name=run", **changes))
    assert ended.status == 2
    assert message in ended.err, ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
