"""scripts/pod: what each prints with --dry-run, and its one-line errors; test_processes.py runs the printed worker."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

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


def script(name, *words):
    command = ["bash", str(POD / f"{name}.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_what_would_run(name):
    options, programs, last = SCRIPTS[name]
    done = script(name, *options, "--dry-run", "--", *FLAGS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    commands = [shlex.split(line) for line in lines if not line.startswith(("worker: ", "when you are done: "))]
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
            ((*options, *FLAGS[:1]), "unknown option --config"),
        ):  # fmt: skip
            done = script(name, "--dry-run", *words)
            assert (done.returncode, done.stdout) == (2, ""), (name, words)
            assert re.fullmatch(rf"error: .*{re.escape(said)}.*\n", done.stderr), done.stderr


def test_skypilot_starts_the_worker_where_its_variables_say():
    """The run section with the worker's place taken by `env`; the coordinator is the first node."""
    text = (POD / "skypilot.yaml").read_text()
    section = "\n".join(line[2:] for line in text.partition("\nrun: |\n")[2].splitlines())
    told = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    given = {**told, "WORKER": "/usr/bin/env"}
    done = subprocess.run(["bash", "-c", section], capture_output=True, text=True, timeout=60, check=True, env=given)
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("JAX_"))
    assert found == {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
