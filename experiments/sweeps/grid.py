"""The cells of a sweep: a grid file over a config file, with the values that earlier cells decide."""

import ast
import copy
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from experiments.config.files import call_with, config_maker, file_meant, function_of, load_module
from experiments.config.json_flags import KEYS, is_plain, read
from experiments.config.labels import with_labels
from experiments.config.plain import content_hash, is_section, to_plain
from experiments.records import run_folder
from experiments.sweeps.best import BEST, NotNeeded, best_value, chosen_value, is_best, lookup, parse
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.rates import RATE, refuse_auto

__all__ = ["Cell", "Grid", "best_value", "check_cells"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
      name: of its run; it does not say what a "best:" override comes to.
      stage, arg, overrides: as the grid file has them.
      plain: its config.
      trials: the cells that decide its "best:" overrides.
      once: whether it is left out where one of its trials is the same run.
    """

    name: str
    stage: str
    arg: str
    overrides: dict[str, Any]
    plain: dict
    trials: tuple[str, ...] = ()
    once: bool = False

    @property
    def steps(self) -> int:
        """The optimizer steps that it trains, its weight in the estimate of the time left."""
        train = self.plain.get("train") or {}
        return train.get("stop_at") or train.get("steps") or 1


class Text(str):
    """A value from the command line, which is still to be converted to the type of its key."""


class Grid:
    """The cells of a grid file over one config file, in order.

    Args:
      config: FILE:ARGUMENT.
      grid: the grid file, FILE or FILE:ARGUMENT.
      keys: KEY=VALUE for every cell; its own overrides win.
    """

    def __init__(self, config: str, grid: str, keys: Sequence[str] = ()):
        if wrong := [pair for pair in keys if "=" not in pair]:
            raise UserError(f"--config.{wrong[0]} has no value; write --config.{wrong[0]}=VALUE")
        self.common = {key: Text(value) for key, _, value in (pair.partition("=") for pair in keys)}
        path, _, self.base_arg = config.partition(":")
        self.config_path, self.grid_path = path, grid
        self.get_config = config_maker(path)
        self._configs: dict[str, tuple[Any, dict]] = {}  # full argument -> its config, whole and plain
        self.cells: dict[str, Cell] = {}
        for stage, cells in _stages(grid):
            for cell in cells:
                made = self._cell(stage, cell)
                self.cells.setdefault(made.name, made)  # a cell listed twice is one run
        if not self.cells:
            raise UserError(f"{grid} has no cells")

    def _cell(self, stage: str, cell: dict) -> Cell:
        if not isinstance(cell, dict) or (wrong := sorted(map(str, set(cell) - {"arg", "overrides", "like", "once"}))):
            found = wrong if isinstance(cell, dict) else repr(cell)[:60]
            raise UserError(
                f"a cell of stage {stage!r} has {found}; a cell is dict(arg=..., overrides=..., like=..., once=...)"
            )
        arg, given = cell.get("arg") or "", cell.get("overrides") or {}
        like = cell.get("like", arg)  # the argument of the cells from which a "best:" takes its value
        if not isinstance(arg, str) or not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise UserError(
                f"a cell of stage {stage!r} has arg={arg!r:.60}, overrides={given!r:.60}; arg is a string, and "
                "overrides are values by dotted path"
            )
        made = self._build(stage, arg, {"labels.stage": stage, **self.common, **given}, like)
        return dataclasses.replace(made, once=bool(cell.get("once")))

    def _build(self, stage: str, arg: str, overrides: dict, like: str = "") -> Cell:
        plain = self._plain(arg, overrides)
        wanted = {name for value in overrides.values() if is_best(value) for name in parse(value).stages}
        trials = tuple(name for name, cell in self.cells.items() if cell.stage in wanted and cell.arg == like)
        for trial_stage in wanted - {self.cells[name].stage for name in trials}:
            raise UserError(
                f"a cell of stage {stage!r} wants {BEST}{trial_stage}, but no cell {like!r} of it comes before"
            )
        return Cell(run_folder.run_name(plain), stage, arg, overrides, plain, trials)

    def _plain(self, arg: str, overrides: dict) -> dict:
        from experiments.config.defaults import complete  # imports jax, which --help does not need

        full_arg = self.full_arg(arg)
        if full_arg not in self._configs:  # most cells of a grid differ in overrides alone
            config = complete(self.get_config(full_arg))
            self._configs[full_arg] = config, to_plain(config)
        config, plain = self._configs[full_arg]
        plain = copy.deepcopy(plain)
        for path, value in overrides.items():
            if isinstance(value, Text) and not is_best(value):
                value = _typed(value, path, _kind(config, path))
            _override(plain, path, to_plain(value, path))
        return with_labels(plain)

    def full_arg(self, arg: str) -> str:
        """The argument after --config's colon, overridden by the cell's keys."""
        pairs = [part for part in f"{self.base_arg},{arg}".split(",") if part.strip()]
        return ",".join({part.partition("=")[0].strip(): part.strip() for part in pairs}.values())

    def select(self, only: str | None = None, name: str | None = None) -> list[Cell]:
        """The cells wanted by --only or --cell with the trials that decide them, in the grid's order."""
        chosen = list(self.cells)
        if name:
            if name not in self.cells:
                raise UserError(f"no cell {name!r} in the grid; --dry_run lists them")
            chosen = [name]
        elif only:
            check_pattern("--only:", only)
            chosen = [n for n, cell in self.cells.items() if re.search(only, n) or re.search(only, cell.arg)]
            if not chosen:
                raise UserError(f"--only={only!r} matches no cell; --dry_run lists them")
        needed, waiting = set(), list(chosen)
        while waiting:  # a trial may wait for trials of its own
            needed.add(name := waiting.pop())
            waiting += set(self.cells[name].trials) - needed
        return [cell for n, cell in self.cells.items() if n in needed]

    def resolve(self, cell: Cell, results: dict[str, dict | None]) -> Cell | None:
        """The cell with its "best:" overrides filled in from its trials' results; None if no trial gave a loss.

        Args:
          results: by the names of `cells`; None where a cell has none.

        Raises:
          NotNeeded: there is nothing to run.
        """
        if not cell.trials:
            return cell
        overrides = dict(cell.overrides)
        for path, value in cell.overrides.items():
            if is_best(value):
                choice = parse(value)
                done = [results.get(name) for name in cell.trials if self.cells[name].stage in choice.stages]
                overrides[path] = chosen_value([result for result in done if result], path, choice)
                if overrides[path] is None:
                    return None
        ready = self._build(cell.stage, cell.arg, overrides)
        for name in cell.trials if cell.once else ():
            if (result := results.get(name)) and _same(result["config"], ready.plain):
                raise NotNeeded(f"not needed: {result['name']} is the same run")
        return ready

    def stand_in(self, cell: Cell) -> dict:
        """The plain config of a cell, each "best:" replaced by its first trial's value: the shapes are the same."""
        if not cell.trials:
            return cell.plain
        trial = self.stand_in(self.cells[cell.trials[0]])  # it may wait for trials of its own
        overrides = {path: lookup(trial, path) if is_best(one) else one for path, one in cell.overrides.items()}
        return self._build(cell.stage, cell.arg, overrides).plain


def check_cells(cells: Sequence[Cell]) -> None:
    """Refuses cells whose configs a run would refuse, before any is trained; those that wait for trials are left out.

    Raises:
      UserError: names the first.
    """
    from experiments.config.schema import unpack_run  # imports jax, which --help does not need

    for cell in cells:
        try:
            if not cell.trials:
                unpack_run(cell.plain)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None


def _same(one: dict, other: dict) -> bool:
    """Whether two configs train alike to the same step."""
    ends = [(plain.get("train") or {}).get("stop_at") or 0 for plain in (one, other)]
    return ends[0] == ends[1] and content_hash(one) == content_hash(other)


def _stages(grid: str) -> list[tuple[str, Sequence[Any]]]:
    """[(stage, its cells)] of a grid file, FILE or FILE:ARGUMENT."""
    path, _, argument = grid.partition(":")
    missing = f"--grid: there is no file {path!r}; {file_meant(path, 'configs/sweeps/uuid_laptop.py')}"
    module = load_module(path, missing)
    name, function = function_of(path, module, "stages", "cells")
    found = call_with(path, name, lambda *given: [*function(*given)], argument, like=function)
    stages = found if name == "stages" else [("full", found)]
    try:
        return [(str(stage), [*cells]) for stage, cells in stages]
    except (TypeError, ValueError):
        raise UserError(f"{grid}: stages() must return [(stage name, [cell, ...]), ...]") from None


def _kind(config: Any, path: str) -> type | None:
    """The type of a ConfigDict's key, that of one that is not set included; None where it has no such key."""
    *sections, last = path.split(".")
    for key in sections:
        config = config.get(key) if is_section(config) else None
    typed = getattr(config, "get_type", None)
    return typed(last) if typed and last in config else None


def _typed(text: str, path: str, kind: type | None) -> Any:
    """A value of the command line as a run's flag of that type reads it."""
    if path in KEYS and not is_plain(path, text):
        return read(path, text)
    if kind is str:
        return str(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"--config.{path}={text}: wanted true or false")
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = str(text)  # "query" of a tuple; otherwise its type is told to be wrong
    if kind is tuple and not isinstance(value, tuple | list):
        return [value]
    return list(value) if isinstance(value, tuple) else value


def _override(plain: dict, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    if path in KEYS and not is_plain(path, value):  # given whole, and absent from most configs
        plain[path] = value
        return
    node = plain
    for key in [*parents, last]:
        if not isinstance(node, dict) or key not in node:
            known = sorted(node) if isinstance(node, dict) else []
            raise UserError(f"override {path!r}: the config has no {key!r} there; known: {', '.join(known)}")
        parent, node = node, node[key]
    if path == RATE:
        refuse_auto(value, f"override {path}")
    number = isinstance(node, float) and isinstance(value, int) and not isinstance(value, bool)
    if not number and node is not None and not is_best(value) and type(value) is not type(node):
        raise UserError(f"override {path}={value!r} is a {type(value).__name__}; the config has {node!r}")
    parent[last] = float(value) if number else value
