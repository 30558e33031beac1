"""The programs as a user starts them, in this process or a separate one, at toy size; and what a run saved."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import FAKE_RUN, SWEEP
from fuzz import doors
from toy_config import TOY

from experiments import sweep
from experiments.sweeps import engine

ROOT = Path(__file__).parents[2]
CONFIG = "configs/mora_uuid.py"
# Six steps, and a checkpoint after the last.
SHORT = TOY | {"train.steps": 6, "train.eval_steps": "()", "checkpoint.every": 0, "checkpoint.keep": 9}

EVALUATED = {"train__eval_steps": "(2,)"}  # of `run` and `straight`, which are one config


def toy_words(folder, config=CONFIG, name="run", **changes) -> list[str]:
    """The command line of a toy run; `changes` are overrides, __ for their dots; None leaves the config's value."""
    settings = SHORT | {key.replace("__", "."): value for key, value in changes.items()}
    words = [f"--config={config}", f"--workdir={folder}", f"--name={name}"]
    return words + [f"--config.{key}={value}" for key, value in settings.items() if value is not None]


@pytest.fixture
def eight_devices():
    """For a test that wants all of the simulated devices."""


@pytest.fixture(autouse=True)
def few_devices(request):
    """`two_devices`, unless the test asks for `eight_devices`."""
    if "eight_devices" not in request.fixturenames:
        request.getfixturevalue("two_devices")


@pytest.fixture(scope="session", autouse=True)
def known_orders():
    """Grain's order of the same few rows by the same seed is worked out once: 10 ms a batch of 8 of a toy's 20."""
    try:
        from grain._src.python.dataset.transformations import shuffle
    except ImportError:  # no grain, or one whose parts have moved: its orders are worked out each time
        yield
        return
    known = SimpleNamespace(index_shuffle=functools.lru_cache(2**16)(shuffle.index_shuffle.index_shuffle))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "index_shuffle", known)
        yield


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory) -> Path:
    """A folder of a random toy Llama of four layers: two are left where the last two are trained."""
    import jax

    from lowrank_jax.bases.base import export_params, random_params
    from lowrank_jax.models.registry import get_model
    from lowrank_jax.text.tokenizers import ByteTokenizer

    shape, folder = dataclasses.replace(get_model("toy-llama"), num_hidden_layers=4), tmp_path_factory.mktemp("four")
    params = random_params(shape, jax.random.key(0), "float32")
    return export_params(params, shape, folder / "toy", "float32", tokenizer=ByteTokenizer())


@pytest.fixture
def curves():
    """For a test that wants a run's real figure."""


@pytest.fixture(autouse=True)
def quick_curves(request, monkeypatch):
    """A dot for each run's figure, which takes 0.4 s to draw, unless the test asks for `curves`."""

    def dot(_result, path):
        from PIL import Image

        Image.new("RGB", (1, 1)).save(path)
        return path

    if "curves" not in request.fixturenames:
        monkeypatch.setattr("experiments.tables.figures.draw_run", dot)


@pytest.fixture
def program(monkeypatch, capfd):
    """program("run", word, ...) -> (status, out, err), through the program's own front door, in this process."""
    from experiments.cli import launch

    monkeypatch.chdir(ROOT)

    def call(name, *words):
        module = doors.import_alone(doors.PROGRAMS.get(name, f"experiments.{name}"))
        monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *map(str, words)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                launch(module.main, words=getattr(module, "WORDS", False))
        finally:
            doors.forget(module.__name__)
        return SimpleNamespace(status=ended.value.code or 0, **capfd.readouterr()._asdict())

    return call


@pytest.fixture
def run(program, tmp_path):
    """run("--fresh", name="run", train__steps=9, ...) -> (status, out, err, folder) of a toy run in tmp_path."""

    def call(*words, **changes):
        ended = program("run", *toy_words(tmp_path, **EVALUATED | changes), *words)
        ended.folder = tmp_path / changes.get("name", "run")
        return ended

    return call


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """(folder for all tests, {key: an ended run in it}); see `straight`."""
    return tmp_path_factory.mktemp("kept"), {}


@pytest.fixture
def straight(program, kept, tmp_path):
    """straight(name) -> (status, out, err, folder) of a copy of one uninterrupted toy run, a checkpoint each 2 steps.

    The run is made once a session, at its first use; each test gets a copy to spoil.
    """

    def call(name="run"):
        folder, ended = kept
        if "run" not in ended:
            ended["run"] = program("run", *toy_words(folder, checkpoint__every=2, **EVALUATED))
            assert ended["run"].status == 0, ended["run"].err
        shutil.copytree(folder / "run", tmp_path / name)
        return SimpleNamespace(**vars(ended["run"]), folder=tmp_path / name)

    return call


@pytest.fixture(scope="session")
def one_device():
    """Environment of a process with one CPU device that compiles as fast as these tests do; it sets YNN's flag.

    It has as many threads as this process, a device each at least: how a product is cut among them moves its last bits.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    left_out = ("--xla_force_host_platform_device_count", "--xla_cpu_experimental_ynn_fusion_type")
    words = [word for word in os.environ["XLA_FLAGS"].split() if not word.startswith(left_out)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return kept | {"XLA_FLAGS": " ".join(words), "PYTHONPATH": str(ROOT), "NPROC": str(max(cores, 8))}


@pytest.fixture
def start(one_device):
    """start("run", word, ...) -> Popen of a program in its own process, on one CPU device; start(None, code, ...)."""
    started = []

    def call(name, *words, **settings):
        command = [sys.executable, *(("-m", f"experiments.{name}") if name else ("-c",)), *map(str, words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, cwd=ROOT, env=one_device | settings, **pipes))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def toy():
    """`toy_words`."""
    return toy_words


@pytest.fixture(scope="session")
def saved():
    """saved(folder, step) -> {leaf: dtype, shape and bytes} of trainable tree, optimizer, step, rate and key."""

    def read(folder, step):
        import jax
        import orbax.checkpoint as ocp

        found = {}
        for item in ("train", "opt"):
            with ocp.StandardCheckpointer() as checkpointer:
                tree = checkpointer.restore(Path(folder).absolute() / "checkpoints" / str(step) / item)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                array = np.asarray(leaf)
                found[item + jax.tree_util.keystr(path)] = (str(array.dtype), array.shape, array.tobytes())
        return found

    return read


@pytest.fixture(scope="session")
def records():
    """records(folder) -> the lines of metrics.jsonl without what a clock wrote."""

    def read(folder):
        clocks = ("time", "tokens_per_second", "train_seconds")
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in clocks} for line in lines]

    return read


GRID_CONFIG = """
def get_config(arg=None):
    words = dict(part.split("=") for part in (arg or "").split(",") if part)
    rank = int(words["rank"]) if "rank" in words else None
    return {
        "experiment": "mora_uuid", "name": None, "seed": 0,
        "labels": {"method": words.get("method"), "rank": rank, "scale": words.get("scale", "toy"), "stage": "full"},
        "optimizer": {"learning_rate": 1e-3}, "train": {"steps": 100, "stop_at": 0},
        "adapter": {"method": "lora", "rank": rank} if rank else {"method": "none"},
        "task": {"name": "uuid"}, "base": {"name": "toy-llama"}, "tracking": {"wandb": "disabled"},
    }
"""

# Two stages: five trials of rates, then a full row of each argument.
GRID = """
RATES = {"method=fft": (1e-4, 3e-4, 1e-3), "method=lora,rank=8": (1e-3, 3e-3)}

def stages():
    rates = [dict(arg=arg, overrides={"optimizer.learning_rate": rate, "train.stop_at": 20})
             for arg, grid in RATES.items() for rate in grid]
    full = [dict(arg=arg, overrides={"optimizer.learning_rate": "best:rates"}) for arg in RATES]
    return [("rates", rates), ("full", full)]
"""


@pytest.fixture
def grid_files(tmp_path):
    """A folder with config.py and grid.py of seven cells."""
    (tmp_path / "config.py").write_text(GRID_CONFIG)
    (tmp_path / "grid.py").write_text(GRID)
    return tmp_path


@pytest.fixture
def place(grid_files, tmp_path, monkeypatch):
    (tmp_path / "fake_run.py").write_text(FAKE_RUN)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(engine, "RUN_PROGRAM", (sys.executable, str(tmp_path / "fake_run.py")))
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.05)
    return tmp_path


@pytest.fixture
def swept(place):
    """swept(only="fft", ...) -> (status, out, err) of what the program does with its parsed flags, in this process."""
    before = signal.getsignal(signal.SIGTERM)

    def call(**given):
        files = {name: str(place / file) for name, file in (("config", "config.py"), ("grid", "grid.py"))}
        options = SimpleNamespace(**SWEEP, **files, workdir=str(place / "runs"))
        vars(options).update(given)
        return doors.call("sweep", main=lambda: sweep.sweep_main(options))

    yield call
    signal.signal(signal.SIGTERM, before)
