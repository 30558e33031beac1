"""Small runs for the drills, as one process or as several of one run: started, ended, and compared with a quiet one."""

import dataclasses
import json
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from toy_config import TOY

from drills.forked import Forked

STEPS, SAVED, EVALUATED = 40, 5, 20
HEARTBEAT, START, GRACE, MINUTE = 10, 60, 30, 60  # seconds
LOST, MENDABLE, INTERRUPTED = 75, 2, 130
SETTINGS = TOY | {
    "train.steps": STEPS,
    "train.eval_steps": f"({EVALUATED},)",
    "checkpoint.every": SAVED,
    "checkpoint.keep": 3,
}
CLOCKS = ("time", "tokens_per_second", "train_seconds")


@dataclasses.dataclass
class Ended:
    """How a process ended: its status, what it printed, and when (time.monotonic)."""

    status: int
    out: str
    err: str
    at: float

    @property
    def lines(self) -> list[str]:
        """What it printed on stderr beside the progress bar."""
        return [line for line in self.err.splitlines() if line.strip() and "%|" not in line]

    @property
    def one_line(self) -> bool:
        """Whether that is at most one line, without a traceback."""
        return len(self.lines) <= 1 and "Traceback" not in self.err


class Run:
    """One run, a folder `name` in `place`, made by one process or by several.

    Args:
      prepare: called in each process before the run; changes it for a drill.
    """

    def __init__(self, place: Path, name: str, processes: int, prepare: Callable[[], None] = lambda: None):
        self.folder, self.processes, self.prepare = place / name, processes, prepare
        self.words = ["--config=configs/mora_uuid.py", f"--workdir={place}", f"--name={name}"]
        self.words += [f"--config.{key}={value}" for key, value in SETTINGS.items()]
        self.running: list[Forked] = []
        self.address = ""

    def start(self, which: int | None = None, start_seconds: int = START) -> "Run":
        """Starts all its processes, or one of them; the first one started chooses the port."""
        if not self.address:
            with socket.socket() as probe:
                probe.bind(("localhost", 0))
                self.address = f"localhost:{probe.getsockname()[1]}"
        for index in range(self.processes) if which is None else [which]:
            standing = [f"--coordinator={self.address}", f"--processes={self.processes}", f"--process={index}"]
            standing += [f"--heartbeat_seconds={HEARTBEAT}", f"--start_seconds={start_seconds}"]
            words = [*self.words, *(standing if self.processes > 1 else [])]
            self.running.append(Forked(words, self.prepare))
        return self

    def wait(self, seconds: float = 300) -> list[Ended]:
        """Waits for all, or kills those that have not ended in time (their status is -9)."""
        ends, until = {}, time.monotonic() + seconds
        while len(ends) < len(self.running):
            for index, process in enumerate(self.running):
                if index not in ends and process.poll() is not None:
                    ends[index] = time.monotonic()
                elif index not in ends and time.monotonic() > until:
                    process.send_signal(signal.SIGKILL)
            time.sleep(0.02)
        found = []
        for index, process in enumerate(self.running):
            out, err = ("".join(x for x in lines if not x.startswith("[Gloo]")) for lines in process.said())
            found.append(Ended(process.poll() or 0, out, err, ends[index]))
        self.running, self.address = [], ""
        return found

    def end(self) -> list[Ended]:
        """Starts it and waits for its end."""
        return self.start().wait()

    @property
    def phase(self) -> str:
        """What the run was doing, by the records it left."""
        if (self.folder / "result.json").exists():
            return "after its end"
        steps = [line["step"] for line in records(self.folder) if "loss" in line]
        return f"after step {steps[-1]}" if steps else "before its first record"


def records(folder: Path) -> list[dict]:
    """The whole lines of metrics.jsonl, without what a clock wrote."""
    if not (folder / "metrics.jsonl").exists():
        return []
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines(True) if line.endswith("\n")]
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def checksums(folder: Path, step: int = STEPS) -> dict:
    """Of every trained leaf and of the optimizer's, in a checkpoint."""
    path = folder / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["checksums"] if path.exists() else {}


def steps(folder: Path) -> list[int]:
    """The checkpoints there."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal())


def equal(one: Path, other: Path) -> bool:
    """Whether two ended runs have the same bits: last checkpoint, every record, the exported adapter."""
    adapters = [(folder / "adapter" / "adapter.safetensors").read_bytes() for folder in (one, other)]
    return bool(
        checksums(one)
        and checksums(one) == checksums(other)
        and records(one) == records(other)
        and adapters[0] == adapters[1]
    )


def again(run: Run, quiet: Path) -> str:
    """Starts a run again and compares it with an undisturbed one; "" where it ends well and has the same bits."""
    ended = run.end()
    if any(one.status for one in ended):
        return f"started again: {[(one.status, one.lines[-1:]) for one in ended]}"
    return "" if equal(run.folder, quiet) else "started again: other bits"


def quiet(place: Path, processes: int) -> tuple[Run, float]:
    """An undisturbed run and its seconds; made twice, so that the time is that with a full compilation cache."""
    for name in ("warm", f"quiet{processes}"):
        run, begun = Run(place, name, processes), time.monotonic()
        ended = run.end()
        assert not any(one.status for one in ended), ended
    shutil.rmtree(place / "warm")
    return run, time.monotonic() - begun
