"""Compiled programs that the runs of a sweep share: the environment by which they find jax's compilation cache."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from experiments.planning import cards

CACHE, LIMIT = "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"  # jax's own
FOLDER = "jax_cache"
BYTES = 20 * 2**30  # jax removes what was read longest ago; an unrolled step of SmolLM2-135M has tens of megabytes


def shared(environment: Mapping[str, str], workdir: str | os.PathLike) -> dict[str, str]:
    """The environment of a sweep's process, with a compilation cache below the sweep's folder.

    A learning rate and a seed are arguments of the step, so that cells which differ in these alone have one program:
    the first one compiles it (on an H200 beside six other processes SmolLM2's took 15 to 153 s, median 45), the others
    read it. A cache that the environment names, or turns off by an empty name, is left. On a CPU there is none: a
    folder may be shared by hosts whose CPUs differ, and a program for one may not run on another.

    Args:
      environment: variables.
      workdir: of the run folders.
    """
    found = dict(environment)
    if CACHE not in found and "://" not in str(workdir) and _accelerated(found):
        found[CACHE] = str(Path(workdir).absolute() / FOLDER)
        found.setdefault(LIMIT, str(BYTES))
    return found


def _accelerated(environment: Mapping[str, str]) -> bool:
    """Whether a run may find a GPU or a TPU, as far as can be told without starting devices."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms:
        return platforms.partition(",")[0] != "cpu"
    return cards.has_compiler() or importlib.util.find_spec("libtpu") is not None
