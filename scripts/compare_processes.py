"""Trains every method on one device, eight, two processes of one and two of four, and compares; prints a JSON record.

    python scripts/compare_processes.py --to=/tmp/processes.json                       # CPU: devices are simulated
    python scripts/compare_processes.py --to=/tmp/few.json --only=lora,full --steps=5

Each topology has the meshes that divide its devices along "data", along "fsdp", and along all axes or "tensor". A run
is toy-llama in float32 on UUID pairs, by plain gradient descent for --steps steps and then, anew, by AdamW for ADAM
steps. Compared with one device: the losses, and what was trained.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
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


def main() -> None:
    """Runs all topologies and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="file of the record")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, with commas between them")
    parser.add_argument("--steps", type=int, default=50, help="of gradient descent")
    options = parser.parse_args()
    methods = options.only.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        sys.exit(f"error: --only has {unknown}; the methods are {', '.join(METHODS)}")
    with tempfile.TemporaryDirectory() as place:
        for name, topology in TOPOLOGIES.items():
            print(f"{name} ...", file=sys.stderr, flush=True)
            finish(start(topology, methods, options.steps, Path(place) / f"{name}.npz"))
        found = compared({name: read(Path(place) / f"{name}.npz") for name in TOPOLOGIES})
    Path(options.to).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(summary(found), indent=1))


def start(topology: tuple[int, int], methods: list[str], steps: int, to: Path) -> list[subprocess.Popen]:
    """The processes of a topology, each of which runs all methods on all meshes; the first writes `to`."""
    count, devices = topology
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    kept = [word for word in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in word]
    flags = " ".join([*kept, f"--xla_force_host_platform_device_count={devices}"])
    # NPROC: XLA's CPU client makes as many threads; with fewer, transfers between processes can wait for ever.
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NPROC": "16", "PYTHONPATH": str(ROOT)}
    words = [
        sys.executable,
        str(ROOT / "scripts" / "compare_processes_worker.py"),
        json.dumps(methods),
        str(steps),
        str(to),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(
            words, cwd=ROOT, env=env | dict(zip(PLACE, (address, str(count), str(i)), strict=True)), **pipes
        )
        for i in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    """Waits for them; ends this program with the output of one that failed."""
    for process in processes:
        said, _ = process.communicate()
        if process.returncode:
            for other in processes:
                other.kill()
            sys.exit(f"a process ended with status {process.returncode}:\n{said[-3000:]}")


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


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows of each topology and optimizer are within the limits, and the largest differences."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(f"{row['topology']}, {row['optimizer']}", []).append(row)
    return {
        kind: {
            "within": f"{sum(row['within'] for row in some)} of {len(some)}",
            "loss": max(row["loss"] for row in some),
            "trained": max(row["trained"] for row in some),
        }
        for kind, some in kinds.items()
    }


if __name__ == "__main__":
    main()
