"""Errors and remarks name the arguments of the config file that a user gave, and say what small data ask for."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from configs.common import Asked
from experiments.cli import complete_file
from experiments.config import arguments, faults, files
from experiments.session import fit
from lowrank_jax.core.errors import UserError
from lowrank_jax.tasks.base import FEWEST
from lowrank_jax.train.compiled import memory
from lowrank_jax.train.rhythm import FITTED_STEPS

ROOT = Path(__file__).parents[2]
FINETUNE = "configs/finetune.py"
NAMING = [
    path.name for path in sorted((ROOT / "configs").glob("*.py")) if f"\n{arguments.TABLE} = " in path.read_text()
]
ASKED = {"role": "user", "content": "2 + 2?"}
SAID = {"role": "assistant", "content": "It is 4."}
# Of arguments that are read only beside others; and a value for each kind of argument.
BESIDE = {"chat": "data=a.jsonl", "rank": "method=lora"}
VALUES = {
    "true, false": "true",
    "an integer": "7",
    "a whole number above 0": "7",
    "a number": "0.5",
    "a word": "zephyr",
}


@pytest.fixture
def talks(tmp_path):
    """A file of 12 conversations."""
    file = tmp_path / "talks.jsonl"
    file.write_text(12 * (json.dumps({"messages": [ASKED, SAID]}) + "\n"))
    return file


@pytest.mark.parametrize("name", NAMING)
def test_an_argument_sets_the_key_that_it_stands_for(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = f"configs/{name}"
    with pytest.raises(Asked) as asked:
        complete_file(f"{path}:?")
    specs = {key: (str(default), words) for key, default, words in asked.value.arguments}
    for key, word in getattr(files.load_module(path), arguments.TABLE).items():
        default, words = specs[word]
        value = VALUES.get(words) or next(one for one in words.split(", ") if one != default)
        beside = BESIDE.get(word, "")
        beside = beside if beside.partition("=")[0] in specs else ""
        section, _, last = key.partition(".")
        plain, changed = (complete_file(f"{path}:{text.strip(',')}") for text in (beside, f"{beside},{word}={value}"))
        assert plain[section].get(last) != changed[section].get(last), (key, word)


def test_a_key_is_named_by_its_argument(monkeypatch):
    monkeypatch.chdir(ROOT)
    files.config_maker(FINETUNE)
    for text, wanted in (
        ("task.path is empty", "data= (--config.task.path) is empty"),
        ("lower train.batch_size, or", "lower batch= (--config.train.batch_size), or"),
        ("set task.packed=False.", "set packed=False (--config.task.packed)."),
        ("task.chat_template=zephyr is", "chat=zephyr (--config.task.chat_template) is"),
        ("--config.task.path=a, mytask.path, task.paths, task.path.x", None),
    ):
        assert arguments.spoken(text) == (wanted or text)
    files.config_maker("configs/bench.py")
    assert arguments.spoken("task.path is empty") == "task.path is empty"


def test_the_readmes_commands_say_what_is_missing(program, talks):
    """No data, and conversations for a base without a chat template: one line, in the words of the command."""
    for words, wanted in (
        ("", "error: data= (--config.task.path) is empty; give a .jsonl, "),
        (f":data={talks}", "has no chat template; set chat= (--config.task.chat_template) to one of chatml, "),
        (f":data={talks},chat=zephir", "unknown chat= (--config.task.chat_template) 'zephir'; did you mean zephyr?"),
    ):
        ended = program("plan", f"--config={FINETUNE}{words}")
        assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
        assert wanted in ended.err


def test_a_run_says_that_its_data_are_few(program, talks, monkeypatch):
    """Before it trains; a batch of more rows than there are, and few steps. A step too large names its sizes."""
    monkeypatch.setattr("experiments.session.experiment.Experiment.compile", lambda *_, **__: None)
    words = f"--config={FINETUNE}:data={talks},chat=zephyr,packed"
    report = memory.MemoryReport(2**50, 0, 0, 0, 0)
    monkeypatch.setattr(memory, "memory_report", lambda compiled: report)
    ended = program("plan", words, "--config.task.seq_len=256")
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert "here batch= (--config.train.batch_size) is 16 and task.seq_len is 256, up to which packed rows" in ended.err
    assert "with packed=False (--config.task.packed) a row has at most 41 tokens" in ended.err
    ended = program("plan", words)
    assert ended.err.endswith("here batch= (--config.train.batch_size) is 16 and task.seq_len is 48\n")
    assert "task.seq_len=48 (the longest row has 41 tokens, all together 492)" in ended.out
    assert "batch=16 (--config.train.batch_size) is more than the 12 packed rows of the data" in ended.out
    assert (
        "only 2 steps, in which little may be learned: 3 epochs of 12 packed rows in batches of 16, at a rate of 0.003"
        in (ended.out)
    )
    assert "raise epochs= (--config.train.epochs), lower batch= (--config.train.batch_size), or raise rate= (" in (
        ended.out
    )
    (epochs,) = re.findall(rf"; epochs=(\d+) \(--config.train.epochs\) makes {FITTED_STEPS} steps\n", ended.out)
    for fewer in (0, 1):
        made = program("plan", f"{words},epochs={int(epochs) - fewer}").out
        assert ("little may be learned" in made) == bool(fewer), made


def test_the_pages_say_what_is_few():
    page = (ROOT / "docs" / "data.md").read_text()
    assert f"fewer than {FITTED_STEPS} steps" in page
    assert f"(a run of fewer than {FITTED_STEPS} steps says" in " ".join((ROOT / "README.md").read_text().split())
    assert f"makes {FEWEST} examples" in page
    made = complete_file(f"{FINETUNE}:base=folder")
    defaults = f"epochs={made.train.epochs},batch={made.train.batch_size},rate=3e-4"
    assert defaults in (ROOT / "README.md").read_text()
    assert made.optimizer.learning_rate == 3e-4


def test_steps_that_were_asked_for_are_not_few(talks):
    config = SimpleNamespace(
        task=SimpleNamespace(packed=False), train=SimpleNamespace(epochs=0, steps=4, batch_size=16), optimizer=None
    )
    assert fit.remarks(config, SimpleNamespace(train_source=lambda: [0] * 3), config) == []


@pytest.mark.parametrize("together", [1, 2])
def test_a_sweep_says_an_error_of_its_config_once(talks, tmp_path, monkeypatch, together):
    """Of cells that differ in rank and method the first alone, or its group, is run: all have the same base and data.

    Its program reads what `experiments.run` and `experiments.trials` read, in this process.
    """
    from experiments.config.schema import unpack_run
    from experiments.session.build import build
    from experiments.sweeps import engine
    from experiments.sweeps.cells_file import read_cells
    from experiments.sweeps.grid import Grid

    grid = tmp_path / "grid.py"
    args = [f"method={method},rank={rank}" for method in ("lora", "mora") for rank in (2, 4)]
    grid.write_text(f"def cells():\n    return [dict(arg=arg) for arg in {args}]\n")
    made, said, errors = Grid(f"{FINETUNE}:data={talks}", str(grid), []), [], []

    def program(command, env, **_):
        cells = [word.partition("=")[2] for word in command if word.startswith("--cells=")]
        arguments.take_names(None)
        if cells:
            plain = read_cells(cells[0])[0][1]
        else:
            plain = next(cell.plain for cell in made.cells.values() if f"--name={cell.name}" in command)
            files.config_maker(FINETUNE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(faults.VARIABLE, env[faults.VARIABLE])
            with pytest.raises(UserError) as error:
                arguments.in_its_words(lambda: build(unpack_run(plain), devices=jax.devices()[:1]))()
        errors.append(str(error.value))
        return SimpleNamespace(wait=lambda *_: error.value.status)

    monkeypatch.setattr(engine.subprocess, "Popen", program)
    sweep = engine.Sweep(made, str(tmp_path / "runs"), say=said.append, together=together)
    states = sweep.run(list(made.cells.values()))
    first, second, *others = states
    assert len(errors) == 1
    assert "has no chat template; set chat= (--config.task.chat_template) to one of" in errors[0]
    assert states[first] == "failed: exit status 2"
    assert states[second] == ("failed: exit status 2" if together == 2 else f"failed: as {first}")
    assert [states[name] for name in others] == [f"failed: as {first}"] * 2
    assert said[-1] == f"[4/4] {others[-1]}: not run; it would end with the error of {first}"
    assert not [*(tmp_path / "runs").glob("fault-*")]
    assert sweep.faults.shared_by({**made.cells[second].plain, "task": {}}) == ""
