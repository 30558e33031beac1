"""Compares a small run on one and two devices, stopped and resumed, moved between them; prints a JSON record.

    python scripts/compare_devices.py --to=/tmp/compared.json         # two GPUs of one host
    python scripts/compare_devices.py --to=/tmp/compared.json --axis=fsdp

Each run is `experiments.run` on a few rows of text, in a process of its own that sees one GPU or two; one is divided
between two processes. "equal" counts the steps whose losses are equal to the last bit.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STEPS, HALF = 16, 8
WORDS = [
    "--config=configs/mora_uuid.py:data=text,method=lora", "--config.task.seq_len=64", "--config.train.batch_size=32",
    f"--config.train.steps={STEPS}", f"--config.checkpoint.every={HALF}", "--config.export.adapter=False",
    "--config.tracking.wandb=disabled",
]  # fmt: skip
MESHES = {
    "data": ["--config.mesh.data=2", "--config.mesh.fsdp=1"],
    "fsdp": ["--config.mesh.data=1", "--config.mesh.fsdp=2"],
}
ONE = ["--config.mesh.data=1", "--config.mesh.fsdp=1"]
BOTH, FIRST = "0,1", "0"


def main() -> None:
    """Runs everything and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="file of the record")
    parser.add_argument("--axis", choices=MESHES, default="data", help="of the mesh, over two devices")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = measured(Path(place), MESHES[options.axis])
    Path(options.to).write_text(json.dumps({options.axis: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def measured(place: Path, two: list[str]) -> dict[str, dict]:
    """{name of a comparison: its `compared`}; `two` are the flags of a mesh over two devices."""
    rows = [f"{n} times {n + 1} is {n * (n + 1)}, and half of it {n * (n + 1) // 2}" for n in range(200)]
    (place / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))

    def start(name, words, cards):
        data = [f"--config.task.path={place / 'rows.jsonl'}", f"--workdir={place}", f"--name={name}"]
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
        env = {**os.environ, "XLA_FLAGS": flags, "CUDA_VISIBLE_DEVICES": cards}
        command = [sys.executable, "-m", "experiments.run", *WORDS, *data, *words]
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip

    def finish(*processes):
        for process in processes:
            said, _ = process.communicate()
            if process.returncode:
                sys.exit(f"a run ended with status {process.returncode}:\n{said[-2000:]}")

    def run(name, words, cards, *more):
        finish(start(name, [*words, *more], cards))

    run("two", two, BOTH)
    run("one", ONE, FIRST)
    for name, mesh, cards, other, others in (("two", two, BOTH, ONE, FIRST), ("one", ONE, FIRST, two, BOTH)):
        run(f"{name}-resumed", mesh, cards, f"--config.train.stop_at={HALF}")
        shutil.copytree(place / f"{name}-resumed", place / f"{name}-moved")
        run(f"{name}-resumed", mesh, cards)
        run(f"{name}-moved", other, others)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    parts = [f"--coordinator=localhost:{port}", "--processes=2"]
    finish(*[start("processes", [*two, *parts, f"--process={i}"], str(i)) for i in range(2)])
    pairs = {
        "stopped and resumed on two, beside two": ("two-resumed", "two"),
        "stopped and resumed on one, beside one": ("one-resumed", "one"),
        "from two to one, beside two": ("two-moved", "two"),
        "from one to two, beside one": ("one-moved", "one"),
        "two beside one": ("two", "one"),
        "a process for each device, beside one process": ("processes", "two"),
    }
    return {what: compared(losses(place / ours), losses(place / other)) for what, (ours, other) in pairs.items()}


def losses(folder: Path) -> dict[int, float]:
    """step -> training loss, of a run's metrics."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


def compared(ours: dict[int, float], others: dict[int, float]) -> dict[str, float]:
    """{"steps", "equal": how many have the same bits, "largest_relative": difference}.

    Raises:
      ValueError: the runs have different steps.
    """
    if ours.keys() != others.keys():
        raise ValueError(f"steps {sorted(ours)} beside {sorted(others)}")
    differences = [abs(ours[step] - others[step]) / abs(others[step]) for step in ours]
    return {"steps": len(ours), "equal": differences.count(0.0), "largest_relative": max(differences)}


if __name__ == "__main__":
    main()
