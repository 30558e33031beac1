"""Trains the grids of recorded tables, each by the command in its own docstring, with several processes a GPU.

python scripts/record.py e2e_smollm2 webnlg_smollm2 --data=FOLDER --cards=2 --workers=3
python scripts/record.py rates_uuid:model=pico-llama mnli_lowdata --seconds=3000 -- --config.tracking.wandb=disabled

A grid is the name of a file in configs/sweeps, or a file, with its arguments after a colon. All processes of a grid
share --workdir, and none takes a cell that another has; the next grid begins when all of them have ended. What is
recorded is not trained again, and what was stopped resumes: give the same command again. Of the cards that
CUDA_VISIBLE_DEVICES lists, if it is set, the first ones are used; several commands can share them (--memory).
Ctrl-C or SIGTERM stops the processes, whose runs write a checkpoint first; after a second Ctrl-C they write nothing.
"""

import argparse
import ast
import contextlib
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

from lowrank_jax.core.errors import UserError, front_door, one_line, report
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.paths import unknown_name

GRIDS = Path(__file__).resolve().parents[1] / "configs" / "sweeps"
PROGRAM = ["python", "-m", "experiments.sweep"]
FOLDER = "FOLDER"  # what docstrings call the folder of data
MEMORY = 0.9  # share of a GPU's memory
VISIBLE = "CUDA_VISIBLE_DEVICES"
PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
LIMIT = 124  # exit status where --seconds ran out; `timeout` has the same
POLL = 0.2  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the status of the first grid that failed, LIMIT if time ran out, otherwise 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grids", nargs="+", help="names of grids, in the order in which they are trained")
    parser.add_argument("--data", help=f"the folder that a docstring calls {FOLDER}")
    parser.add_argument("--cards", type=int, default=1, help="GPUs that are used; 1, the default, also on a CPU")
    parser.add_argument("--workers", type=int, default=1, help="processes a GPU (1)")
    parser.add_argument("--memory", type=float, default=MEMORY, help=f"share of a GPU's, for all workers ({MEMORY})")
    parser.add_argument("--workdir", default="runs", help="folder of the runs and of the processes' output (runs)")
    parser.add_argument("--seconds", type=float, help="stop after so many: runs save a checkpoint and resume next time")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    try:
        if options.cards < 1 or options.workers < 1 or not 0 < options.memory <= 1:
            raise UserError("--cards and --workers are at least 1, and --memory is more than 0 and at most 1")
        if options.seconds is not None and not (0 < options.seconds < math.inf):
            raise UserError(f"--seconds={options.seconds:g} is no time above 0; leave it out to train to the end")
        names = cards(options.cards)
        if options.workers > 1 and (grown := os.environ.get(PREALLOCATE)) in ("false", "False", "0"):  # as jaxlib
            print(
                f"{PREALLOCATE}={grown}: each process takes its share of --memory in pieces, which are not joined, and "
                "a step may find no room in a share that is large enough; unset it",
                file=sys.stderr,
            )
        commands = [[*command(grid, options.data), f"--workdir={options.workdir}"] for grid in options.grids]
        words_read = [word for grid in options.grids for word in command(grid, FOLDER)]
        if options.data is not None and not any(FOLDER in word for word in words_read):
            grids = ", ".join(options.grids)
            raise UserError(f"--data is read by no command of these grids (see their docstrings): {grids}")
        commands = [[*one, *words[cut + 1 :]] for one in commands]
        end = time.monotonic() + options.seconds if options.seconds else None
        for grid, one in zip(options.grids, commands, strict=True):
            status = train(grid, one, options, names, end)
            if status:
                return status
    except UserError as error:
        return report(error)
    return 0


def cards(count: int) -> list[str]:
    """The first cards of CUDA_VISIBLE_DEVICES; the device's own numbers where it is not set, [""] where it is empty.

    Raises:
      UserError: it lists fewer.
    """
    if (listed := os.environ.get(VISIBLE)) is None:
        return [*map(str, range(count))]
    names = [name for word in listed.split(",") if (name := word.strip())] or [""]  # "": no card, the CPU
    if count > len(names):
        raise UserError(f"--cards={count}, and {VISIBLE}={listed} lists fewer")
    return names[:count]


def command(grid: str, data: str | None) -> list[str]:
    """The words of a grid's command, as its docstring has it.

    Args:
      grid: a name in configs/sweeps or a file, and ":ARGUMENTS" if it has some.
      data: what FOLDER stands for.

    Raises:
      UserError: there is no such grid, its docstring has no command, or it needs a folder of data and none is given.
    """
    name, _, argument = grid.partition(":")
    path = Path(name) if name.endswith(".py") else GRIDS / f"{name}.py"
    names = sorted(file.stem for file in GRIDS.glob("*.py") if file.stem != "__init__")
    if not path.is_file():
        raise UserError(unknown_name("grid", name, names))
    found = _commands(path)
    if not found:
        raise UserError(f"the docstring of {path} has no line 'python -m experiments.sweep --config=... --grid=...'")
    exact = [one for one in found if argument and any(word.endswith(f".py:{argument}") for word in one)]
    words = exact[0] if exact else None
    if words is None:
        words = found[0]
        if argument:
            words = [f"{word}:{argument}" if word.startswith("--grid=") else word for word in words]
    if any(FOLDER in word for word in words):
        if data is None:
            raise UserError(f"{name} reads data: give --data=FOLDER (see the docstring of {path})")
        words = [word.replace(FOLDER, data) for word in words]
    return words


def _commands(path: Path) -> list[list[str]]:
    """The words of each command in a file's docstring; a command's lines end with a backslash, but for its last."""
    try:
        text = ast.get_docstring(ast.parse(read_bytes(path, "no such grid"))) or ""
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as Python: {one_line(error)}") from None
    words = []
    for line in re.sub(r"\\[ \t]*\n", " ", text).splitlines():
        if line.strip().startswith(" ".join(PROGRAM)):
            with contextlib.suppress(ValueError):  # prose with an apostrophe, a quote that does not end
                words.append(shlex.split(line, comments=True))
    return [one for one in words if any(word.startswith("--grid=") for word in one)]


def train(grid: str, words: Sequence[str], options: argparse.Namespace, names: Sequence[str], end: float | None) -> int:
    """Runs a grid's command in --workers processes a GPU; returns the first status that is not 0, or LIMIT."""
    count = len(names) * options.workers
    print(f"{grid}: {count} x {shlex.join(words)}", flush=True)
    if options.dry_run:
        return 0
    folder = Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if end is not None and time.monotonic() > end:
        return LIMIT
    stem = grid.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    outputs = [folder / f"record-{stem}-{index}.log" for index in range(count)]
    started, late = [], False
    with _terminable():
        try:
            for index, path in enumerate(outputs):
                own = {VISIBLE: names[index % len(names)]}
                own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{options.memory / options.workers:.3f}"
                started.append(_start([sys.executable, *words[1:]], {**os.environ, **own}, path))
            while any(one.poll() is None for one in started):
                if end is not None and time.monotonic() > end and not late:
                    late = True
                    _stop(started)
                time.sleep(POLL)
        finally:
            _end(started)
    for one, path in zip(started, outputs, strict=True):
        print(f"{path}: status {one.returncode}", flush=True)
    return LIMIT if late else next((one.returncode for one in started if one.returncode), 0)


def _start(words: Sequence[str], environment: Mapping[str, str], path: Path) -> subprocess.Popen:
    """A process whose output is added to a file; in a group of its own, so that a terminal's Ctrl-C comes here alone.

    A run that hears it after the SIGTERM that its sweep passes on would write nothing.
    """
    with open(path, "ab") as output:
        return subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Within it the first SIGTERM, or a terminal that closes, raises SystemExit; one that is ignored stays so."""

    def leave(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number in before:
            signal.signal(number, before[number])


def _stop(started: Sequence[subprocess.Popen]) -> None:
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)


def _end(started: Sequence[subprocess.Popen]) -> None:
    """Stops processes and waits for their end; a Ctrl-C meanwhile ends them and their runs at once."""
    _stop(started)
    try:
        for one in started:
            one.wait()
    except KeyboardInterrupt:
        for one in started:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGINT)
        raise


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
