"""Finds Java and starts the two programs that METEOR and the caption metrics need."""

import importlib.util
import os
import shutil
from pathlib import Path


class NoJava(Exception):
    """This machine has no Java."""


def java() -> str:
    """The path of Java, $JAVA_HOME's before $PATH's.

    Raises:
      NoJava: there is none.
    """
    home = os.environ.get("JAVA_HOME")
    found = (home and shutil.which(Path(home, "bin", "java"))) or shutil.which("java")
    if not found:
        raise NoJava
    return found


def jar(name: str) -> Path:
    """A jar that pycocoevalcap carries, by its path in that package.

    Raises:
      ModuleNotFoundError: pycocoevalcap is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'pycocoevalcap'", name="pycocoevalcap")
    return Path(spec.submodule_search_locations[0], name)
