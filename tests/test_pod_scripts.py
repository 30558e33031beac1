"""scripts/pod: what each prints with --dry-run, and its one-line errors; test_processes.py runs the printed worker."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[1]
POD = ROOT / "scripts" / "pod"
FLAGS = ["--config=configs/mora_uuid.py:method=lora", '--config.adapter.targets=("query","down")', "--name=it's"]
WORKER = [".venv/bin/python", "-m", "experiments.run", "--multihost", *FLAGS]
# script -> (its options, the programs that it would start, the one that starts the run)
SCRIPTS = {
    "tpu_vm": (["--name=n", "--zone=z", "--type=v6e-16"], ["gcloud", "git", "gcloud", "gcloud", "gcloud"], "gcloud"),
    "xpk": (["--cluster=c", "--workload=w", "--type=v5p-32", "--zone=z"], ["xpk"], "xpk"),
    "slurm": (["--nodes=2", "--gpus=8", "--time=1-0"], ["sbatch"], "sbatch"),
    "skypilot": (["--cluster=c", "--gpus=H200:8", "--nodes=2"], ["sky"], "sky"),
}


def script(name, *words, place=ROOT, path=Path(sys.executable).parent):
    """The ended script; without .venv it takes the python3 that is first on the PATH."""
    command, environment = ["bash", str(place / "scripts" / "pod" / f"{name}.sh"), *words], {**os.environ}
    environment["PATH"] = f"{path}:{environment['PATH']}"
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=place, check=False, env=environment)


@pytest.fixture
def without_python(tmp_path):
    """without_python(said, status=0) -> `place` and `path` of `script`: its python3 says this of the base, at once.

    The real one reads the config for 1.8 s of CPU time; each script asks it by the function of common.sh.
    """

    def make(said, status=0):
        shutil.copytree(POD, tmp_path / "scripts" / "pod")
        (tmp_path / "python3").write_text(f"#!/bin/sh\necho {shlex.quote(said)} >&2\nexit {status}\n")
        (tmp_path / "python3").chmod(0o755)
        return {"place": tmp_path, "path": tmp_path}

    return make


IN_HERE = "base: pico-llama, which is in this repository"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_what_would_run(name, without_python):
    options, programs, last = SCRIPTS[name]
    where = {} if name == "slurm" else without_python(IN_HERE)
    done = script(name, *options, "--dry-run", "--", *FLAGS, **where)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == IN_HERE
    said = ("base: ", "worker: ", "to copy the results here: ", "when you are done: ")
    commands = [shlex.split(line) for line in lines if not line.startswith(said)]
    assert [words[0] for words in commands] == programs
    (worker,) = (line.removeprefix("worker: ") for line in lines if line.startswith("worker: "))
    assert shlex.split(worker) == WORKER
    assert any(worker in word for word in commands[-1] if commands[-1][0] == last), commands[-1]
    for option in options:
        value = option.partition("=")[2]
        assert any(word == value or word.endswith(f"={value}") for words in commands for word in words), option


def test_every_script_is_tested_and_every_engine_is_given_what_it_needs():
    assert {path.stem for path in POD.glob("*.sh")} == {*SCRIPTS, "common"}
    for name, (options, _, _) in SCRIPTS.items():
        for words, said in (
            ((*options[1:], "--", *FLAGS), f"{options[0].partition('=')[0]}=... is missing"),
            ((*options, "--", ), "no flags of experiments.run"),
            ((*options, "--colour=red", "--", *FLAGS), "unknown option --colour"),
            ((*options, *FLAGS), "write -- before --config=configs/mora_uuid.py:method=lora: "),
            ((*options, "--workdir=runs", "--", *FLAGS), "write -- before --workdir=runs: "),
            ((*options, "--workdir", "runs", "--", *FLAGS), "write -- before --workdir: "),
        ):  # fmt: skip
            done = script(name, "--dry-run", *words)
            assert (done.returncode, done.stdout) == (2, ""), (name, words)
            assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", done.stderr), done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_scripts_first_lines(name, tmp_path):
    command = ["bash", str(POD / f"{name}.sh"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path, check=True)
    assert f"  bash scripts/pod/{name}.sh --" in done.stdout
    assert "source" not in done.stdout
    assert all(f"{option.partition('=')[0]}=" in done.stdout for option in SCRIPTS[name][0])
    assert "--dry-run" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull=true", "--only_check_args"])
def test_flags_that_only_print_start_no_machine(name, word, tmp_path):
    """The programs that start one are here files that say so."""
    for program in ("gcloud", "xpk", "sbatch", "sky"):
        (tmp_path / program).write_text("#!/bin/sh\necho STARTED\n")
        (tmp_path / program).chmod(0o755)
    done = script(name, *SCRIPTS[name][0], "--", FLAGS[0], word, path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(
        rf"error: {word} after -- would start machines .*: python -m experiments.run --help\n", done.stderr
    )
    asked = script(name, *SCRIPTS[name][0], "--help", "--", FLAGS[0], path=tmp_path)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "STARTED" not in asked.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_base_without_weights_ends_it_before_anything_is_made(name, without_python):
    """The programs are not on the PATH: whatever is started ends with another status. A dry run goes on."""
    flags = ["--config=configs/mora_uuid.py:scale=paper", "--config.base.name=llama2-7b"]
    line = "llama2-7b is a shape without weights; name a local folder or Hub repository, or set random_init"
    where = {} if name == "slurm" else without_python(f"error: {line}", 2)
    done = script(name, *SCRIPTS[name][0], "--", *flags, **where)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {line}\n")
    dry = script(name, *SCRIPTS[name][0], "--dry-run", "--", *flags, **where)
    assert dry.returncode == 0, dry.stderr
    assert dry.stdout.startswith(f'base: the run would end with "error: {line}"\n')


def test_without_the_packages_it_says_that_the_base_is_not_checked(without_python):
    where = without_python("ModuleNotFoundError", 1)
    done = script("slurm", *SCRIPTS["slurm"][0], "--dry-run", "--", *FLAGS, **where)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("base: not checked, as python3 here cannot read the config; ")


def test_what_a_base_needs_on_the_hosts(tmp_path):
    needed = importlib.import_module("scripts.pod.base").needed
    assert needed("llama2-7b", random_init=True) == "llama2-7b with random weights: no file is read"
    assert "python scripts/fetch_weights.py smollm2-135m on each host" in needed("smollm2-135m")
    assert "each host reads from the Hub" in needed("meta-llama/Llama-2-7b-hf")
    for name in ("/mnt/llama", "~/llama", "./llama2-7b", "weights/llama/7b", str(tmp_path)):
        assert needed(name) == f"{name}, a path that all hosts must have"
    with pytest.raises(UserError, match="unknown base model 'smolm2-135m'; did you mean smollm2-135m"):
        needed("smolm2-135m")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (["--workdir=/mnt/it's"], "/mnt/it's"),
        (["--workdir", "r"], "lowrank_jax/r"),
        (["-workdir=/one dash"], "/one dash"),
        (["--workdir=/a", "-workdir", "/b"], "/b"),
        ([], "lowrank_jax/runs"),
    ],
)
def test_a_slice_says_how_to_copy_the_results_and_to_delete_it(words, folder, without_python, tmp_path):
    """At its end, and where a command failed: here gcloud fails."""
    (tmp_path / "gcloud").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "gcloud").chmod(0o755)
    done = script("tpu_vm", *SCRIPTS["tpu_vm"][0], "--", FLAGS[0], *words, **without_python(IN_HERE))
    copy, delete = done.stdout.splitlines()[-2:]
    assert done.returncode == 7
    assert copy.startswith("to copy the results here: ")
    told = shlex.split(copy.removeprefix("to copy the results here: "))
    assert told[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "scp", "--recurse"]
    assert told[6:] == [f"n:{folder}", ".", "--zone=z", "--worker=0"]
    assert delete == "when you are done: gcloud compute tpus tpu-vm delete n --zone=z"


def test_skypilot_starts_the_worker_where_its_variables_say():
    """The run section with the worker's place taken by `env`; the coordinator is the first node."""
    text = (POD / "skypilot.yaml").read_text()
    section = "\n".join(line[2:] for line in text.partition("\nrun: |\n")[2].splitlines())
    told = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    given = {**told, "WORKER": "/usr/bin/env"}
    done = subprocess.run(["bash", "-c", section], capture_output=True, text=True, timeout=240, check=True, env=given)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("JAX_"))
    assert found == {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
