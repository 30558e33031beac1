"""The programs: --help, bench, plan, and what several processes agree on."""

import contextlib
import json
import sys
import threading
import zlib
from pathlib import Path

import pytest

from experiments.cli import start_devices

ROOT = Path(__file__).parents[2]

PROGRAMS = ("run", "trials", "sweep", "tables", "bench", "plan", "kernels", "generate", "evaluate", "gather", "room")
TWO_SITES = "--config.adapter.targets=('query','down')"


@pytest.mark.parametrize("wrong", [False, True])
def test_devices_start_on_another_thread_which_says_nothing(wrong, monkeypatch, capfd):
    """Where there are none, whoever asks for them next raises; the thread is no second traceback."""
    asked = []

    def devices():
        asked.append(threading.current_thread().name)
        if wrong:
            raise RuntimeError("no device")

    monkeypatch.setattr("jax.devices", devices)
    start_devices()
    for thread in threading.enumerate():
        if thread.name == "devices":
            thread.join()
    assert asked == ["devices"]
    assert not capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "early"),
    [
        ("run", ["--config=configs/mora_uuid.py"], True),
        ("run", ["--config=configs/mora_uuid.py", "--coordinator=localhost:1"], False),
        ("run", ["--config=configs/mora_uuid.py", "--help"], False),
        ("run", ["--config=configs/gone.py"], False),
        ("run", [], False),
        ("bench", ["--config=configs/bench.py:shape=toy-llama"], True),
        ("bench", ["--config=configs/bench.py", "--suite=none"], False),
        ("plan", ["--config=configs/bench.py"], False),
    ],
)
def test_devices_start_before_the_config_is_read(name, words, early, program, monkeypatch):
    """Where this process alone uses them; a mistake in a flag ends the program before it would ask again."""
    begun = []
    monkeypatch.setattr("experiments.cli.start_devices", lambda: begun.append("devices"))
    monkeypatch.setattr("experiments.cli.complete_file", lambda file: begun.append("config") or sys.exit(3))
    program(name, *words, "--no_such_flag")
    assert begun == ["devices"] * early + ["config"] * bool(words)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_imports_no_jax(start, name):
    """It takes seconds to import."""
    process = start(name, "--help", PYTHONPROFILEIMPORTTIME="1")
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert f"experiments/{name}.py:" in out or f"experiments/{name}/__main__.py:" in out or name == "plan"
    imported = {line.rpartition("|")[2].strip() for line in err.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported or "absl.flags" in imported  # the list is there
    assert not imported & {"jax", "flax", "optax"}
    assert ("--config=FILE:ARGUMENT" in out) == (name in ("run", "trials", "plan", "bench"))


def test_help_with_a_config(start):
    """The flags, the file's own arguments, and every key with the value that it has."""
    out, err = start("run", "--config=configs/mora_uuid.py:method=lora", "--help").communicate(timeout=60)
    assert "Traceback" not in err
    assert "--[no]fresh" in out
    assert "    method=mora          mora, lora, fft, rslora, dora\n    rank=8               an integer\n" in out
    assert "--config.adapter.method=lora\n" in out
    assert "--config.optimizer.learning_rate=0.003\n" in out


@pytest.mark.parametrize("name", ["run", "bench", "plan"])
def test_no_config(start, name):
    process = start(name)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "error: --config is missing, e.g. --config=configs/mora_uuid.py\n"


def test_bench_prints_one_line_of_json(program, tmp_path):
    config = "configs/bench.py:shape=toy-llama,method=mora,rank=2,batch=16,seq=32,dtype=float32"
    words = (TWO_SITES, "--steps=10", "--warmup=2", f"--trace={tmp_path / 'trace'}")
    ended = program("bench", f"--config={config}", *words)
    assert ended.status == 0, ended.err
    compiling, needs, printed = ended.out.splitlines()
    record = json.loads(printed)
    assert compiling.startswith("compiling the step ")
    assert needs.startswith("step needs ")
    assert record.keys() >= {
        "labels", "trainable", "frozen", "batch", "ms", "ms_min_max", "steps", "tokens_per_second", "peak_gib",
        "step_gib", "compile_seconds", "first_step_seconds", "losses", "dtype", "hardware", "versions", "git", "date",
    }  # fmt: skip
    assert (record["batch"], record["steps"], record["dtype"]) == ([16, 32], 10, "float32")
    assert record["labels"]["method"] == "mora sharing"
    assert record["ms_min_max"][0] <= record["ms"] <= record["ms_min_max"][1]
    assert record["tokens_per_second"] == pytest.approx(512 / record["ms"] * 1e3, rel=0.01)
    assert record["losses"][1] < record["losses"][0]
    assert record["peak_gib"] > record["step_gib"] > 0
    assert list((tmp_path / "trace").rglob("*.xplane.pb"))


def test_bench_of_trials_counts_the_tokens_of_all(program):
    config = "configs/bench.py:shape=toy-llama,method=mora,rank=2,batch=16,seq=32,dtype=float32"
    ended = program("bench", f"--config={config}", TWO_SITES, "--steps=10", "--warmup=2", "--trials=3")
    assert ended.status == 0, ended.err
    record = json.loads(ended.out.splitlines()[-1])
    assert (record["trials"], record["batch"]) == (3, [16, 32])
    assert record["tokens_per_second"] == pytest.approx(3 * 512 / record["ms"] * 1e3, rel=0.01)


def test_bench_steps_are_at_least_ten(program):
    ended = program("bench", "--config=configs/bench.py:shape=toy-llama", "--steps=3")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "steps" in ended.err


def test_plan_says_what_a_run_needs(program, toy, tmp_path):
    words = [word for word in toy(tmp_path) if word.startswith("--config")]
    ended = program("plan", *words)
    assert ended.status == 0, ended.err
    assert "layers/attention/query" in ended.out
    assert "trainable 1,160, frozen 23,808 parameters" in ended.out
    assert "over 2 device(s)" in ended.out
    assert "step needs " in ended.out
    assert not list(tmp_path.iterdir())


def test_plan_of_a_shape_without_tokenizer(program):
    name = "configs/mora_uuid.py:method=lora"
    words = ["base.name=smollm2-135m", "base.random_init=True", "train.batch_size=8", "base.remat=full"]
    ended = program("plan", f"--config={name}", "--seq_len=16", *(f"--config.{word}" for word in words))
    assert ended.status == 0, ended.err
    assert "frozen 134,515,008 parameters" in ended.out


@pytest.mark.parametrize("verdict", ["refused", "new", "resume", "finished"])
def test_every_process_learns_of_the_verdict_on_the_folder(verdict, monkeypatch, tmp_path):
    """A process that waited for the others of a refused run would hang."""
    import jax
    from jax.experimental import multihost_utils

    from experiments.session.together import agreement
    from lowrank_jax.core.errors import UserError

    def decide():
        if verdict == "refused":
            raise UserError("another config")
        return verdict

    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda value: sent.append(value) or sent[0])
    for index, words in enumerate(("another config", "process 0 cannot use")):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        if verdict == "refused":
            with pytest.raises(UserError, match=words):
                agreement.decided(decide, tmp_path)
        else:
            assert agreement.decided(decide, tmp_path) == verdict


def test_every_process_reads_the_same_data(monkeypatch):
    """Hosts with files of one name and other contents would each train on their own."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    from experiments.session.together import agreement
    from lowrank_jax.core.errors import UserError

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for other, alike in (("aa", True), ("ab", False)):
        monkeypatch.setattr(
            multihost_utils, "process_allgather", lambda mine, other=other: np.array([mine, zlib.crc32(other.encode())])
        )
        with contextlib.nullcontext() if alike else pytest.raises(UserError, match="give every host the same files"):
            agreement.check_alike({"task.path.0": {"sha256": "aa"}})
