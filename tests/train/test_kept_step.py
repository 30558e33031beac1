"""Compiled steps that are kept: read back they do what they did, and one that may be another program is not read."""

import os
import threading
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench.training.work import random_batch
from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.session.experiment import COMPILING
from lowrank_jax.train.compiled import kept_step as kept
from lowrank_jax.train.compiled.memory import memory_report

ROOT = Path(__file__).parents[2]
ARGUMENT = "shape=toy-llama,rank=2,batch=8,seq=8,dtype=float32,remat=projections,fused=True"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where steps are kept in this test, on the CPU too."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(kept, "_folder", lambda: tmp_path / "steps")
    return tmp_path / "steps"


def config_of(**changes):
    config = complete_file(f"configs/bench.py:{ARGUMENT}")
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return unpack_run(to_plain(config))


def compiled(program):
    """The program's step, once it is kept."""
    found = program.compile(ahead=True)
    for thread in threading.enumerate():
        if thread.name == "kept_step":
            thread.join()
    return found


def ran(program, step):
    """(what two steps return, whether each leaf of the first state was donated, the shardings of the results)."""
    state, frozen, _ = program.load()
    given = jax.tree.leaves(state)
    batch = program.place(random_batch(program))
    for _ in range(2):
        state, metrics = step(state, frozen, batch)
    result = {"state": state, "metrics": metrics}
    return result, [leaf.is_deleted() for leaf in given], jax.tree.map(lambda leaf: leaf.sharding, result)


def test_a_second_start_traces_nothing_and_does_the_same(folder, two_devices, monkeypatch, capsys):
    first, second = (build(config_of(mesh__fsdp=2, mesh__data=1), seq_len=8) for _ in range(2))
    made = compiled(first)
    (path,) = folder.iterdir()
    monkeypatch.setattr(second, "step", types.SimpleNamespace(lower=None))  # which would trace
    read = compiled(second)
    assert memory_report(read) == memory_report(made)
    (ours, donated, places), (theirs, their_donated, their_places) = ran(second, read), ran(first, made)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    assert places == their_places
    assert donated == their_donated
    assert any(donated)
    assert any(not place.is_fully_replicated for place in jax.tree.leaves(places))

    capsys.readouterr()
    content = path.read_bytes()
    for damage in (content[:-100], content[:-9] + b"x" + content[-8:], b"foreign\n", b"{}\nforeign", b""):
        path.write_bytes(damage)
        with pytest.raises(TypeError):  # it would be traced
            second.compile(ahead=True)
        line, compiling = capsys.readouterr().out.splitlines()
        assert compiling == COMPILING
        assert f"{path} is damaged or foreign (" in line
    path.write_bytes(content)
    second.compile(ahead=True)
    assert capsys.readouterr().out == ""


def test_what_the_step_depends_on_is_in_its_name(monkeypatch, tmp_path):
    """Whatever changes the program changes the name; what a run is called, its rate and its seed do not."""
    monkeypatch.chdir(ROOT)

    def name(sources=(), **changes):
        one = build(config_of(**changes), seq_len=8)
        given = (one.abstract_state, one.abstract_frozen, one.abstract_batch)
        return kept.describe(given, one.identity, sources, list(one.mesh.devices.flat))

    same = name()
    assert name() == name(name="another", labels={"of": "the run"}, tracking={"wandb": "offline"}) == same
    assert name(seed=5, optimizer__learning_rate=0.5) == same  # tests/experiments/test_shared_programs.py: one program
    changes = (
        dict(base__remat="full"), dict(optimizer__weight_decay=0.5), dict(optimizer__clip_norm=1.0),
        dict(schedule__kind="cosine"), dict(train__batch_size=16), dict(train__chunk_tokens=8), dict(train__steps=77),
        dict(adapter__rank=3), dict(adapter__alpha=3.0), dict(adapter__dropout=0.1), dict(base__dtype="bfloat16"),
        dict(mesh__data=4, mesh__fsdp=2),
    )  # fmt: skip
    assert len({same, *(name(**change) for change in changes)}) == 1 + len(changes)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    flagged = name()
    with jax.default_matmul_precision("highest"):
        assert len({same, flagged, name()}) == 3

    for number, (path, text) in enumerate((("a.py", "x = 1"), ("a.py", "x = 2"), ("b/c.py", "x = 1"), ("d.py", ""))):
        copy = tmp_path / str(number) / path
        copy.parent.mkdir(parents=True)
        copy.write_text(text)
    assert len({kept.source_digest(tmp_path / str(number)) for number in range(4)}) == 4
    package = kept.source_digest(ROOT / "lowrank_jax")
    assert package in kept.describe((jax.numpy.zeros(1),), {}, ("lowrank_jax",), jax.devices())


def test_where_steps_are_kept(monkeypatch, tmp_path, capsys):
    """Beside jax's own cache, on GPUs and TPUs; what cannot be kept is said in a line; the newest files stay."""
    assert jax.config.values["jax_compilation_cache_dir"]
    assert kept._folder() is None
    monkeypatch.setattr(kept, "PLATFORMS", ("cpu",))
    assert kept._folder() == Path(jax.config.values["jax_compilation_cache_dir"]) / kept.FOLDER
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert kept._folder() is None

    program = jax.jit(lambda x: x + 1).lower(1.0).compile()
    kept._keep(program, tmp_path / f"x{kept.ENDING}", "", (1.0,))
    assert "the compiled step is not kept (" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
    for number in range(kept.MOST + 2):
        (tmp_path / f"{number}{kept.ENDING}").touch()
    for name in ("killed", "writing"):
        (tmp_path / f"{kept.PART}{name}").mkdir()
    os.utime(tmp_path / f"{kept.PART}killed", (0, 0))
    os.utime(tmp_path / f"3{kept.ENDING}", (0, 0))
    kept._drop(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == kept.MOST + 1
    assert f"{kept.PART}writing" in left
    assert f"3{kept.ENDING}" not in left
