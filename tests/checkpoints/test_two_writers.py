"""Two processes that save to one folder: as parts of one run, and as two runs, whose errors name the other process."""

import errno
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.checkpoints import manager
from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError

ROOT = Path(manager.__file__).parents[2]
STATE = {"w": jnp.arange(8.0)}, {"step": jnp.int32(0)}


def test_a_step_that_appeared_since_is_another_writers(tmp_path):
    with Checkpoints(tmp_path, 2, {}) as one, Checkpoints(tmp_path, 2, {}) as two:
        one.save(1, *STATE, {})
        one.wait()
        with pytest.raises(UserError, match="another process writes to") as error:
            two.save(1, *STATE, {})
        assert "step 1 appeared there" in str(error.value)
        assert "delete nothing" in str(error.value)
        assert "free space" not in str(error.value)
    with Checkpoints(tmp_path, 2, {}) as later, pytest.raises(UserError, match="of an earlier run; delete"):
        later.save(1, *STATE, {})


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOTEMPTY, "Directory not empty"), "another process writes to"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "another process writes to"),
        (ValueError("INTERNAL: Error renaming: Directory not empty [source locations]"), "another process writes to"),
        (ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device"), "free space there"),
        (OSError(errno.ENOSPC, "No space left on device"), "free space there"),
        (PermissionError(errno.EACCES, "Permission denied"), "check the folder and its disk"),
    ],
)
def test_the_advice_is_that_of_the_fault(tmp_path, monkeypatch, error, words):
    def fails(*_, **__):
        raise error

    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, "save", fails)
        with pytest.raises(UserError) as raised:
            checkpoints.save(1, *STATE, {})
    remedies = ("another process writes to", "free space there", "check the folder and its disk")
    assert [remedy for remedy in remedies if remedy in str(raised.value)] == [words]


def test_two_processes_save_and_restore_and_pass_over_what_one_cannot_read(tmp_path):
    body = """
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from lowrank_jax.checkpoints.damage import Damaged
    from lowrank_jax.checkpoints.manager import Checkpoints
    folder, port, index = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", 2, int(index))
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,))
    value = np.arange(12, dtype=np.float32).reshape(4, 3)
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("fsdp",), ()))
    make = lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i])
    trainable, rest = {"w": make(value, split)}, {"step": make(np.int32(3), whole)}
    with Checkpoints(folder, 1, {"base": "x"}) as checkpoints:
        checkpoints.save(1, trainable, rest, {})
        checkpoints.save(3, trainable, rest, {"offset": 3})
        got, others, cursor, step = checkpoints.restore(None, trainable, rest)
        mine = got["w"].addressable_shards[0]
        assert (np.asarray(mine.data) == value[mine.index]).all() and got["w"].sharding == split
        print(step, cursor, int(others["step"]), checkpoints.steps())
    with Checkpoints(folder, 2, {"base": "x"}) as checkpoints:  # process 1 alone cannot read what is saved last
        checkpoints.save(5, trainable, rest, {})
        checkpoints.wait()
        load = checkpoints._load
        def unreadable(step, item, *tree):
            if (index, step, item) == ("1", 5, "train"):
                raise Damaged("input/output error")
            return load(step, item, *tree)
        checkpoints._load = unreadable
        print(checkpoints.restore(None, trainable, rest, mend=True)[2:], checkpoints.steps())
    """
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "NPROC": "8", "XLA_FLAGS": ""}
    script = tmp_path / "worker.py"
    script.write_text("import jax, sys\n" + textwrap.dedent(body))
    port = free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, script, tmp_path / "run", str(port), str(index)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=100) for worker in workers]
    said = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in outputs]
    assert [lines[0] for lines in said] == ["3 {'offset': 3} 3 [3]"] * 2, outputs
    assert [lines[-1] for lines in said] == ["({'offset': 3}, 3) [3]"] * 2, outputs
    assert "is damaged (as process 1 reads it); step 3 before it is used; the damaged one" in outputs[0][1]
    assert "is damaged" not in outputs[1][1]
    with Checkpoints(tmp_path / "run", 1, {"base": "x"}) as checkpoints:  # one process reads what two wrote
        got = checkpoints.restore(None, {"w": jnp.zeros((4, 3))}, {"step": jnp.int32(0)})[0]["w"]
    assert (np.asarray(got) == np.arange(12).reshape(4, 3)).all()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_a_failed_save_of_several_processes_is_told_without_waiting_for_the_others(tmp_path, monkeypatch):
    """Orbax's thread stays at a barrier that the others do not reach; `tests.drills.training --only=pair_disk`."""

    class Stuck:
        is_saving_in_progress = staticmethod(lambda: True)

        def _wait_for_checkpointers(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        def wait_until_finished(self):
            raise AssertionError("waits for the others")

        close = wait_until_finished

    with Checkpoints(tmp_path, 2, {}) as checkpoints:
        whole = checkpoints._manager
        assert callable(whole._wait_for_checkpointers)  # orbax's own name
        checkpoints._manager = Stuck()
        checkpoints._remember_failures()
        with pytest.raises(OSError, match="No space"):
            checkpoints._manager._wait_for_checkpointers()
        with monkeypatch.context() as patch:
            patch.setattr(manager.jax, "process_count", lambda: 2)
            for leave in (checkpoints.wait, checkpoints.close):
                with pytest.raises(UserError, match="free space there"):
                    leave()
        checkpoints._manager = whole
        checkpoints._failed.clear()
