"""Two processes that save to one folder: each error names the other, and neither advises to delete a good step."""

import errno

import jax.numpy as jnp
import pytest

from lowrank_jax.checkpoints.manager import Checkpoints
from lowrank_jax.core.errors import UserError

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
