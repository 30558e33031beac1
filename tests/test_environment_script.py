"""scripts/environment.sh: which Python it takes, the error where .venv has another, and the scripts' --help."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Runs what `-c` is given as if this were Python 3.MINOR.
FAKE = """#!/bin/sh
exec {real} -c 'import sys; sys.version_info = (3, {minor}, 1, "final", 0); exec(sys.argv[1])' "$2"
"""
MAKE = f"set -euo pipefail; source {ROOT / 'scripts' / 'environment.sh'}; make_environment .; echo made"
NEW = "remove .venv, and the same command makes a new one\n"


@pytest.fixture
def made(tmp_path):
    """made(minor of .venv, minor of PYTHON or None) -> the ended process of make_environment, with a complete .venv."""

    def fake(path, minor):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE.format(real=sys.executable, minor=minor) if minor else "#!/bin/sh\nexit 127\n")
        path.chmod(0o755)
        return path

    def call(inside, asked):
        shutil.copy(ROOT / "setup.py", tmp_path)
        fake(tmp_path / ".venv" / "bin" / "python", inside)
        shutil.copy(ROOT / "setup.py", tmp_path / ".venv" / "installed-")  # nothing is left to be installed
        fake(tmp_path / "bin" / "python3.12", 12)
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
        if asked:
            environment["PYTHON"] = str(fake(tmp_path / "asked", asked))
        return subprocess.run(
            ["bash", "-c", MAKE],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return call


@pytest.mark.parametrize(("inside", "asked"), [(12, 12), (11, 11), (11, None), (12, None)])
def test_an_environment_of_the_same_version_is_used(made, inside, asked):
    done = made(inside, asked)
    assert (done.returncode, done.stdout, done.stderr) == (0, "made\n", "")


@pytest.mark.parametrize(
    ("inside", "asked", "words"),
    [
        (11, 12, "error: .venv has Python 3.11 and PYTHON={} is Python 3.12; "),
        (12, 11, "error: .venv has Python 3.12 and PYTHON={} is Python 3.11; "),
        (None, 11, "error: .venv has a Python that does not run and PYTHON={} is Python 3.11; "),
        (10, None, "error: .venv has Python 3.10, not Python 3.11 or 3.12; "),
        (None, None, "error: .venv has a Python that does not run, not Python 3.11 or 3.12; "),
    ],
)
def test_an_environment_of_another_version_is_one_line(made, tmp_path, inside, asked, words):
    """Such a .venv was used before, whatever PYTHON= said."""
    done = made(inside, asked)
    line = words.format(tmp_path / "asked") + NEW
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("quickstart", ("--help",), "From a fresh clone to MoRA compared with LoRA"),
        ("test", ("-h",), "The checks (style, format, types), then the whole test suite"),
        ("glue_mrpc", ("--help",), "From a fresh clone to one cell of LoRA's GLUE table"),
        ("quickstart", ("-k", "mora"), "error: quickstart.sh takes no arguments, and was given -k; leave it out\n"),
        ("glue_mrpc", ("/nowhere",), "error: /nowhere is no folder; name the one with GLUE's files, or leave it out\n"),
    ],
)
def test_help_and_wrong_words_start_nothing(tmp_path, name, words, said):
    """Without a Python that runs: whatever is started ends with another line."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts" / f"{name}.sh"), *words],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere/python"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == (2 if said.startswith("error") else 0)
    assert (done.stdout + done.stderr).startswith(said)
    assert not (tmp_path / ".venv").exists()
