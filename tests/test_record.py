"""scripts/record.py: each grid's own command, as many processes as were asked for, and one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GRIDS = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("*.py") if path.stem != "__init__")
# A stand-in for the program: it writes down what it was given, and waits where a file says that it should.
SWEEP = """
import json, os, sys, time
from pathlib import Path
names = ("CUDA_VISIBLE_DEVICES", "XLA_PYTHON_CLIENT_MEM_FRACTION")
Path(f"seen-{os.getpid()}.json").write_text(json.dumps([sys.argv[1:], *(os.environ[name] for name in names)]))
while Path("wait").exists():
    time.sleep(0.05)
print("said")
sys.exit(int("--fail" in sys.argv))
"""
# One that saves when it is asked to stop, and takes its time; a second signal would be a second line.
SAVES = """
import os, signal, sys, time
from pathlib import Path
def stop(number, _):
    print("asked", flush=True)
    asked.append(number)
asked = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
Path("ready").touch()
while not asked:
    time.sleep(0.05)
time.sleep(0.5)
print("saved", flush=True)
"""


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "scripts"))
    import record

    sys.path.remove(str(ROOT / "scripts"))
    return record


@pytest.mark.parametrize("name", GRIDS)
def test_each_grid_has_a_command_of_its_own(script, name):
    """The command in a file's docstring names the file, its config and its records, and FOLDER by that word alone."""
    program, module, sweep, *flags = script.command(name, "folder")
    assert (program, module, sweep) == ("python", "-m", "experiments.sweep")
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert (given["grid"], given["config"].partition(":")[0].rpartition("/")[0]) == (
        f"configs/sweeps/{name}.py",
        "configs",
    )
    assert given["results"]
    assert given.get("config.task.data_dir", "folder") == "folder"
    assert (ROOT / given["config"].partition(":")[0]).is_file()


def test_arguments_of_a_grid(script):
    """A docstring's command for just these arguments, otherwise its first one with them; FOLDER is --data."""
    laptop = script.command("rates_uuid:model=pico-llama", None)
    assert "--results=experiments/results/rates_uuid_laptop" in laptop
    more = script.command("rates_uuid:seeds=5", None)
    assert {"--grid=configs/sweeps/rates_uuid.py:seeds=5", "--results=experiments/results/rates_uuid"} <= {*more}
    assert script.command("pretrain_small", "/text")[3] == "--config=configs/mora_pretrain.py:data=/text"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with two grid files and the stand-in as experiments.sweep."""
    monkeypatch.chdir(tmp_path)
    for name in ("PYTHONPATH", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "__init__.py").touch()
    (tmp_path / "experiments" / "sweep.py").write_text(SWEEP)
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            f'"""Cells.\n\npython -m experiments.sweep --config=c.py \\\\\n    --grid={name}.py --results=r\n"""\n'
        )
    return tmp_path


def seen(folder):
    return sorted(json.loads(path.read_text()) for path in folder.glob("seen-*.json"))


def test_processes_divide_cards_and_memory(script, place, capsys):
    words = ["--cards=2", "--workers=2", "--workdir=w", "--", "--config.x=1"]
    assert script.main(["one.py", "two.py:a=1", *words]) == 0
    grids = ("one.py", "two.py:a=1")
    flags = [["--config=c.py", f"--grid={grid}", "--results=r", "--workdir=w", "--config.x=1"] for grid in grids]
    assert seen(place) == [[given, str(card), "0.450"] for given in flags for card in (0, 0, 1, 1)]
    logs = [f"record-{grid}-{index}.log" for grid in ("one", "two") for index in range(4)]
    assert sorted(path.name for path in (place / "w").iterdir()) == logs
    assert (place / "w" / "record-two-3.log").read_text() == "said\n"
    capsys.readouterr()
    assert script.main(["one.py", "two.py", "--", "--fail"]) == 1
    said = capsys.readouterr().out
    assert "runs/record-one-0.log: status 1" in said
    assert "two.py" not in said


def test_data_that_no_command_reads_is_refused(script, place, capsys):
    for folder in ("folder", "r", ""):  # a command has the others as parts of words
        assert script.main(["one.py", "two.py", f"--data={folder}", "--dry-run"]) == 2
        assert capsys.readouterr().err.endswith("no command of these grids (see their docstrings): one.py, two.py\n")


def test_cards_are_those_that_the_environment_names(script, place, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert script.main(["one.py", "--cards=2", "--memory=0.5"]) == 0
    assert [one[1:] for one in seen(place)] == [["3", "0.500"], ["GPU-5", "0.500"]]
    assert script.main(["one.py", "--cards=3"]) == 2
    assert "CUDA_VISIBLE_DEVICES=3,GPU-5 lists fewer" in capsys.readouterr().err


def test_memory_that_grows_in_pieces_is_said_once(script, place, monkeypatch, capsys):
    """Several processes a GPU without preallocation; the grids are trained all the same."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    for value, workers, lines in (("false", 2, 1), ("0", 2, 1), ("false", 1, 0), ("true", 2, 0), (None, 2, 0)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
        assert script.main(["one.py", "two.py", f"--workers={workers}"]) == 0
        error = capsys.readouterr().err
        assert (error.count("\n"), error.count(f"{name}={value}: ")) == (lines, lines)
    assert len(seen(place)) == 2 * (2 + 2 + 1 + 2 + 2)


def test_when_time_is_over_the_processes_are_told_to_stop(script, place, capsys):
    (place / "wait").touch()
    assert script.main(["one.py", "two.py", "--seconds=0.1", "--workers=2"]) == script.LIMIT
    said = capsys.readouterr().out
    assert said.count("status -15") == 2
    assert "two.py" not in said


@pytest.mark.parametrize(("listed", "given"), [("", [""]), (" ", [""]), ("0, 1", ["0", "1"]), ("4,,5,", ["4", "5"])])
def test_cards_in_the_environment_by_other_hands(script, place, monkeypatch, capsys, listed, given):
    """An empty list is none, as for CUDA: the CPU. Spaces and commas too many are no names."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert script.main(["one.py", f"--cards={len(given)}"]) == 0
    assert [one[1] for one in seen(place)] == given
    assert script.main(["one.py", f"--cards={len(given) + 1}"]) == 2
    assert "lists fewer" in capsys.readouterr().err


def test_commands_are_found_among_other_lines(script, place):
    """Prose that begins like a command, a comment with an apostrophe, spaces after a backslash, a quoted value."""
    (place / "odd.py").write_text(
        'r"""Cells.\n\npython -m experiments.sweep trains Llama\'s layers.\n\n'
        "    python -m experiments.sweep --config='my c.py' \\ \n        --grid=odd.py  # an hour's work\n\"\"\"\n"
    )
    assert script.command("odd.py", None)[3:] == ["--config=my c.py", "--grid=odd.py"]


def test_no_process_stays_behind_one_that_cannot_start(script, place, monkeypatch):
    (place / "wait").touch()
    (place / "w" / "record-one-1.log").mkdir(parents=True)
    started, start = [], script._start
    monkeypatch.setattr(script, "_start", lambda *given: started.append(start(*given)) or started[-1])
    with pytest.raises(IsADirectoryError):
        script.main(["one.py", "--workers=2", "--workdir=w"])
    assert [one.returncode for one in started] == [-signal.SIGTERM]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda one: str(one)
)
def test_a_signal_is_passed_on_once_and_the_processes_end_first(place, number, status):
    """Where the terminal sends it to all processes, too."""
    (place / "experiments" / "sweep.py").write_text(SAVES)
    words = [sys.executable, str(ROOT / "scripts" / "record.py"), "one.py"]
    one = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hear)
    while not (place / "ready").exists() and one.poll() is None:
        time.sleep(0.05)
    os.killpg(one.pid, number)
    one.communicate()
    assert one.returncode == status
    assert (place / "runs" / "record-one-0.log").read_text() == "asked\nsaved\n"


def hear():
    """In a shell's background signals may be ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_bad_input_is_one_line(script, place, capsys):
    (place / "bare.py").write_text('"""Cells."""\n')
    (place / "cut.py").write_text('"""Cells.\n')
    (place / "nul.py").write_bytes(b'"""\0"""\n')
    (place / "bytes.py").write_bytes(b'"""\xff"""\n')
    (place / "quote.py").write_text('"""python -m experiments.sweep --config=c --grid=\'quote.py\n"""\n')
    for words, said in (
        (["cut.py"], "cut.py cannot be read as Python: unterminated"),
        (["nul.py"], "nul.py cannot be read as Python: "),
        (["bytes.py"], "bytes.py cannot be read as Python: "),
        (["quote.py"], "the docstring of quote.py has no line"),
        (["one.py", "--seconds=0"], "--seconds=0 is no time above 0"),
        (["one.py", "--seconds=-1"], "--seconds=-1 is no time above 0"),
        (["one.py", "--seconds=nan"], "--seconds=nan is no time above 0"),
        (["mnli_lowdat"], "unknown grid 'mnli_lowdat'; did you mean mnli_lowdata"),
        (["bare.py"], "the docstring of bare.py has no line"),
        (["e2e_ranks"], "e2e_ranks reads data: give --data=FOLDER"),
        (["one.py", "--workers=0"], "--cards and --workers are at least 1"),
        (["one.py", "--memory=1.5"], "--memory is more than 0 and at most 1"),
    ):
        assert script.main(words) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert said in error
