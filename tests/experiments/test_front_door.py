"""What programs do with what they are given: config files, a run's config.json, flags, pipes and folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from endings import one_line
from fakes import SWEEP

from lowrank_jax.core.errors import PIPE_CLOSED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shapes_alone(monkeypatch):
    """shapes_alone(): from here on experiments.plan does not compile, which takes seconds."""

    def begin():
        monkeypatch.setattr("experiments.session.experiment.Experiment.compile", lambda self, **_: None)
        monkeypatch.setattr("lowrank_jax.train.compiled.memory.check_fits", lambda compiled: None)

    return begin


# ---- config files ----

DICT = "{'task': {'name': 'uuid'}, 'base': {'name': 'toy-llama', 'random_init': True}}"
SOURCES = {
    "does not parse": ("def get_config(a:\n", ["line 1: SyntaxError"]),
    "raises on loading": ("x = 1\ny = x / 0\n", ["line 2: ZeroDivisionError: division by zero"]),
    "raises when called": ("def get_config(a=None):\n    return {}['a']\n", ["line 2: KeyError: 'a'"]),
    "lacks an import": ("import no_such_module\n", ["line 1: ModuleNotFoundError", "no_such_module"]),
    "ends the program": ("raise SystemExit(3)\n", ["line 1: SystemExit"]),
    "calls itself": ("def get_config(a=None):\n    return get_config(a)\n", ["line 2: RecursionError"]),
    "has no get_config": ("x = 1\n", ["defines no get_config()"]),
    "get_config is a number": ("get_config = 1\n", ["defines no get_config()"]),
    "returns a number": ("def get_config(a=None):\n    return 5\n", ["returned 5, a int"]),
    "returns nothing": ("def get_config(a=None):\n    pass\n", ["returned None"]),
    "keys that are no strings": ("def get_config(a=None):\n    return {1: 2}\n", ["the key 1; keys must be strings"]),
    "a number for a section": (
        "def get_config(a=None):\n    return {'task': 5}\n",
        ["config.task=5 is not a section"],
    ),
    "a list for a name": (
        "def get_config(a=None):\n    return {'task': {'name': [1]}}\n",
        ["config.task.name=[1]"],
    ),
    "a number without end": (
        f"def get_config(a=None):\n    return {DICT} | {{'seed': 10**5000}}\n",
        ["config.seed is"],
    ),
    "a null byte in a name": (
        f"def get_config(a=None):\n    return {DICT} | {{'name': 'a\\0b'}}\n",
        ["config.name='a\\x00b'", "null byte"],
    ),
    "half a surrogate": (f"def get_config(a=None):\n    return {DICT} | {{'name': '\\ud800'}}\n", ["surrogate"]),
    "a function": (f"def get_config(a=None):\n    return {DICT} | {{'seed': print}}\n", ["cannot be written as JSON"]),
    "not UTF-8": (b"x = '\xff'\n", ["SyntaxError"]),
    "null bytes": (b"x = 1\0\n", ["null bytes"]),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_config_file_that_cannot_be_used(program, tmp_path, case):
    source, parts = SOURCES[case]
    file = tmp_path / "config.py"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    one_line(program("plan", f"--config={file}"), *parts)


def test_a_dict_is_as_good_as_a_config_dict(program, shapes_alone, tmp_path):
    shapes_alone()
    file = tmp_path / "config.py"
    file.write_text(f"def get_config():\n    return {DICT}\n")
    ended = program("plan", f"--config={file}", "--config.adapter.rank=2", "--seq_len=8")
    assert ended.status == 0, ended.err
    assert "lora: " in ended.out
    one_line(program("plan", f"--config={file}:rank=2"), "takes no argument", "rank=2")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def cells():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        ("def cells():\n    return [5]\n", "a cell is dict"),
        ("def cells():\n    return 5\n", "TypeError"),
        ("def stages():\n    return [('a',)]\n", "stages() must return"),
        ("def cells():\n    return [dict(arg=5)]\n", "arg is a string"),
        ("def cells():\n    return [dict(overrides=[1])]\n", "overrides are values by dotted path"),
        ("cells = 5\n", "defines neither stages() nor cells()"),
    ],
)
def test_a_grid_file_that_cannot_be_used(tmp_path, source, words):
    from experiments.sweeps.grid import Grid
    from lowrank_jax.core.errors import UserError

    (tmp_path / "grid.py").write_text(source)
    with pytest.raises(UserError) as error:
        Grid("configs/mora_uuid.py", str(tmp_path / "grid.py"))
    assert words in str(error.value)
    assert str(tmp_path / "grid.py") in str(error.value) or "a cell" in str(error.value)


def test_a_suite_file_that_cannot_be_used(tmp_path):
    from experiments.bench.suites.rows import load_suite
    from lowrank_jax.core.errors import UserError

    for source, words in (("ROWS = (\n", "SyntaxError"), ("x = 1\n", "defines no ROWS"), (
        "ROWS, PEER, PEER_NAME = [dict(nam='a')], None, ''\n", "TypeError")):  # fmt: skip
        (tmp_path / "suite.py").write_text(source)
        with pytest.raises(UserError, match=words):
            load_suite(str(tmp_path / "suite.py"))


# ---- a run's config.json ----


def test_a_run_s_config_is_a_config(program, straight, shapes_alone, tmp_path):
    """The same run under the same name, the same content hash, and overrides on top."""
    from experiments.cli import complete_file
    from experiments.config.labels import with_labels
    from experiments.config.plain import content_hash, to_plain

    folder = straight().folder
    file = folder / "config.json"
    written = json.loads(file.read_text())
    plain = with_labels(to_plain(complete_file(str(file))))
    assert plain == {key: value for key, value in written.items() if key not in ("data", "place")}
    assert content_hash(plain) == content_hash(written)
    (file.parent / "more.json").write_text(json.dumps(written | {"data": {"task.path.0": {"sha256": "1"}}}))
    assert with_labels(to_plain(complete_file(str(folder / "more.json")))) == plain
    again = program("run", f"--config={file}", f"--workdir={tmp_path}", "--name=run")
    assert again.status == 0, again.err
    assert "finished already" in again.out
    changes = ["--config.adapter.rank=2", "--config.adapter.targets=('query',)"]
    one_line(
        program("run", f"--config={file}", f"--workdir={tmp_path}", "--name=run", *changes), "adapter.rank: 4 -> 2"
    )
    shapes_alone()
    planned = program("plan", f"--config={file}", *changes)
    assert planned.status == 0, planned.err
    assert "layers/attention/query  2" in planned.out
    one_line(program("run", f"--config={file}:rank=2"), "takes no argument 'rank=2'")
    one_line(program("run", f"--config={folder}"), f"it is a folder; give {file}")
    one_line(program("run", f"--config={folder / 'result.json'}"), "is no config of a run: it has no section task")


def test_every_program_that_takes_a_config_takes_a_run_s(program, straight, tmp_path):
    from experiments.sweeps.engine import Sweep
    from experiments.sweeps.grid import Grid

    file = straight().folder / "config.json"
    (tmp_path / "grid.py").write_text(
        "def cells():\n    return [dict(overrides={'seed': 1}), dict(overrides={'seed': 2})]\n"
    )
    grid = Grid(str(file), str(tmp_path / "grid.py"))
    assert len(grid.cells) == 2
    assert f"--config={file}" in Sweep(grid, str(tmp_path)).command(next(iter(grid.cells.values())))
    # A random base differs by seed, which comes after the config was read and unpacked.
    one_line(program("trials", f"--config={file}", "--seeds=0,1", f"--workdir={tmp_path}"), "cannot share a program")


@pytest.mark.parametrize(
    "text", ["[]", "5", "null", "{}", '{"task": 5}', '{"task": {}}', "9" * 5000, "[" * 99_999, "NaN"]
)
def test_json_that_is_not_a_run_s_config(program, tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    one_line(program("run", f"--config={file}"))
    one_line(program("trials", f"--cells={file}"))


# ---- flags ----


def test_every_spelling_of_the_config_flag(program, shapes_alone):
    shapes_alone()
    name = "configs/mora_uuid.py:method=lora"
    more = ["--config.base.name=toy-llama", "--config.base.random_init=true", "--seq_len=8"]
    texts = {
        program("plan", *given, *more).out
        for given in (["--config", name], ["-config", name], [f"-config={name}"], [f"--config={name}"])
    }
    assert len(texts) == 1
    assert "lora: " in next(iter(texts))
    for given in (["--config"], ["--config="], ["-config"], ["--config", "--seq_len=8"]):
        one_line(program("plan", *given), "has no value; name a config file")


def test_help_is_a_success(program):
    ended = program("run", "--help")
    assert ended.status == 0
    assert ended.out
    one_line(program("run", "--helf"), "helf")


def test_a_misspelt_flag_or_file_gets_the_close_name(program):
    from experiments.bench.suites.rows import load_suite
    from experiments.cli import complete_file
    from experiments.sweeps.grid import Grid
    from lowrank_jax.core.errors import UserError

    one_line(program("run", "--confg=configs/finetune.py"), "'confg'. Did you mean: config ?")
    one_line(program("trials", "--confg.train.steps=3"), "Did you mean: config.train.steps ?")
    one_line(program("plan", "--config=configs/fintune.py"), "no config file", "; did you mean configs/finetune.py?")
    for read, name, meant in (
        (complete_file, "config/mora_uid.py", ROOT / "configs/mora_uuid.py"),
        (complete_file, "configs/lora_glue", "configs/lora_glue.py"),
        (lambda name: Grid("configs/mora_uuid.py", name), "configs/sweeps/rnks.py", "configs/sweeps/ranks.py"),
        (load_suite, "configs/suites/h10.py", "configs/suites/h100.py"),
    ):
        with pytest.raises(UserError) as error:
            read(name)
        assert str(error.value).endswith(f"; did you mean {meant}?")
    with pytest.raises(UserError, match=r"no config file zzzzzzzz\.py .*; give one such as .*mora_uuid\.py"):
        complete_file("zzzzzzzz.py")


def test_a_config_file_of_the_checkout_is_found_from_elsewhere(program, tmp_path, monkeypatch):
    program("run", "--help")  # changes into the checkout
    monkeypatch.setattr("os.getcwd", lambda: str(tmp_path))
    from experiments.cli import load_file
    from lowrank_jax.core.errors import UserError

    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(UserError) as error:
            load_file("configs/mora_uuid.py")
    place = ROOT / "configs" / "mora_uuid.py"
    assert str(error.value) == f"no config file configs/mora_uuid.py in {tmp_path}; give its whole path: {place}"


@pytest.mark.parametrize("seed", ["9" * 25, "9" * 400, "9" * 5000, str(2**64), str(2**32), "-1", "1e3", "1.5"])
def test_seeds_beyond_reason(program, tmp_path, seed):
    given = ["--config=configs/mora_uuid.py", f"--workdir={tmp_path}"]
    one_line(program("run", *given, f"--config.seed={seed}"), "seed")
    one_line(program("trials", *given, f"--seeds=0,{seed}"), "--seeds=")
    one_line(program("trials", *given, f"--seeds=0:{seed}"), "--seeds=")


def test_whole_numbers_beyond_reason_in_every_key(program):
    from experiments.cli import complete_file
    from experiments.config.schema import unpack_run
    from experiments.config.plain import to_plain  # isort: skip
    from lowrank_jax.core.errors import UserError

    plain = to_plain(complete_file("configs/mora_uuid.py"))
    tried = 0
    for section, values in plain.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            if type(value) is int and section != "labels":
                tried += 1
                for wrong in (2**64, 10**30, 10**400):
                    with pytest.raises(UserError, match=rf"config\.{section}\.{key} "):
                        unpack_run(to_plain({**plain, section: {**values, key: wrong}}))
    assert tried > 15


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "experiments.tables", "ledger"],
        ["-m", "experiments.run", "--help"],
        ["scripts/fetch_weights.py", "--list"],
    ],
)
def test_a_reader_that_has_gone_ends_a_program_quietly(one_device, command):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=one_device,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == PIPE_CLOSED
    assert not [line for line in done.stderr.splitlines() if not line.startswith("reading the records at")]  # if slow


# ---- other files that a flag names ----


def test_places_that_cannot_be_written_or_read(program, tmp_path):
    from types import SimpleNamespace

    from experiments.records.lines import Recorded
    from experiments.sweep import sweep_main
    from experiments.tables.uuid.figure import draw
    from lowrank_jax.core.errors import UserError, front_door

    (tmp_path / "grid.py").write_text("def cells():\n    return [dict(overrides={'seed': 1})]\n")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    given = dict(config="configs/mora_uuid.py", grid=str(tmp_path / "grid.py"), workdir=str(tmp_path))
    given |= dict(dry_run=True, wandb_sweep=str(tmp_path / "none" / "sweep.json"))
    with pytest.raises(UserError, match=r"cannot write --wandb_sweep=.*No such file"):
        sweep_main(SimpleNamespace(**SWEEP | given))
    for name in ("pipe", "pipe.jsonl"):
        with pytest.raises(UserError, match="is a pipe"):
            Recorded(tmp_path / name)
    with pytest.raises(SystemExit) as ended, front_door():
        draw(None, tmp_path / "file")
    assert ended.value.code == 2
    (tmp_path / "a.pb").write_bytes(b"no profile")
    one_line(program("kernels", f"--profile={tmp_path / 'a.pb'}"), "a.pb is no profile")
