"""An hour of mutated inputs: `python -m tests.fuzz --minutes=60 --seed=0`; prints a line for each case that fails.

    python -m tests.fuzz --only=config --case=17 --seed=0    # one case again, with its whole traceback

The cases run in a process of their own: one that ends it, or takes it longer than a program may, is a failure too.
"""

import argparse
import collections
import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

STUCK = 400  # seconds without an ended case, in code that no signal interrupts
GIB = 2**30


def main():
    """Runs the cases; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="targets, with commas; by default all")
    parser.add_argument("--case", type=int, help="one case alone, with its traceback")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--log", help="of the process that runs the cases: where it writes how each ended")
    options = parser.parse_args()
    from fuzz import doors

    doors.environment()
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
    if options.case is not None:
        return one(options)
    return work(options) if options.log else watch(options)


def one(options):
    """A single case, in full."""
    from fuzz import targets

    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        wrong, ended = targets.attempt(options.only, options.seed, options.case, folder)
    print(ended.out, ended.err, ended.fault, wrong or "as it should", sep="\n")
    return int(bool(wrong))


def work(options):
    """Case after case until the time is up; appends "number target ..." before each case and how it ended after it."""
    from fuzz import targets

    # A case that asks for too much memory gets a MemoryError, and does not take down the machine.
    resource.setrlimit(resource.RLIMIT_AS, (24 * GIB, resource.getrlimit(resource.RLIMIT_AS)[1]))
    names = options.only.split(",") if options.only else list(targets.TARGETS)
    end, number = time.monotonic() + 60 * options.minutes, options.first
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder, open(options.log, "a", buffering=1) as log:
        targets.workspace(folder)
        while time.monotonic() < end:
            for name in names:
                log.write(f"begin {number} {name}\n")
                wrong, ended = targets.attempt(name, options.seed, number, folder)
                status = "wrong " + " ".join(wrong.split())[:300] if wrong else "ok" if not ended.status else "refused"
                log.write(f"end {number} {name} {status}\n")
            number += 1
    log_end = "done\n"
    with open(options.log, "a") as log:
        log.write(log_end)
    return 0


def watch(options):
    """Starts the process that works, again after each case that ends it; prints failures and, last, the counts."""
    end, first = time.monotonic() + 60 * options.minutes, options.first
    counts, failed = collections.Counter(), 0
    with tempfile.TemporaryDirectory(prefix="fuzz_log_") as place:
        log, seen = Path(place) / "log", 0
        while time.monotonic() < end:
            log.touch()
            left = (end - time.monotonic()) / 60
            command = [sys.executable, "-m", "tests.fuzz", f"--minutes={left}", f"--seed={options.seed}"]
            command += [f"--only={options.only}", f"--first={first}", f"--log={log}"]
            with open(Path(place) / "out", "w") as out:
                child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            last, running = time.monotonic(), ""
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(1)
                lines = log.read_text().splitlines()
                for line in lines[seen:]:
                    kind, _, rest = line.partition(" ")
                    running, last = rest if kind == "begin" else "", time.monotonic()
                    if kind == "end":
                        number, name, status, *why = rest.split(" ", 3)
                        counts[name, status] += 1
                        if status == "wrong":
                            failed += 1
                            print(f"--only={name} --case={number} --seed={options.seed}: {' '.join(why)}", flush=True)
                seen = len(lines)
                if child.returncode is None and time.monotonic() - last > STUCK:
                    child.kill()
                    child.wait()
                if child.returncode is not None and len(log.read_text().splitlines()) == seen:
                    break
            if lines and lines[-1] == "done":
                break
            said = (Path(place) / "out").read_text().strip().splitlines()[-1:]
            if not running:
                print(f"the process ended with status {child.returncode} between two cases: {said}")
                return 1
            number, name = running.split(" ")[:2]
            failed += 1
            counts[name, "ended the process"] += 1
            print(f"--only={name} --case={number} --seed={options.seed}: ended the process: {said}", flush=True)
            first = int(number) + 1
    for (name, status), count in sorted(counts.items()):
        print(f"{name}: {count} {status}")
    print(f"{sum(counts.values())} cases, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
