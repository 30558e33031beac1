"""Imports libraries that a run needs late; a missing one is reported before the weights are read."""

import importlib
import importlib.util
import shlex
from types import ModuleType

from lowrank_jax.core.errors import UserError

EVERY_RUN = ("grain",)  # without one of these no run trains, whatever its config


def load(module: str, purpose: str, install: str) -> ModuleType:
    """Imports a library.

    Args:
      module: its name, which may have dots.
      purpose: what needs it, as the beginning of the error's line: "figures need".
      install: what pip is to install, as "grain>=0.2.18".

    Raises:
      UserError: it is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _missing(module, purpose, install, str(error)) from error


def check(module: str, purpose: str, install: str) -> None:
    """As `load`, but only looks whether the library is there, which takes no time."""
    top = module.partition(".")[0]
    if importlib.util.find_spec(top) is None:
        raise _missing(module, purpose, install, f"No module named {top!r}")


def _missing(module: str, purpose: str, install: str, why: str) -> UserError:
    error = UserError(f"{purpose} {install.partition('>')[0]} ({why}); pip install {shlex.quote(install)}")
    error.machine = module in EVERY_RUN
    return error
