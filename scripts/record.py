"""Trains the grids of recorded tables, each by the command in its own docstring, with several processes a GPU.

python scripts/record.py e2e_smollm2 webnlg_smollm2 --data=FOLDER --cards=2 --workers=3
python scripts/record.py rates_uuid:model=pico-llama mnli_lowdata --seconds=3000 -- --config.tracking.wandb=disabled

A grid is the name of a file in configs/sweeps, or a file, with its arguments after a colon. All processes of a grid
share --workdir, and none takes a cell that another has; the next grid begins when all of them have ended. To resume,
give the same command again: what is recorded is not trained again. Where CUDA_VISIBLE_DEVICES is set, the first
--cards GPUs of its list are used. Several such commands can share GPUs, each with a part of their memory (--memory).
"""

import argparse
import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone that is not installed yet

from lowrank_jax.core.errors import UserError, front_door, report
from lowrank_jax.core.files import read_bytes
from lowrank_jax.core.paths import unknown_name

GRIDS = Path(__file__).resolve().parents[1] / "configs" / "sweeps"
PROGRAM = ["python", "-m", "experiments.sweep"]
FOLDER = "FOLDER"  # what docstrings call the folder of data
MEMORY = 0.9  # share of a GPU's memory
VISIBLE = "CUDA_VISIBLE_DEVICES"
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
        names = os.environ[VISIBLE].split(",") if os.environ.get(VISIBLE) else [*map(str, range(options.cards))]
        if options.cards > len(names):
            raise UserError(f"--cards={options.cards}, and {VISIBLE}={os.environ[VISIBLE]} lists fewer")
        commands = [[*command(grid, options.data), f"--workdir={options.workdir}"] for grid in options.grids]
        commands = [[*one, *words[cut + 1 :]] for one in commands]
        end = time.monotonic() + options.seconds if options.seconds else None
        for grid, one in zip(options.grids, commands, strict=True):
            status = train(grid, one, options, names[: options.cards], end)
            if status:
                return status
    except UserError as error:
        return report(error)
    return 0


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
    text = ast.get_docstring(ast.parse(read_bytes(path, "no such grid"))) or ""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith(" ".join(PROGRAM))]
    return [one for one in words if any(word.startswith("--grid=") for word in one)]


def train(grid: str, words: Sequence[str], options: argparse.Namespace, cards: Sequence[str], end: float | None) -> int:
    """Runs a grid's command in --workers processes a GPU; returns the first status that is not 0, or LIMIT."""
    count = len(cards) * options.workers
    print(f"{grid}: {count} x {shlex.join(words)}", flush=True)
    if options.dry_run:
        return 0
    folder = Path(options.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    started, outputs = [], []
    for index in range(count):
        own = {VISIBLE: cards[index % len(cards)]}
        own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{options.memory / options.workers:.3f}"
        outputs.append(folder / f"record-{grid.partition(':')[0].removesuffix('.py').rpartition('/')[2]}-{index}.log")
        with open(outputs[-1], "ab") as output:
            run = [sys.executable, *words[1:]]
            started.append(subprocess.Popen(run, env={**os.environ, **own}, stdout=output, stderr=subprocess.STDOUT))
    late = False
    try:
        while any(one.poll() is None for one in started):
            if end is not None and time.monotonic() > end and not late:
                late = True
                _stop(started)
            time.sleep(POLL)
    except KeyboardInterrupt:
        _stop(started)
        raise
    for one, output in zip(started, outputs, strict=True):
        print(f"{output}: status {one.returncode}", flush=True)
    return LIMIT if late else next((one.returncode for one in started if one.returncode), 0)


def _stop(started: Sequence[subprocess.Popen]) -> None:
    for one in started:
        if one.poll() is None:
            one.send_signal(signal.SIGTERM)


if __name__ == "__main__":
    with front_door():
        sys.exit(main())
