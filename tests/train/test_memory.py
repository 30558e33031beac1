"""Memory: the compiler's count is right for known buffers, and what does not fit is refused with remedies."""

import types

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.train.compiled import memory

MIB = 2**20


def compiled():
    """y = x + 1 over 1 MiB of float32, and a scalar that needs a temporary of the same size."""

    def f(x, w):
        return x + 1, jnp.sum(jnp.sort(x @ w))

    shapes = jax.ShapeDtypeStruct((512, 512), jnp.float32), jax.ShapeDtypeStruct((512, 512), jnp.float32)
    return jax.jit(f).lower(*shapes).compile()


def test_counts_arguments_outputs_and_aliases():
    plain = memory.memory_report(compiled())
    assert plain.arguments == 2 * MIB
    assert MIB <= plain.outputs < MIB + 1024
    assert plain.temporaries >= MIB
    assert plain.aliased == 0
    assert plain.needed == plain.arguments + plain.temporaries + plain.outputs
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    donated = memory.memory_report(bump.lower(jax.ShapeDtypeStruct((512, 512), jnp.float32)).compile())
    assert (donated.arguments, donated.outputs, donated.aliased) == (MIB, MIB, MIB)
    assert donated.needed == MIB + donated.temporaries


def test_cpu_devices_share_one_memory(capsys):
    report = memory.check_fits(compiled())
    line = capsys.readouterr().out.strip()
    devices = len(jax.local_devices())
    assert line.startswith(f"step needs {report.needed * devices / 2**30:.2f} of ")
    limit = memory.device_limit()
    total = memory.os.sysconf("SC_PAGE_SIZE") * memory.os.sysconf("SC_PHYS_PAGES")
    assert 0.001 * total < limit <= total
    assert abs(memory.device_limit(jax.local_devices()[-1]) - limit) < 0.2 * limit


def test_what_does_not_fit_is_refused_with_remedies(monkeypatch, capsys):
    devices, executable = len(jax.local_devices()), compiled()
    needed = memory.memory_report(executable).needed
    monkeypatch.setattr(memory, "device_limit", lambda device: needed * devices)
    memory.check_fits(executable)
    monkeypatch.setattr(memory, "device_limit", lambda device: needed * devices - 1)
    with pytest.raises(UserError, match="accumulate") as caught:
        memory.check_fits(executable, what="training step")
    assert "batch_size" in str(caught.value)
    assert "remat" in str(caught.value)
    assert "training step needs" in capsys.readouterr().out


def accelerator(stats):
    return types.SimpleNamespace(platform="gpu", device_kind="Test", memory_stats=lambda: stats)


def test_accelerators_answer_for_themselves(capsys):
    device = accelerator({"bytes_limit": 3 * 2**30, "peak_bytes_in_use": 5})
    assert memory.device_limit(device) == 3 * 2**30
    assert memory.peak_bytes(device) == 5
    memory.check_fits(compiled(), device)
    assert capsys.readouterr().out.strip() == "step needs 0.00 of 3.00 GiB"
    with pytest.raises(UserError, match=r"Test has 0.00 GiB"):
        memory.check_fits(compiled(), accelerator({"bytes_limit": MIB}))


def test_silent_devices_are_not_judged(capsys):
    assert memory.device_limit(accelerator(None)) is None
    assert memory.check_fits(compiled(), accelerator(None)) is not None
    blind = types.SimpleNamespace(memory_analysis=lambda: None)
    assert memory.check_fits(blind) is None
    assert capsys.readouterr().out.count("does not say") == 2


def test_containers_limit_counts(tmp_path, monkeypatch):
    before = memory._host_memory()
    real = memory.Path

    def path(name):
        return real(tmp_path / name.rsplit("/", 1)[-1]) if name.startswith("/sys/fs/cgroup/memory.") else real(name)

    (tmp_path / "memory.max").write_text("9000000\n")
    (tmp_path / "memory.stat").write_text("anon 1000000\nfile 500000\n")
    monkeypatch.setattr(memory, "Path", path)
    assert memory._host_memory() == 8_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert abs(memory._host_memory() - before) < 0.2 * before


def test_peak_on_cpu_is_the_process(capsys):
    before = memory.peak_bytes()
    block = bytearray(300 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    assert memory.peak_bytes() >= before
    assert memory.peak_bytes() > 300 * MIB
