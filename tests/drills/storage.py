"""Drills on what a run writes: a disk that is full, and a newest checkpoint that is damaged."""

import contextlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from drills import runs
from drills.runs import Run, again

PAGE = 4096  # bytes of the smallest file there
ROOM = "256m"  # of a small disk that has been made larger


def full_disk(place: Path, quiet: Path, seconds: float, draw: random.Random, processes: int = 1) -> tuple[str, str]:
    """A tmpfs with less room than the run needs: one line, status 2; with more room the same command goes on."""
    needed = sum(-(-path.stat().st_size // PAGE) * PAGE for path in quiet.rglob("*") if path.is_file())
    room = int(needed * draw.uniform(0.1, 1.4)) // PAGE * PAGE  # a save needs some more for a moment
    with tmpfs(place / "disk", room) as disk:
        run = Run(disk, "run", processes)
        ended = run.end()
        said = f"{room / needed:.1f} of the room"
        if not any(one.status for one in ended):
            return f"{said} was enough", "" if runs.equal(run.folder, quiet) else "other bits"
        if not all(one.status == runs.MENDABLE and len(one.lines) == 1 for one in ended):
            return said, f"ended with {[(one.status, one.lines[-3:]) for one in ended]}"
        whole = runs.steps(run.folder)
        if "space" not in ended[0].err and "written" not in ended[0].err:
            return said, f"said {ended[0].lines}"
        subprocess.run(["mount", "-o", f"remount,size={ROOM}", disk], check=True)
        wrong = again(run, quiet)
        return f"{said}, steps {whole} saved", wrong


def pair_full_disk(place: Path, quiet: Path, seconds: float, draw: random.Random) -> tuple[str, str]:
    """The same with two processes: both end with one line."""
    return full_disk(place, quiet, seconds, draw, processes=2)


def damaged(place: Path, quiet: Path, seconds: float, draw: random.Random, processes: int = 1) -> tuple[str, str]:
    """A file of the newest checkpoint is deleted, emptied, cut or changed: the one before is used, and that is said."""
    run = Run(place, "run", processes)
    shutil.copytree(quiet, run.folder)
    for name in ("result.json", "adapter", "curves.png"):
        path = run.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    newest = run.folder / "checkpoints" / str(runs.STEPS)
    file = draw.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    how = draw.choice(("deleted", "emptied", "cut", "changed"))
    damage(file, how)
    said = f"{file.relative_to(newest)} {how}"
    ended = run.end()
    if any(one.status for one in ended):
        return said, f"ended with {[(one.status, one.lines[-3:]) for one in ended]}"
    before = runs.STEPS - runs.SAVED
    used = [line for line in ended[0].lines if f"step {runs.STEPS} " in line and f"step {before} " in line]
    if not (run.folder / "checkpoints" / f"{runs.STEPS}.damaged").exists():
        said += " (harmless)"
    elif not used:
        return said, f"the step before was used without a word: {ended[0].lines}"
    return said, "" if runs.equal(run.folder, quiet) else "other bits"


def pair_damaged(place: Path, quiet: Path, seconds: float, draw: random.Random) -> tuple[str, str]:
    """The same with two processes, which must agree on the step, whichever of them sees the damage."""
    return damaged(place, quiet, seconds, draw, processes=2)


def damage(path: Path, how: str) -> None:
    """Damages a file."""
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "changed" and data:
        at = len(data) // 2
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    else:
        path.write_bytes(b"" if how == "emptied" else data[: len(data) // 2])


@contextlib.contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes at a folder; needs the right to mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
