"""Compiled steps kept beside jax's compilation cache: a later start reads its step back and does not trace it."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from lowrank_jax.core.json_text import NotJson, parse

PLATFORMS = ("gpu", "tpu")  # a CPU's program may not run on a CPU of another kind, and it traces in a tenth of a second
FOLDER, ENDING, PART = "lowrank_jax_steps", ".step", "part_"
MOST = 16  # files; the ones that were read or written longest ago go
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
VARIABLES = ("XLA_", "JAX_", "LIBTPU_", "TF_", "NVIDIA_", "CUDA_", "CUBLAS_", "CUDNN_")
SOURCES = Path(__file__).resolve().parents[3]


def kept_step(make: Callable[[], Any], arguments: Sequence[Any], identity: Mapping[str, Any], sources: Sequence[str]):
    """The compiled step: read back where an earlier start has kept it, otherwise made, and kept for the next one.

    Nothing is kept without jax's compilation cache, on the CPU, by several processes, or where making it takes less
    time than jax's cache asks for. An entry is only read where everything agrees that the traced program depends on:
    `identity`, the arguments' structure, shapes, dtypes and shardings, the packages' source files, versions, devices,
    and jax's and XLA's settings. Whoever can write to the folder can have this process run code of theirs, as with
    jax's own cache.

    Args:
      make: traces and compiles; its result takes `arguments` and returns (state, metrics), the state like the first of
        them.
      arguments: shapes with shardings.
      identity: what else the traced program depends on, as JSON or by `repr`.
      sources: folders of this repository whose source files make the program.
    """
    folder = _folder()
    if folder is None:
        return make()
    devices = list(jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat)
    described = describe(arguments, identity, sources, devices)
    path = folder / (hashlib.sha256(described.encode()).hexdigest() + ENDING)
    if (found := _read(path, described, arguments, devices)) is not None:
        return found
    begin = time.perf_counter()
    made = make()
    if time.perf_counter() - begin >= jax.config.values["jax_persistent_cache_min_compile_time_secs"]:
        # Not on the way to the first step; the process ends after it.
        threading.Thread(target=_keep, args=(made, path, described, arguments), name="kept_step").start()
    return made


def describe(
    arguments: Sequence[Any], identity: Mapping[str, Any], sources: Sequence[str], devices: Sequence[Any]
) -> str:
    """Everything that the traced and compiled program depends on, as text; equal texts, equal programs."""
    leaves, structure = jax.tree.flatten(arguments)
    first = devices[0]
    return json.dumps(
        {
            "identity": identity,
            "structure": str(structure),
            "leaves": [[leaf.shape, leaf.dtype, leaf.sharding, getattr(leaf, "weak_type", None)] for leaf in leaves],
            "sources": [source_digest(SOURCES / name) for name in sources],
            "versions": [platform.python_version(), *(importlib.metadata.version(name) for name in PACKAGES)],
            "devices": [[device.id, device.device_kind] for device in devices],
            "runtime": [first.platform, first.client.platform_version, len(jax.devices()), _cpu()],
            "variables": sorted(pair for pair in os.environ.items() if pair[0].startswith(VARIABLES)),
            "settings": sorted((name, repr(value)) for name, value in jax.config.values.items()),
        },
        default=repr,
        sort_keys=True,
    )


@functools.cache
def source_digest(folder: Path) -> str:
    """sha256 of all Python files below a folder, names included."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _folder() -> Path | None:
    """Where steps are kept; None where none are."""
    given, several = jax.config.values["jax_compilation_cache_dir"], jax.process_count() > 1
    if not given or "://" in given or several or not jax.config.values["jax_enable_compilation_cache"]:
        return None
    return Path(given) / FOLDER if jax.default_backend() in PLATFORMS else None


def _read(path: Path, described: str, arguments: Sequence[Any], devices: Sequence[Any]) -> Any | None:
    """The step of a file; None where there is none, or, with a line, where it is not what it should be."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _say(f"{path} cannot be read ({error.strerror})")
        return None
    header, _, payload = content.partition(b"\n")
    try:
        told = parse(header.decode())
        if told["described"] != described or told["sha256"] != hashlib.sha256(payload).hexdigest():
            raise ValueError("its content is not what its first line says")
        result = jax.tree.structure((arguments[0], dict.fromkeys(told["metrics"], 0)))
        given = jax.tree.structure((tuple(arguments), {}))
        found = serialize_executable.deserialize_and_load(
            payload, given, result, devices[0].client, execution_devices=devices
        )
    except Exception as error:  # whatever a damaged or foreign file causes, here or in XLA
        reason = "its first line is no record" if isinstance(error, (KeyError, NotJson, TypeError)) else str(error)
        _say(f"{path} is damaged or foreign ({reason.splitlines()[0][:200] if reason else type(error).__name__})")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


def _keep(made: Any, path: Path, described: str, arguments: Sequence[Any]) -> None:
    """Writes a compiled step; a line where that is not possible."""
    try:
        payload, given, result = serialize_executable.serialize(made)
        metrics = sorted(jax.tree.unflatten(result, range(result.num_leaves))[1])
        if result != jax.tree.structure((arguments[0], dict.fromkeys(metrics, 0))):
            raise ValueError("it returns something else than a state and metrics")
        if given != jax.tree.structure((tuple(arguments), {})):
            raise ValueError("it takes other arguments")
        told = {"metrics": metrics, "sha256": hashlib.sha256(payload).hexdigest(), "described": described}
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=PART) as place:  # whole or not at all
            (Path(place) / path.name).write_bytes(json.dumps(told).encode() + b"\n" + payload)
            os.replace(Path(place) / path.name, path)
        _drop(path.parent)
    except Exception as error:  # a step that is not kept runs as well: XLA's reasons, a full disk
        _say(f"the compiled step is not kept ({str(error).splitlines()[0][:200]}); the next start traces it again")


def _drop(folder: Path) -> None:
    """Removes the files beyond MOST that were used longest ago, and what killed processes left half-written."""

    def age(path: Path) -> float:
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime
        return 0.0

    for path in sorted(folder.glob(f"*{ENDING}"), key=age)[MOST:]:
        path.unlink(missing_ok=True)
    for path in folder.glob(f"{PART}*"):
        if age(path) > 3_600:  # no step takes as long to write
            shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _cpu() -> str:
    """What the host's instructions are: a program for CPUs, and its host code for others, may need them."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return platform.machine()


def _say(line: str) -> None:
    print(line, flush=True)
