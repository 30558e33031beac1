"""Where a run ran: hardware, versions, commit and date."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

COMMIT_VARIABLE = "LOWRANK_JAX_COMMIT"  # "1a2b3c" or "1a2b3c+dirty", for copies of the tree without .git


def environment_record() -> dict:
    """Where a run ran: {hardware, versions, git, date}. Imports jax and starts its devices."""
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {
        "hardware": {
            "platform": jax.devices()[0].platform,
            "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
            "cpu": _cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("jax", "jaxlib", "flax", "optax", "lowrank_jax")},
        },
        "git": git_record(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def git_record() -> dict:
    """{"commit", "dirty"} of the tree this file is in; outside git from COMMIT_VARIABLE, else None."""
    here = Path(__file__).resolve().parents[2]

    def git(*words):
        done = subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == here:
            # Recording a result must not make the next run of the same sweep dirty.
            changed = git("status", "--porcelain", "--", ".", ":(exclude)experiments/results")
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        pass  # no git, no repository, or no commit yet
    commit, _, dirty = os.environ.get(COMMIT_VARIABLE, "").partition("+")
    return {"commit": commit or None, "dirty": bool(dirty) if commit else None}


def _version(name: str) -> str | None:
    if name == "lowrank_jax":
        import lowrank_jax

        return lowrank_jax.__version__
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or sys.platform
