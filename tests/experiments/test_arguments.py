"""Errors and remarks name the arguments of the config file that a user gave, and say what small data ask for."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from configs.common import Asked
from experiments.cli import complete_file
from experiments.config import arguments, files
from experiments.session import fit
from lowrank_jax.core.errors import UserError
from lowrank_jax.train import memory

ROOT = Path(__file__).parents[2]
FINETUNE = "configs/finetune.py"
NAMING = [path.name for path in sorted((ROOT / "configs").glob("*.py")) if arguments.TABLE in path.read_text()]
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
    monkeypatch.setattr("experiments.session.experiment.Experiment.compile", lambda self, ahead=False: None)
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
    assert "only 2 steps, in which little may be learned: 3 epochs of 12 rows in batches of 16, at a rate of 0.003" in (
        ended.out
    )
    assert "raise epochs= (--config.train.epochs), lower batch= (--config.train.batch_size), or raise rate= (" in (
        ended.out
    )


def test_steps_that_were_asked_for_are_not_few(talks):
    config = SimpleNamespace(
        task=SimpleNamespace(packed=False), train=SimpleNamespace(epochs=0, steps=4, batch_size=16), optimizer=None
    )
    assert fit.remarks(config, SimpleNamespace(train_source=lambda: [0] * 3), config) == []


def test_a_sweep_says_an_error_of_its_config_once(talks, tmp_path, capfd, monkeypatch):
    """Of two cells that differ in rank the second is not run: it has the same base and data."""
    from experiments.sweeps.engine import Sweep
    from experiments.sweeps.grid import Grid

    grid = tmp_path / "grid.py"
    grid.write_text("def cells():\n    return [dict(arg=f'rank={rank}') for rank in (2, 4)]\n")
    made, said, programs = Grid(f"{FINETUNE}:data={talks}", str(grid), []), [], []

    def wait(self, command, held, environment=None):
        """What `experiments.run` does, in this process."""
        from experiments.config.schema import unpack_run
        from experiments.session.build import build

        programs.append(command)
        cell = next(cell for cell in made.cells.values() if f"--name={cell.name}" in command)
        files.config_maker(FINETUNE)
        run = arguments.in_its_words(lambda: build(unpack_run(cell.plain), devices=jax.devices()[:1]))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.faults.environment().items():
                patch.setenv(name, value)
            with pytest.raises(UserError) as error:
                run()
        return error.value.status

    monkeypatch.setattr(Sweep, "wait", wait)
    sweep = Sweep(made, str(tmp_path / "runs"), say=said.append)
    states = sweep.run(list(made.cells.values()))
    first, second = states
    assert len(programs) == 1
    assert states[first] == "failed: exit status 2"
    assert states[second] == f"failed: as {first}"
    assert said[-1] == f"[2/2] {second}: not run; it would end with the error of {first}"
    assert not [*(tmp_path / "runs").glob("fault-*")]
    assert sweep.faults.shared_by({**made.cells[second].plain, "task": {}}) == ""
