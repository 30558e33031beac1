"""Training runs that are killed, stopped, filled up or damaged: python -m tests.drills.training --to=FILE.

    python -m tests.drills.training --to=/tmp/drills.json       # all drills, each as often as DRILLS says
    python -m tests.drills.training --to=/tmp/few.json --only=kill,disk --times=3

Each drill does something to a run at moments drawn from --seed, starts the run again, and compares it with one that
nobody disturbed: last checkpoint, records and exported adapter, bit for bit. It prints how often all of it held.
"""

import argparse
import collections
import dataclasses
import functools
import json
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # as tests/conftest.py does

from drills import forked, runs, storage
from drills.runs import Run, again

Tried = tuple[str, str]  # when or how, and what did not hold ("": all of it did)
PAIR, CHAIN = 2, 5  # processes of a run; kills of one run
LONG, SHORT, SLOW = 120.0, 6.0, 0.5  # seconds of evaluations, and of a batch of them


def kill(place: Path, quiet: Path, seconds: float, draw: random.Random) -> list[Tried]:
    """One of two processes is killed -9, CHAIN times in one run: each time the other ends with one line in a minute."""
    run, tries = Run(place, "run", PAIR), []
    for _ in range(CHAIN):
        victim = draw.randrange(PAIR)
        run.start()
        time.sleep(draw.uniform(0, seconds))
        phase, done, at = run.phase, run.running[victim].poll() is not None, time.monotonic()
        run.running[victim].send_signal(signal.SIGKILL)
        ended = run.wait()
        if done:  # the run ended before that moment
            break
        other, wrong = ended[1 - victim], ""
        finished = other.status == 0 and (run.folder / "result.json").exists()
        told = other.status in (runs.LOST, runs.MENDABLE) and len(other.lines) == 1 and other.one_line
        if not (finished or told):
            wrong = f"the other ended with {other.status} and {other.lines[-3:]}"
        elif other.at - at > runs.MINUTE:
            wrong = f"the other ended after {other.at - at:.0f} s"
        tries.append((f"process {victim}, {phase}: {other.at - at:.0f} s, {other.lines[-1:]}", wrong))
    wrong = again(run, quiet)
    return [(said, one or wrong) for said, one in tries]


def term(place: Path, quiet: Path, seconds: float, draw: random.Random) -> Tried:
    """SIGTERM to both processes: they end by themselves within 30 s, having saved the last step that they recorded."""
    return _preempted(Run(place, "run", PAIR), quiet, draw.uniform(0, seconds))


def evaluation(place: Path, quiet: Path, seconds: float, draw: random.Random) -> Tried:
    """SIGTERM to a run of one process during an evaluation that takes longer than the 30 s of grace."""
    return _in_evaluation(Run(place, "run", 1), quiet, LONG, draw.uniform(0, 5))


def pair_evaluation(place: Path, quiet: Path, seconds: float, draw: random.Random) -> Tried:
    """SIGTERM to two processes during an evaluation of a few seconds: it is completed, then the run is saved."""
    return _in_evaluation(Run(place, "run", PAIR), quiet, SHORT, draw.uniform(0, SHORT / 2))


def _in_evaluation(run: Run, quiet: Path, seconds: float, wait: float) -> Tried:
    mark = run.folder.parent / "evaluating"
    run.prepare = lambda: _slow_evaluation(seconds, mark)
    run.start()
    while not mark.exists() and all(process.poll() is None for process in run.running):
        time.sleep(0.05)
    return _preempted(run, quiet, wait, started=True)


def late(place: Path, quiet: Path, seconds: float, draw: random.Random) -> Tried:
    """One of two hosts starts late, within --start_seconds: the run is the same."""
    run, first, delay = Run(place, "run", PAIR), draw.randrange(PAIR), draw.uniform(2, 20)
    run.start(first)
    time.sleep(delay)
    ended = run.start(1 - first).wait()
    said = f"process {1 - first} {delay:.0f} s late"
    if any(one.status for one in ended):
        return said, str([(one.status, one.lines) for one in ended])
    return said, "" if runs.equal(run.folder, quiet) else "other bits"


def too_late(place: Path, quiet: Path, seconds: float, draw: random.Random) -> Tried:
    """One of two hosts does not start within --start_seconds: the other ends with one line and status 2."""
    run, first = Run(place, "run", PAIR), draw.randrange(PAIR)
    (ended,) = run.start(first, start_seconds=5).wait()
    said = f"process {first} alone"
    if ended.status != runs.MENDABLE or len(ended.lines) != 1:
        return said, f"it ended with {ended.status} and {ended.lines[-3:]}"
    return said, again(run, quiet)


def _preempted(run: Run, quiet: Path, wait: float, started: bool = False) -> Tried:
    if not started:
        run.start()
    time.sleep(wait)
    phase, at = run.phase, time.monotonic()
    for process in run.running:
        process.send_signal(signal.SIGTERM)
    ended = run.wait(seconds=runs.GRACE)
    said = f"{phase}: {max(one.at for one in ended) - at:.0f} s"
    # A Python that has not reached the program yet, or has left it, ends by the signal itself.
    allowed = (runs.INTERRUPTED, -signal.SIGTERM) if phase != "after its end" else (0, -signal.SIGTERM)
    finished = (run.folder / "result.json").exists() and not any(one.status for one in ended)
    if not finished and not all(one.status in allowed for one in ended):
        return said, f"they ended with {[(one.status, one.lines[-2:]) for one in ended]}"
    if not all(one.one_line for one in ended):
        return said, f"they said {[one.lines for one in ended]}"
    trained = [line["step"] for line in runs.records(run.folder) if "loss" in line]
    if trained and trained[-1] not in runs.steps(run.folder):
        return said, f"step {trained[-1]} was trained, and steps {runs.steps(run.folder)} are saved"
    run.prepare = lambda: None
    return said, again(run, quiet)


def _slow_evaluation(seconds: float, mark: Path) -> None:
    """In this process each evaluation takes so long, and a file says that one has begun."""
    from experiments.session import experiment

    evaluators = experiment.Experiment.evaluators

    def slow(evaluate: Callable, *arguments: Any) -> Any:
        mark.touch()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(SLOW)
        return evaluate(*arguments)

    def slowly(self: Any, *arguments: Any) -> Any:
        found = evaluators(self, *arguments)
        return [dataclasses.replace(one, evaluate=functools.partial(slow, one.evaluate)) for one in found]

    experiment.Experiment.evaluators = slowly  # pyright: ignore[reportAttributeAccessIssue]


# name -> (drill, how often, processes of the quiet run)
DRILLS: dict[str, tuple[Callable[..., Tried | list[Tried]], int, int]] = {
    "kill": (kill, 50, PAIR),
    "term": (term, 20, PAIR),
    "evaluation": (evaluation, 10, 1),
    "pair_evaluation": (pair_evaluation, 5, PAIR),
    "late": (late, 5, PAIR),
    "too_late": (too_late, 5, PAIR),
    "disk": (storage.full_disk, 20, 1),
    "pair_disk": (storage.pair_full_disk, 5, PAIR),
    "damage": (storage.damaged, 20, 1),
    "pair_damage": (storage.pair_damaged, 5, PAIR),
}


def main() -> None:
    """Runs the drills, prints each try, and writes the counts."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--to", required=True, help="file of the counts; drills there are not run again")
    options.add_argument("--only", default=",".join(DRILLS), help="drills, with commas between them")
    options.add_argument("--times", type=int, default=None, help="how often, instead of each drill's own number")
    options.add_argument("--minutes", type=float, default=1e9, help="begin no try after so many")
    options.add_argument("--seed", type=int, default=1)
    given = options.parse_args()
    if unknown := [name for name in given.only.split(",") if name not in DRILLS]:
        sys.exit(f"error: --only has {unknown}; the drills are {', '.join(DRILLS)}")
    forked.preload()
    to, begun, quiets = Path(given.to), time.monotonic(), {}
    counts = json.loads(to.read_text()) if to.exists() else {}
    with forked.scratch() as folder:
        for name in given.only.split(","):
            drill, times, processes = DRILLS[name]
            if processes not in quiets:
                quiets[processes] = runs.quiet(folder, processes)
            run, seconds = quiets[processes]
            draw, tries, start = random.Random(f"{given.seed} {name}"), [], time.monotonic()
            while len(tries) < (given.times or times) and time.monotonic() - begun < 60 * given.minutes:
                with forked.scratch() as place:
                    found = drill(place, run.folder, seconds, draw)
                for said, wrong in found if isinstance(found, list) else [found]:
                    tries.append((said, wrong))
                    print(f"{name} {len(tries)}: {said}; {wrong or 'held'}", flush=True)
            counts[name] = {
                "held": sum(not wrong for _, wrong in tries),
                "of": len(tries),
                "when": dict(collections.Counter(said.partition(":")[0] for said, _ in tries)),
                "minutes": round((time.monotonic() - start) / 60, 1),
                "faults": [f"{said}; {wrong}" for said, wrong in tries if wrong],
            }
            to.write_text(json.dumps(counts, indent=1) + "\n")
    for name, found in counts.items():
        print(f"| {name} | {found['held']} of {found['of']} |")


if __name__ == "__main__":
    main()
