"""kill -9 of sweep workers at random moments: python -m tests.drills.workers --kills=50 --seed=1 [--root=s3://...]."""

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments.records import leases
from experiments.records.lines import read_lines

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 600  # seconds in which the workers must end once nobody kills them any more


def drill(folder: Path, root: str, workers: int, cells: int, kills: int, seed: int, seconds: float, lease: float):
    """Starts workers, kills some -9 (every other time with its run, as a host that dies) and starts them again.

    Returns:
      the counts: kills, runs begun and recorded, records, cells begun again after their record, unequal records.
    """
    draw, number = random.Random(seed), 0

    def start():
        nonlocal number
        number += 1
        words = ["work", root, folder, folder / f"host{number}", cells, seconds, lease]
        return subprocess.Popen(
            [sys.executable, WORKER, *map(str, words)], start_new_session=True, stdout=subprocess.DEVNULL
        )

    running = [start() for _ in range(workers)]
    done = 0
    while done < kills and (alive := [process for process in running if process.poll() is None]):
        time.sleep(draw.uniform(0, seconds))
        victim = draw.choice(alive)
        if victim.poll() is None:
            whole = done % 2
            os.killpg(victim.pid, signal.SIGKILL) if whole else os.kill(victim.pid, signal.SIGKILL)
            victim.wait()
            running.remove(victim)
            running.append(start())
            done += 1
    statuses = [process.wait(PATIENCE) for process in running]
    return {"kills": done, "workers that ended well": statuses.count(0), **counts(folder, root, running)}


def counts(folder: Path, root: str, running: list) -> dict[str, int]:
    """What the log, the root and each surviving worker's file say."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    recorded = {line["name"]: line["time"] for line in lines if line["what"] == "recorded"}
    begun = [line for line in lines if line["what"] == "began"]
    shared = {result["name"]: result for result in leases.Root(root).results()}
    files = [Path(words.args[5], "kept.jsonl") for words in running if words.returncode == 0]
    each = collections.Counter(line["name"] for line in begun)
    return {
        "records": len(shared),
        "runs begun": len(begun),
        "runs recorded": sum(line["what"] == "recorded" for line in lines),
        "begun again after their record": sum(line["time"] > recorded.get(line["name"], 1e99) for line in begun),
        "cells begun more than once": sum(count > 1 for count in each.values()),
        "files that differ from the root": sum(read_lines(file) != shared for file in files),
    }


def main() -> None:
    """Runs the drill and prints its counts."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--cells", type=int, default=40)
    options.add_argument("--seconds", type=float, default=2.0, help="of a run")
    options.add_argument("--lease", type=float, default=6.0)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--root", default=None)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, start = Path(place), time.time()
        found = drill(
            folder, given.root or f"{place}/shared", given.workers, given.cells, given.kills, given.seed, given.seconds,
            given.lease,
        )  # fmt: skip
    print(json.dumps({**found, "cells": given.cells, "minutes": round((time.time() - start) / 60, 1)}))


if __name__ == "__main__":
    main()
