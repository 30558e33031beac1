"""Imports libraries that a run needs late; a missing one is reported before the weights are read."""

import importlib
import importlib.util
import shlex
from importlib.machinery import ModuleSpec
from types import ModuleType

from lowrank_jax.core.errors import UserError, one_line

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
        found = importlib.import_module(module)
    except Exception as error:  # broken: built for another numpy (ValueError), without a part of it (OSError), ...
        raise _missing(module, purpose, install, one_line(error)) from error
    if _is_folder(getattr(found, "__spec__", None)):
        raise _missing(module, purpose, install, f"{module!r} is a folder without __init__.py")
    return found


def check(module: str, purpose: str, install: str) -> None:
    """As `load`, but only looks whether the library is there, which takes no time."""
    top = module.partition(".")[0]
    spec = importlib.util.find_spec(top)
    if spec is None or _is_folder(spec):
        raise _missing(module, purpose, install, f"No module named {top!r}")


def _is_folder(spec: ModuleSpec | None) -> bool:
    """Whether Python has taken any folder of that name, as of the user's data, for a package of several places."""
    return spec is not None and spec.origin is None and spec.submodule_search_locations is not None


def _missing(module: str, purpose: str, install: str, why: str) -> UserError:
    error = UserError(f"{purpose} {install.partition('>')[0]} ({why}); pip install {shlex.quote(install)}")
    error.machine = module in EVERY_RUN
    return error
