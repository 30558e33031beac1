"""A sweep over a grid in a folder, without its program; what its stand-in runs did, and are told to do."""

import json

from experiments.sweeps import engine
from experiments.sweeps.grid import Grid


def make(place, grid="grid.py", arg="", results=None):
    said = []
    made = Grid(f"{place / 'config.py'}{arg}", str(place / grid))
    return made, engine.Sweep(made, str(place / "runs"), results, said.append), said


def ran(place):
    log = place / "runs" / "ran.txt"
    return log.read_text().split() if log.exists() else []


def behave(place, **how):
    (place / "runs" / "behave.json").write_text(json.dumps(how))
