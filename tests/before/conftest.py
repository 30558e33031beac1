"""What the tests of this folder share: the functions of doors.py, unpacked fixtures, and the programs' command line."""

import importlib.util
import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_programs = _load("before_programs", HERE / "programs.py")
_of_experiments = _load("before_of_experiments", HERE.parent / "experiments" / "conftest.py")
program, quick_curves = _of_experiments.program, _of_experiments.quick_curves


@pytest.fixture(scope="session")
def doors():
    """doors.py."""
    return _programs.doors


@pytest.fixture(scope="session")
def programs():
    """programs.py."""
    return _programs


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory):
    """unpacked("runs") -> a new folder with the content of runs.tar.gz."""

    def call(name):
        folder = tmp_path_factory.mktemp(name)
        with tarfile.open(HERE / f"{name}.tar.gz") as tar:
            tar.extractall(folder, filter="data")
        return folder

    return call
