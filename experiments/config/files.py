"""Loads Python files by path: configs, grids and suites, which are data."""

import importlib.util
from pathlib import Path
from types import ModuleType

from lowrank_jax.core.errors import UserError


def load_module(path: str | Path, missing: str = "") -> ModuleType:
    """A Python file as a module, executed at each call.

    Args:
      missing: the message where there is no such file.

    Raises:
      UserError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(missing or f"there is no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # a file whose name ends in .py has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
