"""kill -9 of sweep workers at random moments: python -m tests.drills.workers --kills=50 --seed=1 [--root=s3://...].

Also with a root of which requests fail (--failing=0.2) and reads are slow (--slow=0.5), with hosts whose clocks are
wrong (--skew=3600), and with a root on a disk of its own that is full for a while (--full=20, seconds; it is mounted).
"""

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))  # as tests/conftest.py does

from drills.worker import TROUBLE
from experiments.records import leases
from experiments.records.lines import read_lines

WORKER = Path(__file__).with_name("worker.py")
PATIENCE = 600  # seconds in which the workers must end once nobody kills them any more


def drill(
    folder: Path,
    root: str,
    workers: int,
    cells: int,
    kills: int,
    seed: int,
    seconds: float,
    lease: float,
    trouble: dict[str, float] | None = None,
    during: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Starts workers, kills some -9 (every other time with its run, as a host that dies) and starts them again.

    Args:
      trouble: see `worker.TROUBLE`.
      during: called after the kills.

    Returns:
      the counts: kills, runs begun and recorded, records, cells begun again after their record, unequal records.
    """
    draw, number = random.Random(seed), 0

    def start():
        nonlocal number
        number += 1
        words = ["work", root, folder, folder / f"host{number}", cells, seconds, lease]
        return subprocess.Popen(
            [sys.executable, WORKER, *map(str, words)], start_new_session=True, stdout=subprocess.DEVNULL,
            env=os.environ | {TROUBLE: json.dumps(trouble or {})},
        )  # fmt: skip

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
    during()
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


@contextlib.contextmanager
def full_for(folder: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """A small disk at a folder, and what makes it full for so long once workers use it."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)

    def fill() -> None:
        filler = folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        time.sleep(seconds)
        filler.unlink()

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


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
    options.add_argument("--failing", type=float, default=0.0, help="share of the root's requests")
    options.add_argument("--slow", type=float, default=0.0, help="most seconds of a read from the root")
    options.add_argument("--skew", type=float, default=0.0, help="most seconds by which a worker's clock is wrong")
    options.add_argument("--full", type=float, default=0.0, help="seconds for which the root's disk is full")
    given = options.parse_args()
    trouble = {"failing": given.failing, "slow": given.slow, "skew": given.skew}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as disk:
        folder, start, root = Path(place), time.time(), given.root or f"{place}/shared"
        during = disk.enter_context(full_for(Path(root), given.full)) if given.full else lambda: None
        found = drill(
            folder, root, given.workers, given.cells, given.kills, given.seed, given.seconds, given.lease, trouble,
            during,
        )  # fmt: skip
    shown = {name: value for name, value in vars(given).items() if name in (*trouble, "full") and value}
    print(json.dumps({**found, **shown, "cells": given.cells, "minutes": round((time.time() - start) / 60, 1)}))


if __name__ == "__main__":
    main()
