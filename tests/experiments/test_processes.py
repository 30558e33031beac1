"""Runs of several processes: their flags, one line where one dies or ends, and resumption."""

import json
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import SIGNALLED_RUN, SWEEP
from fuzz import doors

from experiments import sweep
from experiments.session.together import cluster
from experiments.session.together.cluster import Place
from lowrank_jax.core.errors import INTERRUPTED, LOST, MENDABLE, UserError
from lowrank_jax.train.signals import STOPPING_ALL

ROOT = Path(__file__).parents[2]
NOTHING = dict.fromkeys(cluster.VARIABLES)
HEARTBEAT = 10  # seconds; of the tests in which a process dies
COORDINATOR = "error: process 0 of 2, the coordinator, died or was cut off; start all processes again"

# One process of a program that does nothing but exchange values with the others. argv: what happens, in which
# process; then the flags of experiments.run that say where it stands.
EXCHANGE = """
import os, signal, sys, time
event, where, *words = sys.argv[1:]
from experiments.session.together import cluster
cluster.quieten(words)
from absl import flags
from experiments import run
from experiments.cli import launch
from lowrank_jax.core.errors import UserError

def main(_):
    F = flags.FLAGS
    place = cluster.place(F.multihost, {name: F[name].value for name in cluster.VARIABLES})
    with cluster.start(place, F.heartbeat_seconds, F.start_seconds):
        import numpy as np
        from jax.experimental.multihost_utils import process_allgather
        from lowrank_jax.train.signals import StopRequest
        if event == "TERM_EARLY" and F.process == int(where):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        with StopRequest(every=5) as stop:
            for step in range(1, 10**6):
                process_allgather(np.int32(step))
                if step == 3 and F.process == int(where):
                    if event == "UserError":
                        raise UserError("the disk is full")
                    if event == "ZeroDivisionError":
                        1 / 0
                    if event.startswith("SIG"):
                        os.kill(os.getpid(), getattr(signal, event))
                if stop.requested(step):
                    return 130

sys.argv = ["run", *words]
launch(main, own_config=True)
"""


@pytest.fixture
def several(one_device):
    """several(word, ..., count=2) -> [(status, out, err)] of processes with one device each.

    Words: a program's, None for its code in place of its name. `variables` says where each stands by variables rather
    than flags. A process that was stopped is killed once the others have ended.
    """

    def call(*command, count=2, variables=False, stopped=None):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        workers = []
        for index in range(count):
            standing = dict(zip(cluster.VARIABLES, (address, str(count), str(index)), strict=True))
            flags = [] if variables else [f"--{name}={value}" for name, value in standing.items()]
            environment = {cluster.VARIABLES[name]: value for name, value in standing.items()} if variables else {}
            workers.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command), *flags],
                    cwd=ROOT, env=one_device | environment,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
        try:
            order = sorted(range(count), key=lambda index: index == stopped)  # its pipes end only when it is killed
            texts = {}
            for index in order:
                if index == stopped:
                    workers[index].kill()
                texts[index] = workers[index].communicate(timeout=200)
        finally:
            for worker in workers:
                worker.kill()
        words = lambda out: "".join(line for line in out.splitlines(True) if not line.startswith("[Gloo]"))  # noqa: E731
        return [(worker.returncode, words(texts[i][0]), texts[i][1]) for i, worker in enumerate(workers)]

    return call


def printed_worker(flags: list[str]) -> list[str]:
    """The words after the interpreter of the command that scripts/pod prints for every process."""
    script = [str(ROOT / "scripts" / "pod" / "slurm.sh"), "--nodes=2", "--gpus=1", "--dry-run", "--", *flags]
    done = subprocess.run(["bash", *script], capture_output=True, text=True, timeout=60, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("worker: "))
    python, *words = shlex.split(line.removeprefix("worker: "))
    assert python == ".venv/bin/python"
    return words


def no_lines_but(err: str, line: str) -> None:
    """Makes sure that a progress bar and this line are all that a process printed on stderr."""
    said = [x for x in err.splitlines() if x.strip() and "%|" not in x]
    assert len(said) == 1, err
    assert said[0].startswith(line), err


def test_two_processes_resume_a_run_where_one_died_and_make_that_of_one_process(
    straight, several, program, toy, records, tmp_path
):
    """Process 0 alone writes and prints; what one process with as many devices made has the same bits.

    The process that writes is killed (kill -9) after the first checkpoint. Two processes resume by the command that
    scripts/pod prints, and one process alone resumes from the same checkpoint.
    """
    alone = straight("alone").folder
    words = toy(tmp_path, train__eval_steps="()", checkpoint__every=2)  # of those that end early, none decodes
    two = tmp_path / "run" / "checkpoints" / "2"
    (killed, _, _), (status, _, err) = several("-c", SIGNALLED_RUN, "SIGKILL", "--process=0", two, *words)
    assert (killed, status) == (-signal.SIGKILL, LOST), err
    no_lines_but(err, COORDINATOR)
    assert not (tmp_path / "run" / "result.json").exists()
    assert two.is_dir()
    shutil.copytree(tmp_path / "run", tmp_path / "fewer")
    (status, out, err), (other_status, other_out, other_err) = several(*printed_worker(words), variables=True)
    assert (status, other_status) == (0, 0), (err, other_err)
    assert "on 2 cpu device(s)" in out
    assert "run: finished" in out
    assert other_out == other_err == ""
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["environment"]["hardware"]["devices"] == {"cpu": 2}
    ours, theirs = (records(folder) for folder in (tmp_path / "run", alone))
    assert "eval/char_accuracy" in ours[-1]
    assert ours == [line for line in theirs if "loss" in line or line["step"] == 6]
    assert checksums(tmp_path / "run") == checksums(alone)

    metrics = tmp_path / "fewer" / "metrics.jsonl"
    first, *_ = metrics.read_text().splitlines()
    ended = program("run", *words, "--name=fewer")
    assert ended.status == 0, ended.err
    assert metrics.read_text().splitlines()[0] == first  # with its time: no new start
    assert records(tmp_path / "fewer") == ours
    assert checksums(tmp_path / "fewer") == checksums(alone)


def checksums(folder: Path) -> dict:
    """Of every trained leaf and of the optimizer's, in the last checkpoint."""
    found = json.loads((folder / "checkpoints" / "6" / "meta" / "metadata").read_text())["checksums"]
    assert found["train"]
    assert found["opt"]
    return found


@pytest.mark.parametrize(
    ("event", "where", "statuses", "line"),
    [
        ("SIGKILL", 0, (-signal.SIGKILL, LOST), COORDINATOR),
        ("SIGSTOP", 0, (-signal.SIGKILL, LOST), COORDINATOR),
        ("SIGSTOP", 1, (LOST, -signal.SIGKILL), "error: process 1 of 2 died or was cut off: silent for 10 s; start"),
        ("UserError", 0, (MENDABLE, MENDABLE), "error: process 0 of 2 ended: the disk is full"),
        ("ZeroDivisionError", 1, (1, 1), "error: process 1 of 2 ended: ZeroDivisionError: division by zero"),
        ("TERM_EARLY", 1, (INTERRUPTED, INTERRUPTED), "error: process 1 of 2 ended: interrupted"),
    ],
)
def test_where_one_ends_the_other_ends_with_one_line(event, where, statuses, line, several):
    stopped = where if event == "SIGSTOP" else None
    heartbeat = [f"--heartbeat_seconds={HEARTBEAT}"] if event in ("SIGKILL", "SIGSTOP") else []
    ended = several("-c", EXCHANGE, event, where, *heartbeat, stopped=stopped)
    assert tuple(status for status, _, _ in ended) == statuses, ended
    no_lines_but(ended[1 - where][2], line)
    own = ended[where][2]
    assert ("Traceback" in own) == (event == "ZeroDivisionError"), own
    if event == "UserError":
        no_lines_but(own, "error: the disk is full")
    if event == "TERM_EARLY":
        no_lines_but(own, "interrupted; start all processes again")


def test_the_dead_one_of_three_is_named_and_a_signal_to_one_stops_all(several):
    ended = several("-c", EXCHANGE, "SIGKILL", 1, f"--heartbeat_seconds={HEARTBEAT}", count=3)
    assert [status for status, _, _ in ended] == [LOST, -signal.SIGKILL, LOST], ended
    for index in (0, 2):
        no_lines_but(ended[index][2], "error: process 1 of 3 died or was cut off: silent for 10 s; start")
    ended = several("-c", EXCHANGE, "SIGTERM", 1)
    said = ["", f"{STOPPING_ALL}\n"]
    assert [(status, err) for status, _, err in ended] == [(INTERRUPTED, line) for line in said], ended


@pytest.mark.parametrize(
    ("flags", "variables", "found"),
    [
        ({}, {}, None),
        ({"coordinator": "a:1", "processes": 3, "process": 2}, {}, Place("a:1", 3, 2)),
        ({}, {"coordinator": "[::1]:8476", "processes": "2", "process": "0"}, Place("[::1]:8476", 2, 0)),
        ({"process": 1}, {"coordinator": "a:1", "processes": "2", "process": "0"}, Place("a:1", 2, 1)),
        ({"multihost": True}, {}, Place()),
        ({"multihost": True}, {"coordinator": "a:1"}, Place("a:1")),
        ({"multihost": False}, {"coordinator": "a:1", "processes": "2", "process": "0"}, None),
    ],
)
def test_where_a_process_stands(flags, variables, found, monkeypatch):
    standing(monkeypatch, variables)
    assert cluster.place(flags.pop("multihost", None), NOTHING | flags) == found


@pytest.mark.parametrize(
    ("flags", "variables", "words"),
    [
        ({"coordinator": "a:1"}, {}, "without --processes (JAX_NUM_PROCESSES) and --process (JAX_PROCESS_ID);"),
        ({"processes": 2, "process": 0}, {}, "without --coordinator (JAX_COORDINATOR_ADDRESS);"),
        ({}, {"processes": "2"}, "without --coordinator (JAX_COORDINATOR_ADDRESS) and --process (JAX_PROCESS_ID);"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, {}, "process 2 of 2 is out of range"),
        ({"coordinator": "a:1", "processes": 0, "process": 0}, {}, "--processes is 0"),
        ({"coordinator": "a:1", "processes": 2, "process": -1}, {}, "--process is -1"),
        ({"coordinator": "a:1", "process": 0}, {"processes": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        ({"coordinator": "a:1", "processes": 2}, {"process": "-1"}, "JAX_PROCESS_ID is '-1'"),
        ({"coordinator": "a", "processes": 2, "process": 0}, {}, "write HOST:PORT"),
        ({"coordinator": ":1", "processes": 2, "process": 0}, {}, "write HOST:PORT"),
        ({"coordinator": "a:65536", "processes": 2, "process": 0}, {}, "write HOST:PORT"),
        ({"multihost": False, "process": 0}, {}, "--nomultihost contradicts --process"),
    ],
)
def test_a_part_that_is_missing_or_wrong_is_named(flags, variables, words, monkeypatch):
    standing(monkeypatch, variables)
    with pytest.raises(UserError) as told:
        cluster.place(flags.pop("multihost", None), NOTHING | flags)
    assert words in str(told.value)


def standing(monkeypatch, variables):
    for name, variable in cluster.VARIABLES.items():
        monkeypatch.delenv(variable, raising=False)
        if name in variables:
            monkeypatch.setenv(variable, variables[name])


def test_processes_that_do_not_come_together(start):
    """Nobody listens, nobody comes, the port is another program's, no cluster: one line each, and status 2."""
    with socket.socket() as free, socket.socket() as taken:
        for probe in (free, taken):
            probe.bind(("localhost", 0))  # and does not listen
        nobody, other = (f"localhost:{probe.getsockname()[1]}" for probe in (free, taken))
        where = lambda address, process: (f"--coordinator={address}", "--processes=2", f"--process={process}")  # noqa: E731
        cases = {
            f"the coordinator, process 0 at {nobody}, cannot be reached within 2 s": where(nobody, 1),
            f"process 0 cannot listen at {other}": where(other, 0),
            "one of several processes, but without --coordinator (JAX_COORDINATOR_ADDRESS) and": ("--multihost",),
        }
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            alone = f"localhost:{probe.getsockname()[1]}"
        cases[f"the 2 processes did not come together at {alone} within 2 s"] = where(alone, 0)
        started = {
            line: start(None, EXCHANGE, "nothing", 0, *words, "--start_seconds=2") for line, words in cases.items()
        }
        for line, process in started.items():
            _, err = process.communicate(timeout=100)
            assert process.returncode == MENDABLE, err
            no_lines_but(err, f"error: {line}")


def test_programs_of_one_process_say_so(program, grid_files, monkeypatch):
    """Each process would run the whole of it, and a sweep's cells would each wait for the others."""
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    ended = program("trials", "--config=configs/mora_uuid.py", "--seeds=0,1", f"--workdir={grid_files}")
    assert ended.status == MENDABLE
    no_lines_but(ended.err, "error: experiments.trials runs in one process, and JAX_NUM_PROCESSES asks for several;")
    files = {name: str(grid_files / file) for name, file in (("config", "config.py"), ("grid", "grid.py"))}
    options = SimpleNamespace(**SWEEP | files, workdir=str(grid_files))
    ended = doors.call("sweep", main=lambda: sweep.sweep_main(options))
    assert ended.status == MENDABLE
    no_lines_but(ended.err, "error: experiments.sweep runs in one process, and JAX_NUM_PROCESSES asks for several;")
    assert not list(grid_files.glob("*.lock"))
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    cluster.refuse_several("experiments.trials", "")
