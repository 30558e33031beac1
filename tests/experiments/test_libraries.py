"""A missing library is reported before the weights are read and ends a sweep; one for figures alone fails no run."""

import sys

import pytest
from sweeps import behave, make, ran
from toy_config import TOY

from experiments.config import faults
from experiments.config.faults import Faults
from experiments.tables import figures
from lowrank_jax.core import libraries
from lowrank_jax.core.errors import UserError
from lowrank_jax.data import pipeline
from lowrank_jax.metrics import classification

WORDS = ("--config=configs/mora_uuid.py:scale=laptop", *(f"--config.{key}={value}" for key, value in TOY.items()))
SHORT = ("--config.train.steps=2", "--config.train.eval_steps=(1,)")


@pytest.fixture
def without(monkeypatch):
    """without(name, ...): these modules cannot be imported, nor found."""

    def hide(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize(
    ("wanted", "machine", "words"),
    [
        (pipeline.GRAIN, True, "'grain>=0.2.18'"),
        (classification.SKLEARN, False, "'scikit-learn>=1.6'"),
        (figures.MATPLOTLIB, False, "matplotlib"),
    ],
)
def test_a_missing_library_is_one_line_with_its_remedy(without, wanted, machine, words):
    """A shell reads > as a redirection; a name alone needs no quotes."""
    module, purpose, install = wanted
    libraries.check(*wanted)
    assert libraries.load(*wanted) is sys.modules[module]
    without(module, module.partition(".")[0])
    for ask in (libraries.check, libraries.load):
        with pytest.raises(UserError) as error:
            ask(*wanted)
        assert str(error.value).startswith(f"{purpose} {install.partition('>')[0]} (")
        assert str(error.value).endswith(f"; pip install {words}")
        assert error.value.machine is machine


def test_a_run_without_grain_ends_before_it_compiles_or_leaves_a_folder(without, program, tmp_path, monkeypatch):
    from experiments.session.experiment import Experiment

    def forbidden(*_, **__):
        raise AssertionError("this takes long")

    monkeypatch.setattr(Experiment, "compile", forbidden)
    monkeypatch.setattr(Experiment, "load", forbidden)
    without("grain")
    ended = program("run", *WORDS, *SHORT, f"--workdir={tmp_path}", "--name=bare")
    assert ended.status == 2
    assert ended.err.strip().splitlines()[-1].startswith("error: the input pipeline needs grain (")
    assert not (tmp_path / "bare").exists()


def test_a_run_without_matplotlib_has_a_record_and_no_figure(curves, without, program, tmp_path):
    without("matplotlib")
    ended = program("run", *WORDS, *SHORT, f"--workdir={tmp_path}", "--name=bare")
    assert ended.status == 0
    assert "bare: no curves.png; figures need matplotlib (" in ended.out
    assert "bare: finished" in ended.out
    assert (tmp_path / "bare" / "result.json").exists()
    assert not (tmp_path / "bare" / "curves.png").exists()


def test_scikit_learn_is_looked_for_when_the_task_is_built(without, tmp_path):
    from lowrank_jax.tasks.glue.task import GlueConfig, GlueTask
    from lowrank_jax.tasks.mnli import MnliConfig, MnliTask
    from lowrank_jax.text.tokenizers import ByteTokenizer

    without("sklearn", "sklearn.metrics")
    for build, config in (
        (GlueTask, GlueConfig(data_dir=str(tmp_path))),
        (MnliTask, MnliConfig(data_dir=str(tmp_path))),
    ):
        with pytest.raises(UserError, match="scores of classes need scikit-learn"):
            build(config, ByteTokenizer())


def test_an_error_of_the_machine_holds_for_all_cells(tmp_path, monkeypatch, without):
    file = tmp_path / "fault.json"
    monkeypatch.setenv(faults.VARIABLE, str(file))
    without("grain")
    with pytest.raises(UserError) as missing:
        pipeline.check_library()
    faults.tell(missing.value)
    found = Faults(file)
    assert found.shared_by({"base": 1}) == ""
    assert found.take("a", {"base": 1}) is None  # no other machine is told
    assert found.shared_by({"base": 2, "task": 3}) == "a"


def test_a_sweep_tries_one_cell_where_every_run_has_the_error(place):
    behave(place, **{"": "machine"})
    _, sweep, said = make(place)
    cells = [cell for cell in sweep.grid.select() if not cell.trials]
    states = sweep.run(cells)
    assert len(ran(place)) == 1
    first, *others = states.values()
    assert first == "failed: exit status 2"
    assert others
    assert set(others) == {f"failed: as {cells[0].name}"}
    assert sum("not run; it would end with the error of" in line for line in said) == len(others)


@pytest.mark.parametrize("error", ["ValueError('numpy.dtype size changed')", "OSError('libx.so is lost')", "nothing"])
def test_a_broken_library_is_one_line_too(error, tmp_path, monkeypatch):
    """Another version of numpy is a ValueError at the import, a lost part of it an OSError or a NameError."""
    (tmp_path / "brokenlib.py").write_text(error if error == "nothing" else f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"it needs broken \(.+\); pip install 'broken>=2'$"):
        libraries.load("brokenlib", "it needs", "broken>=2")


def test_a_folder_of_the_same_name_is_no_library(tmp_path, monkeypatch):
    (tmp_path / "folderlib" / "data").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    for ask in (libraries.check, libraries.load):
        with pytest.raises(UserError, match="it needs folder"):
            ask("folderlib", "it needs", "folder>=2")


def test_a_part_of_matplotlib_that_is_broken_leaves_a_run_whole(monkeypatch):
    import matplotlib

    from experiments.tables import figures

    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(UserError, match="figures need matplotlib"):
        figures.pyplot()
