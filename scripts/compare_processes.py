"""Trains every method on one device, eight, two processes of one and two of four, and compares; prints a JSON record.

    python scripts/compare_processes.py --to=/tmp/processes.json                       # CPU: devices are simulated
    python scripts/compare_processes.py --to=/tmp/few.json --only=lora,full --steps=5
    python scripts/compare_processes.py --to=/tmp/processes.json --keep=/tmp/kept      # goes on where it was stopped

Each topology has the meshes that divide its devices along "data", along "fsdp", and along all axes or "tensor". A run
is toy-llama in float32 on UUID pairs, by plain gradient descent for --steps steps and then, anew, by AdamW for ADAM
steps. Compared with one device: the losses, and what was trained. The whole matrix compiles 320 programs; XLA_FLAGS
of the environment are kept and recorded.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TOPOLOGIES = {"1": (1, 1), "8": (1, 8), "2 x 1": (2, 1), "2 x 4": (2, 4)}  # name -> (processes, devices of each)
MESHES = {
    1: ((1, 1, 1),),
    2: ((2, 1, 1), (1, 2, 1), (1, 1, 2)),
    8: ((8, 1, 1), (1, 8, 1), (2, 2, 2)),
}  # devices -> (data, fsdp, tensor)
COMPRESSIONS = ("truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"adapter.method": "lora"},
    **{f"mora {one}": {"adapter.method": "mora", "adapter.mora.compression": one} for one in COMPRESSIONS},
    "dora": {"adapter.method": "dora"},
    "prefix": {"adapter.method": "prefix", "adapter.prefix.tokens": 4},
    "preembed": {"adapter.method": "preembed", "adapter.prefix.tokens": 4},
    "prelayer": {"adapter.method": "prelayer", "adapter.prefix.tokens": 4},
    "full": {"adapter.method": "none", "trainable": "full"},
}
COMMON = {
    "base.name": "toy-llama",
    "base.random_init": True,
    "adapter.rank": 4,
    "adapter.targets": ("query", "value", "down"),
    "task.pairs": 32,
    "task.eval_pairs": 2,
    "train.batch_size": 16,
    "train.eval_steps": (),
    "schedule.warmup_steps": 0,
    "optimizer.clip_norm": 0.0,
    "tracking.wandb": "disabled",
}
SGD, ADAM_RATE, ADAM = 0.1, 1e-3, 5  # rates, and steps of AdamW
LOSS, TRAINED = 1e-5, 1e-4  # largest differences: of a loss, relative; of a leaf, relative to its largest entry
PLACE = ("COMPARE_COORDINATOR", "COMPARE_PROCESSES", "COMPARE_PROCESS")
PATIENCE = 1800  # seconds without a method's end, after which the processes count as stuck


def main() -> None:
    """Runs all topologies and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="file of the record")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, with commas between them")
    parser.add_argument("--steps", type=int, default=50, help="of gradient descent")
    parser.add_argument("--keep", help="folder of what each topology and method gave; those there are not run again")
    options = parser.parse_args()
    methods = options.only.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        sys.exit(f"error: --only has {unknown}; the methods are {', '.join(METHODS)}")
    begun = time.time()
    with tempfile.TemporaryDirectory() as place:
        kept = Path(options.keep or place) / f"{options.steps} steps"
        for name, topology in TOPOLOGIES.items():
            (kept / name).mkdir(parents=True, exist_ok=True)
            left = [method for method in methods if not file_of(kept / name, method).exists()]
            print(f"{name}: {len(left)} of {len(methods)} methods ...", file=sys.stderr, flush=True)
            if left:
                finish(start(topology, left, options.steps, kept / name), kept / name)
        found = {name: {} for name in TOPOLOGIES}
        for name, method in itertools.product(TOPOLOGIES, methods):
            found[name] |= read(file_of(kept / name, method))
    rows = compared(found)
    made = {"rows": rows, "environment": environment(), "minutes": round((time.time() - begun) / 60, 1)}
    Path(options.to).write_text(json.dumps(made, indent=1) + "\n")
    print(table(rows))
    print(json.dumps({**made["environment"], "minutes": made["minutes"]}))


def file_of(folder: Path, method: str) -> Path:
    """Where a topology's arrays of a method are kept."""
    return folder / f"{method.replace(' ', '_')}.npz"


def environment() -> dict[str, Any]:
    """The machine and the versions, without starting devices here."""
    import importlib.metadata
    import platform

    cpus = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **versions,
    }


def start(topology: tuple[int, int], methods: list[str], steps: int, to: Path) -> list[subprocess.Popen]:
    """The processes of a topology, each of which runs the methods on all meshes; the first writes a file of each."""
    count, devices = topology
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    kept = [word for word in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in word]
    flags = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
    # NPROC: XLA's CPU client makes as many threads; with fewer, transfers between processes can wait for ever.
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "16", "PYTHONPATH": str(ROOT)}
    worker = ROOT / "scripts" / "compare_processes_worker.py"
    words = [sys.executable, str(worker), json.dumps(methods), str(steps), str(to)]
    return [
        subprocess.Popen(
            words, cwd=ROOT, env=env | dict(zip(PLACE, (address, str(count), str(i)), strict=True)),
            stdout=(said := (to / f"process{i}.log").open("w")), stderr=said,
        )
        for i in range(count)
    ]  # fmt: skip


def finish(processes: list[subprocess.Popen], folder: Path) -> None:
    """Waits for them; ends this program where one fails, or where no method ends for PATIENCE seconds."""
    seen, since = 0, time.monotonic()
    while any(process.poll() is None for process in processes):
        time.sleep(0.5)
        if (now := len(list(folder.glob("*.npz")))) != seen:
            seen, since = now, time.monotonic()
        failed = [i for i, process in enumerate(processes) if process.poll()]
        if not failed and time.monotonic() - since < PATIENCE:
            continue
        for process in processes:
            process.kill()
        why = f"process {failed[0]} ended" if failed else f"no method ended within {PATIENCE} s"
        said = (folder / f"process{(failed or [0])[0]}.log").read_text()
        sys.exit(f"error: {why}; the methods that ended are kept with --keep:\n{said[-3000:]}")
    if any(process.returncode for process in processes):
        sys.exit(f"error: a process failed; see {folder}")


def read(file: Path) -> dict[str, Any]:
    """{"method|mesh|optimizer|losses" or "...|path of a leaf": array}."""
    import numpy as np

    with np.load(file) as found:
        return dict(found)


def compared(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each method, topology, mesh and optimizer: the largest differences from one device.

    Args:
      found: topology -> `read`'s.
    """
    import numpy as np

    alone = {tuple(key.split("|")): value for key, value in found["1"].items()}
    alone = {(method, optimizer, leaf): value for (method, _, optimizer, leaf), value in alone.items()}
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for topology, arrays in found.items():
        for key, value in arrays.items():
            method, mesh, optimizer, leaf = key.split("|")
            if topology == "1":
                continue
            row = rows.setdefault(
                (method, topology, mesh, optimizer),
                {
                    "method": method,
                    "topology": topology,
                    "mesh": mesh,
                    "optimizer": optimizer,
                    "loss": 0.0,
                    "trained": 0.0,
                },
            )
            other = alone[method, optimizer, leaf]
            if leaf == "losses":
                row["steps"], row["learnt"] = len(value), float(other[0] - other[-1])
                row["loss"] = float(np.max(np.abs(value - other) / np.abs(other)))
            else:
                largest = float(np.max(np.abs(other))) or 1.0
                row["trained"] = max(row["trained"], float(np.max(np.abs(value - other))) / largest)
    for row in rows.values():
        row["within"] = row["loss"] <= LOSS and row["trained"] <= TRAINED
    return list(rows.values())


def summary(rows: list[dict[str, Any]], *keys: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """How many rows are within the limits, and the largest differences, of all rows with the same values of `keys`."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row[key] for key in keys), []).append(row)
    return {
        kind: {
            "within": f"{sum(row['within'] for row in some)} of {len(some)}",
            "loss": max(row["loss"] for row in some),
            "trained": max(row["trained"] for row in some),
        }
        for kind, some in kinds.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: a line a method, the rows within the limits for each topology, and the largest differences."""
    names = [name for name in TOPOLOGIES if name != "1"]
    each, of, total = (summary(rows, *keys) for keys in (("method", "topology"), ("method", "optimizer"), ()))
    names_of = {
        name: f"{name} devices" if "x" not in name else f"{name.replace(' x ', ' processes x ')}" for name in names
    }
    lines = [
        ["method", *names_of.values(), "losses, SGD", "trained, SGD", "losses, AdamW", "trained, AdamW"],
        ["---"] * (5 + len(names)),
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        largest = [f"{of[method, kind][key]:.1e}" for kind in ("sgd", "adam") for key in ("loss", "trained")]
        lines.append([method, *(each[method, name]["within"] for name in names), *largest])
    by = summary(rows, "topology"), summary(rows, "optimizer")
    largest = [f"{by[1][kind,][key]:.1e}" for kind in ("sgd", "adam") for key in ("loss", "trained")]
    lines.append([f"all: {total[()]['within']}", *(by[0][name,]["within"] for name in names), *largest])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
