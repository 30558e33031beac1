"""Loads files by path: Python files of configs, grids and suites, which are data; and a run's config.json."""

import contextlib
import difflib
import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments.config.arguments import TABLE, take_names
from experiments.config.plain import check_size, is_section
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of, read_bytes
from lowrank_jax.core.json_text import read_json

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ("data", "chosen", "place")  # keys of a run's config.json that are not part of its config
CONFIG = "config.json"


def load_module(path: str | Path, missing: str = "") -> ModuleType:
    """A Python file as a module, executed at each call.

    Args:
      missing: the message where there is no such file.

    Raises:
      UserError: there is no such file, or it cannot be read or executed; names the file, its line and the error.
    """
    source = read_bytes(path, missing)
    module = ModuleType(Path(path).stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(_said(path, error)) from error
    return module


def call(path: str | Path, function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a loaded file returns.

    Raises:
      UserError: it raises; names the file, its line and the error.
    """
    try:
        return function(*args)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(_said(path, error)) from error


def call_with(
    path: str | Path, name: str, function: Callable[..., Any], argument: str | None, like: Callable | None = None
) -> Any:
    """`call` with the text after a file's colon, where the function takes one; "" or None: there is no such text.

    Args:
      name: of the function, for messages.
      like: a function that takes the same arguments, which `function` does not name itself.

    Raises:
      UserError: as `call`; or the function takes no argument and there is one.
    """
    given = [argument or None] if _takes_one(like or function) else []
    if argument and not given:
        raise UserError(f"{path}: its {name} takes no argument; leave out {argument!r}")
    return call(path, function, *given)


def function_of(path: str | Path, module: ModuleType, *names: str) -> tuple[str, Callable[..., Any]]:
    """(name, function) of the first of these functions that a loaded file has.

    Raises:
      UserError: it has none.
    """
    for name in names:
        if callable(found := getattr(module, name, None)):
            return name, found
    listed = " nor ".join(f"{name}()" for name in names)
    raise UserError(f"{path} defines {'neither' if len(names) > 1 else 'no'} {listed}; see configs/ for examples")


def config_maker(path: str | Path) -> Callable[[str | None], Any]:
    """argument -> ConfigDict, of a config file in Python with `get_config`, or of a run's config.json.

    Raises:
      UserError: there is no such file, it has no `get_config`, or it is not a run's config. The function returned also
        raises it where `get_config` raises anything or returns no mapping, or where a run's config gets an argument.
    """
    if kind_of(path) in (None, "folder"):
        raise UserError(_no_config(path))
    if str(path).endswith(".json"):
        plain = read_run_config(path)
        take_names(None)
        return lambda argument: _of_run(path, plain, argument)
    module = load_module(path)
    take_names(getattr(module, TABLE, None))
    _, get_config = function_of(path, module, "get_config")

    return lambda argument: _section(path, call_with(path, "get_config", get_config, argument))


def name_by(path: str | Path) -> None:
    """Names keys by the arguments of a config file from here on, without its config; see `arguments`."""
    take_names(getattr(load_module(path), TABLE, None) if kind_of(path) == "file" else None)


def read_run_config(path: str | Path) -> dict[str, Any]:
    """The config of a run's config.json, without the records of its data.

    Raises:
      UserError: there is no such file, or it is not a run's config.
    """
    remedy = "give the config.json of a run, or a config file in Python such as configs/mora_uuid.py"
    plain = read_json(path, remedy, finite=True)
    if not isinstance(plain, dict) or not isinstance(plain.get("task"), dict):
        raise UserError(f"{path} is no config of a run: it has no section task; {remedy}")
    return {key: value for key, value in plain.items() if key not in RECORDS}


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):  # it takes no argument, or is a built-in without a signature
        return False
    return True


def _of_run(path: str | Path, plain: dict[str, Any], argument: str | None) -> Any:
    if argument:
        raise UserError(f"{path} is a run's config and takes no argument {argument!r}; use --config.key=value")
    return _section(path, {key: _frozen(value) for key, value in plain.items()})


def _frozen(value: Any) -> Any:
    """A JSON value with tuples for its lists, as configs have them."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _section(path: str | Path, config: Any) -> Any:
    from ml_collections import ConfigDict

    if isinstance(config, Mapping):
        if wrong := [key for key in config if not isinstance(key, str)]:
            raise UserError(f"{path}: the config has the key {wrong[0]!r}; keys must be strings")
        config = call(path, ConfigDict, dict(config))
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config returned {_short(config)}; it must return a ConfigDict or a dict")
    _check_sizes(config, "config")
    return config


def _check_sizes(value: Any, where: str) -> None:
    """Refuses whole numbers that Python cannot print, before a flag shows one as its default."""
    if isinstance(value, int):
        check_size(value, where)
    elif is_section(value):
        for key, item in value.items():
            _check_sizes(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_sizes(item, f"{where}[{i}]")


def _no_config(path: str | Path) -> str:
    """The message where there is no config file: where it was looked for, and what may be meant."""
    kind, place = kind_of(path), Path(path)
    if kind == "folder":
        inside = f"; give {place / CONFIG}" if kind_of(place / CONFIG) == "file" else ""
        return f"no config file {path}: it is a folder{inside}"
    if not place.is_absolute() and kind_of(ROOT / place) == "file":
        return f"no config file {path} in {Path.cwd()}; give its whole path: {ROOT / place}"
    where = "" if place.is_absolute() else f" in {Path.cwd()}"
    return f"no config file {path}{where}; {file_meant(path, ROOT / 'configs/mora_uuid.py')}"


def file_meant(path: str | Path, example: str | Path) -> str:
    """The remedy for a file that is not there: the name most like it beside it, or in the example's folder.

    Args:
      example: a file of this kind.
    """
    place = Path(path)
    for folder in (place.parent, ROOT / place.parent, ROOT / Path(example).parent):
        names = []
        with contextlib.suppress(OSError, ValueError):
            names = [file.name for file in folder.iterdir() if file.suffix == (place.suffix or ".py")]
        if close := difflib.get_close_matches(place.name, names, n=1):
            return f"did you mean {folder / close[0]}?"
    return f"give one such as {example}"


def _said(path: str | Path, error: BaseException) -> str:
    """ "FILE, line N: TYPE: message"; N is the last line of the traceback that is in the file itself."""
    if isinstance(error, SyntaxError):
        line = f", line {error.lineno}" if error.lineno else ""
        return f"{path}{line}: {type(error).__name__}: {error.msg}; correct the file"
    frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = f", line {frames[-1]}" if frames else ""
    what = f": {' '.join(str(error).split())}" if str(error) else ""
    return f"{path}{line}: {type(error).__name__}{what}; correct the file"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}{'...' if len(text) > 60 else ''}, a {type(value).__name__}"
