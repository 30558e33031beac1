"""Two offline agents run a rank sweep's W&B file; W&B's records and the JSON lines must give one table.

python -m tests.drills.wandb_agents [--ranks=2,4,8]    # about a minute a cell on two cores
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from experiments.records import run_folder, run_record
from experiments.records.lines import read_lines
from experiments.tables import sweep as sweep_table

ROOT = Path(__file__).parents[2]
GRID = """
def cells():
    toy = {"train.steps": 4, "train.eval_steps": [2], "train.batch_size": 8, "task.pairs": 16, "task.eval_pairs": 2,
           "schedule.warmup_steps": 1, "checkpoint.every": 0, "tracking.wandb": "offline",
           "base.name": "toy-llama", "base.random_init": True, "adapter.targets": ["query", "down"]}
    return [dict(arg=f"method=lora,rank={rank}", overrides=toy) for rank in RANKS]
"""


def agents(folder: Path, ranks: list[int], count: int = 2) -> None:
    """Writes the sweep's file, and runs its cells as W&B's agents do: a process a cell, with the agent's variables."""
    (folder / "ranks.py").write_text(f"RANKS = {ranks}\n{GRID}")
    files = ["--config=configs/mora_uuid.py", f"--grid={folder / 'ranks.py'}"]
    places = [f"--workdir={folder / 'runs'}", f"--results={folder / 'kept'}", f"--root={folder / 'shared'}"]
    words = [sys.executable, "-m", "experiments.sweep", *files, *places]
    subprocess.run([*words, f"--wandb_sweep={folder / 'sweep.json'}"], cwd=ROOT, check=True)
    spec = json.loads((folder / "sweep.json").read_text())
    cells, lock, faults = list(spec["parameters"]["cell"]["values"]), threading.Lock(), []

    def agent() -> None:
        while True:
            with lock:
                if not cells:
                    return
                cell = cells.pop(0)
            parameters = folder / f"{uuid.uuid4().hex}.json"  # JSON is YAML
            parameters.write_text(json.dumps({"cell": {"value": cell}}))
            chosen = {"WANDB_SWEEP_ID": "local", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
            chosen |= {"WANDB_RUN_ID": uuid.uuid4().hex[:8], "WANDB_MODE": "offline"}
            expanded = {"${interpreter}": [sys.executable], "${args}": [f"--cell={cell}"]}
            command = [part for word in spec["command"] for part in expanded.get(word, [word])]
            ended = subprocess.run(command, cwd=ROOT, env=os.environ | chosen, capture_output=True, text=True)
            if ended.returncode:
                faults.append(ended.stdout + ended.stderr)

    threads = [threading.Thread(target=agent) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        sys.exit(faults[0])


def from_wandb(folder: Path) -> list[dict]:
    """The records that W&B's offline runs below a folder hold, as far as a table reads them."""
    records = []
    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        words = ["wandb", "leet", "inspect", "--json", str(file)]
        listed = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=True).stdout
        lines = [json.loads(line) for line in listed.splitlines()]
        config = next(line["run"]["config"]["update"] for line in lines if line["type"] == "run")
        history = [line["history"]["item"] for line in lines if line["type"] == "history"]
        summary: dict = {}
        for line in lines:
            summary |= line["summary"].get("update", {}) if line["type"] == "summary" else {}
        losses, evaluations = run_record.split_metrics([{**item, "step": item["_step"]} for item in history])
        records.append({
            "name": run_folder.run_name(config), "status": summary["status"], "labels": config["labels"],
            "config": {key: value for key, value in config.items() if key not in ("_wandb", "cell")},
            "train_seconds": summary["train_seconds"], "parameters": {"trainable": summary["trainable"]},
            "losses": run_record.thin(losses), "evaluations": evaluations,
        })  # fmt: skip
    return records


def both(folder: Path, ranks: list[int]) -> tuple[list[dict], list[dict]]:
    """Runs agents below a folder: the sweep's records from its JSON lines, and from W&B's files, in order of name."""
    agents(folder, ranks)
    kept, of_wandb = read_lines(folder / "kept.jsonl").values(), from_wandb(folder / "shared" / "wandb")
    ours, theirs = (sorted(records, key=lambda record: record["name"]) for records in (kept, of_wandb))
    return ours, theirs


def tables(ours: list[dict], theirs: list[dict]) -> tuple[str, str]:
    """The tables of both."""
    return sweep_table.of(ours).text(), sweep_table.of(theirs).text()


def main() -> None:
    """Runs the agents and compares the two tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--ranks", default="2,4,8")
    given = options.parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = tables(*both(Path(place), [int(rank) for rank in given.ranks.split(",")]))
    print(ours)
    print("equal" if ours == theirs else f"different: W&B's records give\n{theirs}", f"{time.time() - start:.0f} s")
    sys.exit(ours != theirs)


if __name__ == "__main__":
    main()
