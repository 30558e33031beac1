"""Checkpoints: bit-equal restore, other meshes, crashes, damage, full disks, other runs' files."""

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lowrank_jax.checkpoints import leaves, manager
from lowrank_jax.checkpoints.manager import CheckpointConfig, Checkpoints
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten

IDENTITY = {"base": "abc", "config": "123"}
ROOT = Path(manager.__file__).parents[2]


@functools.cache
def state(seed: int = 0):
    """A trainable tree and the rest of a state: odd shapes and dtypes, typed and raw keys, NaN, -0.0, an empty leaf."""
    rng = np.random.default_rng(seed)
    a, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 16, 8), (16, 3)))
    kernel[0, :2] = np.nan, -0.0
    trainable = {
        "adapters": {"layers": {"query": {"a": jnp.asarray(a), "b": jnp.zeros((2, 8, 16))}}},
        "params": {"head": {"kernel": jnp.asarray(kernel)}},
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    rest = {
        "opt": tx.init(trainable),
        "step": jnp.int32(7),
        "rng": jax.random.key(seed),
        "raw": jax.random.PRNGKey(3),
        "half": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "flag": jnp.array([True, False]),
        "host": np.arange(4) * 2**40,
        "empty": jnp.zeros((0, 4)),
        "none": None,
    }
    return trainable, rest


def bits(tree):
    def of(leaf):
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()

    return jax.tree.map(of, tree)


def abstract(tree):
    return jax.tree.map(
        lambda x: x if isinstance(x, np.ndarray) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


def saved(folder, steps=(10, 20)):
    with Checkpoints(folder, 2, IDENTITY) as checkpoints:
        for step in steps:
            checkpoints.save(step, *state(step), {"epoch": 1, "offset": step})
    return folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder of steps 10 and 20, which no test changes."""
    return saved(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def copied(kept, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(kept, tmp_path, dirs_exist_ok=True))


def test_restores_every_bit(copied):
    trainable, rest = state()
    with Checkpoints(copied, 2, IDENTITY) as checkpoints:
        got, others, cursor, step = checkpoints.restore(None, abstract(trainable), abstract(rest))
        assert (step, cursor) == (20, {"epoch": 1, "offset": 20})
        assert bits((got, others)) == bits(state(20))
        assert jax.tree.structure(others) == jax.tree.structure(rest)
        assert jax.random.key_impl(others["rng"]) == jax.random.key_impl(rest["rng"])
        assert isinstance(others["host"], np.ndarray)
        got, others, cursor, step = checkpoints.restore(
            10, trainable, jax.eval_shape(lambda: rest) | {"host": rest["host"]}
        )
        assert (step, cursor["offset"]) == (10, 10)
        assert bits((got, others)) == bits(state(10))


def test_restores_onto_another_mesh(tmp_path):
    if len(jax.devices()) < 4:
        pytest.skip("needs 4 devices")
    value = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)

    def place(shape, spec):
        mesh = jax.make_mesh(
            shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: np.prod(shape)]
        )
        return NamedSharding(mesh, PartitionSpec(*spec))

    before, after = place((1, 4), ("fsdp", None)), place((2, 2), ("data", "fsdp"))
    trainable, rest = {"adapters": {"a": jax.device_put(value, before)}}, {"count": jnp.int32(1)}
    with Checkpoints(tmp_path, 1, {}) as checkpoints:
        checkpoints.save(1, trainable, rest, {})
        target = {"adapters": {"a": jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=after)}}
        got = checkpoints.restore(1, target, rest)[0]["adapters"]["a"]
    assert got.sharding == after
    assert np.asarray(got).tobytes() == value.tobytes()


def test_save_copies_before_it_returns_so_the_step_may_donate(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    trainable = {"adapters": {"a": jnp.zeros((256, 256))}}
    with Checkpoints(tmp_path, 3, {}) as checkpoints:
        for step in range(3):
            checkpoints.save(step, trainable, {"step": jnp.int32(step)}, {})
            trainable = bump(trainable)
        for step in range(3):
            got = checkpoints.restore(step, trainable, {"step": jnp.int32(0)})[0]
            assert (np.asarray(got["adapters"]["a"]) == step).all()


def test_keeps_the_newest_and_repeats_are_free(tmp_path):
    with Checkpoints(tmp_path, 2, IDENTITY) as checkpoints:
        assert (checkpoints.latest(), checkpoints.steps()) == (None, [])
        for step in (1, 2, 3, 3):
            checkpoints.save(step, *state(), {})
        checkpoints.wait()
        assert (checkpoints.latest(), checkpoints.steps()) == (3, [2, 3])
    with Checkpoints(tmp_path, 2, IDENTITY) as checkpoints:
        with pytest.raises(UserError, match="already has step 3"):
            checkpoints.save(3, *state(), {})
        checkpoints.restore(3, *state())
        checkpoints.save(3, *state(), {})


@pytest.mark.parametrize(("keep", "every"), [(0, 1), (2, -1)])
def test_config_is_checked(keep, every):
    with pytest.raises(UserError, match="checkpoint"):
        CheckpointConfig(every=every, keep=keep)


def test_nothing_to_restore_is_said(copied):
    with Checkpoints(copied, 2, IDENTITY) as checkpoints, pytest.raises(UserError, match=r"of step 15 .*\[10, 20\]"):
        checkpoints.restore(15, *state())
    with Checkpoints(copied / "new", 2, IDENTITY) as checkpoints, pytest.raises(UserError, match="steps there: none"):
        checkpoints.restore(None, *state())


def test_another_run_is_refused(copied):
    other = {"base": "other", "config": "123", "seed": 1}
    with Checkpoints(copied, 2, other) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(None, *state())
    message = str(caught.value)
    assert 'base was "abc", now "other"' in message
    assert "seed was null, now 1" in message
    assert "config" not in message


def test_leaves_that_do_not_fit_are_all_named(copied):
    trainable, rest = state()
    flat = flatten(trainable)
    flat["adapters/layers/query/a"] = jnp.zeros((2, 16, 4))
    flat["adapters/layers/key/a"] = flat.pop("adapters/layers/query/b")
    with Checkpoints(copied, 2, IDENTITY) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore(None, unflatten(flat), rest)
    for text in (
        "query/a is float32[2,16,8], not float32[2,16,4]",
        "layers/key/a is missing",
        "layers/query/b is unknown here",
    ):
        assert text in str(caught.value)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "FORMAT_VERSION", 2)
    saved(tmp_path)
    monkeypatch.undo()
    with Checkpoints(tmp_path, 2, IDENTITY) as checkpoints, pytest.raises(UserError, match=r"format 2, .* up to 1"):
        checkpoints.restore(None, *state())


def test_damage_is_passed_over_or_harmless_whichever_file_it_hits(kept, tmp_path, capfd):
    """The step before is used, and that is said; the damaged one is set aside for a run to save it again."""
    files = [path.relative_to(kept) for path in (kept / "20").rglob("*") if path.is_file()]
    lines, equal = [], 0
    for index, path in enumerate(sorted(files)):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(kept, copy)
        damage(copy / path, ("delete", "empty", "half", "flip")[index % 4])
        with Checkpoints(copy, 2, IDENTITY) as checkpoints:
            *got, _, step = checkpoints.restore(None, *state(), mend=True)
            assert bits(tuple(got)) == bits(state(step)), path
            assert checkpoints.steps() == ([10, 20] if step == 20 else [10])
            assert (copy / "20.damaged").is_dir() == (step == 10)
        equal += step == 20
        lines += capfd.readouterr().err.splitlines()
    assert len(lines) == len(files) - equal >= 5
    assert equal >= 5
    for line in lines:
        assert line.startswith(f"the checkpoint of step 20 in {tmp_path / 'copy'} is damaged (")
        assert line.endswith(f"; step 10 before it is used; the damaged one is now {tmp_path / 'copy'}/20.damaged")


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "delete":
        path.unlink()
    elif how == "flip":
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    else:
        path.write_bytes(b"" if how == "empty" else data[: len(data) // 2])


@pytest.mark.parametrize("item", ["train", "opt", "meta", "."])
def test_a_step_with_a_missing_item_is_refused_by_number_and_otherwise_passed_over(copied, item):
    """Once it is set aside the steps are saved, counted and deleted as if it had never been; a second one is, too."""
    shutil.rmtree(copied / "20" / item)
    if item == ".":
        (copied / "20").mkdir()
    with Checkpoints(copied, 2, IDENTITY) as checkpoints:
        with pytest.raises(UserError, match=f"delete {copied}/20: step 10 is whole"):
            checkpoints.restore(20, *state())
        assert checkpoints.restore(None, *state())[-1] == 10
        assert (copied / "20").is_dir()  # a program that only reads leaves it there
        *got, _, step = checkpoints.restore(None, *state(), mend=True)
        assert step == 10
        assert bits(tuple(got[:2])) == bits(state(10))
        for later in (15, 20):
            checkpoints.save(later, *state(later), {})
    with Checkpoints(copied, 2, IDENTITY) as checkpoints:
        assert checkpoints.steps() == [15, 20]
        assert bits(checkpoints.restore(20, *state())[:2]) == bits(state(20))
    shutil.rmtree(copied / "20" / "train")
    with Checkpoints(copied, 2, IDENTITY) as checkpoints:
        assert checkpoints.restore(None, *state(), mend=True)[-1] == 15


def test_flipped_weights_are_seen(tmp_path, monkeypatch):
    """The array format has no checksum: a changed value must still be refused."""
    original = leaves.checksums
    with monkeypatch.context() as patch:
        patch.setattr(manager, "checksums", lambda x: {k: v + k.endswith("/a") for k, v in original(x).items()})
        saved(tmp_path, steps=(10,))
    with (
        Checkpoints(tmp_path, 2, IDENTITY) as checkpoints,
        pytest.raises(UserError, match=r"other bits .*query/a.*no earlier"),
    ):
        checkpoints.restore(None, *state())


def test_checksum_sees_one_flipped_bit_and_swapped_values():
    value = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    flipped = value.copy()
    flipped.view(np.uint32)[3, 2] ^= 1 << 31
    swapped = value[:, [1, 0, 2, 3, 4]]
    sums = {int(leaves.checksum(x)) for x in (value, flipped, swapped, value[::-1].copy())}
    assert len(sums) == 4
    for kept in (value, jnp.arange(7, dtype=jnp.bfloat16), np.array(3, np.int32), np.array([[[True], [False]]])):
        assert leaves.checksum_on_host(np.asarray(kept)) == leaves.checksum(kept)
    host = leaves.checksums({"x": np.arange(4) * 2**40}), leaves.checksums({"x": np.arange(4) * 2**41})
    assert host[0] != host[1]


def run_script(body: str, *arguments: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    script = (
        "import jax, jax.numpy as jnp, numpy as np, os, resource, signal, sys, threading, time\n"
        + textwrap.dedent(body)
    )
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_kill_in_the_middle_of_a_save_leaves_the_step_before(tmp_path):
    body = """
    from pathlib import Path
    from lowrank_jax.checkpoints.manager import Checkpoints
    folder = Path(sys.argv[1])
    def killer():
        while not list(folder.glob("2.*tmp*/train*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)
    checkpoints = Checkpoints(folder, 1, {})
    big = {"w": jnp.asarray(np.random.default_rng(0).random((2000, 10000), np.float32))}
    checkpoints.save(1, {"w": jnp.arange(8.0)}, {"step": jnp.int32(1)}, {"offset": 1})
    checkpoints.wait()
    threading.Thread(target=killer, daemon=True).start()
    checkpoints.save(2, big, {"step": jnp.int32(2)}, {"offset": 2})
    checkpoints.wait()
    """
    ended = run_script(body, tmp_path)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("2")] != ["2"]
    with Checkpoints(tmp_path, 1, {}) as checkpoints:
        assert checkpoints.steps() == [1]
        got, rest, cursor, step = checkpoints.restore(None, {"w": jnp.zeros(8)}, {"step": jnp.int32(0)})
        assert (step, cursor, int(rest["step"])) == (1, {"offset": 1}, 1)
        assert (got["w"] == jnp.arange(8.0)).all()
        checkpoints.save(2, {"w": jnp.zeros(8)}, {"step": jnp.int32(2)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    body = """
    from lowrank_jax.checkpoints.manager import Checkpoints
    from lowrank_jax.core.errors import UserError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = sys.argv[1]
    small, big = {"w": jnp.arange(8.0)}, {"w": jnp.asarray(np.random.default_rng(0).random((1000, 1000), np.float32))}
    try:
        with Checkpoints(folder, 1, {}) as checkpoints:
            checkpoints.save(1, small, {"step": jnp.int32(1)}, {})
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            checkpoints.save(2, big, {"step": jnp.int32(2)}, {})
    except UserError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with Checkpoints(folder, 1, {}) as checkpoints:
        got, *_, step = checkpoints.restore(None, small, {"step": jnp.int32(0)})
        print("step", step, (got["w"] == small["w"]).all())
        checkpoints.save(2, big, {"step": jnp.int32(2)}, {})
        checkpoints.wait()
        print(checkpoints.steps())
    """
    ended = run_script(body, tmp_path)
    lines = ended.stdout.splitlines()
    assert lines[1:] == ["step 1 True", "[2]"], ended
    assert f"step 2 could not be written to {tmp_path}" in lines[0]
    assert "untouched: [1]" in lines[0]
    assert "Traceback" not in ended.stderr
    assert "Event loop" not in ended.stderr


@pytest.mark.parametrize("before", [False, True])
def test_a_disk_that_is_full_when_orbax_ends_is_said(tmp_path, monkeypatch, before):
    """In one line, and where a save has failed before, that one is told."""
    checkpoints = Checkpoints(tmp_path, 1, {})
    close = checkpoints._manager.close

    def full(what):
        return OSError(errno.ENOSPC, f"No space left on device, {what}")

    def closes():
        close()
        raise full("closing")

    monkeypatch.setattr(checkpoints._manager, "close", closes)
    if before:
        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", mock.Mock(side_effect=full("saving")))
    with pytest.raises(UserError, match=f"{'saving' if before else 'closing'}.*; free space there"), checkpoints:
        pass


def test_our_own_faults_are_not_called_a_full_disk(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, 1, {}) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: {}["bug"])
        with pytest.raises(KeyError, match="bug"):
            checkpoints.save(1, *state(), {})


def test_meta_is_plain_json(tmp_path):
    saved(tmp_path, steps=(10,))
    meta = json.loads((tmp_path / "10" / "meta" / "metadata").read_text())
    assert (meta["format_version"], meta["step"], meta["identity"]) == (1, 10, IDENTITY)
    assert meta["leaves"]["opt"]["opt/1/0/count"] == "int32[]"
