"""Writes what --help says about --config: its syntax and sections, and a named file's arguments and keys."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.config.files import ROOT, load_module
from experiments.config.sections import SECTIONS, TASKS

EXAMPLE = "configs/mora_uuid.py"
ASK = "?"  # as configs.common.ASK: parse_arg raises an error that lists the `arguments`


def help_of(name: str | None, config: Any) -> str:
    """The help on --config=FILE:ARGUMENT, from the complete ConfigDict that it gives; the general help for None."""
    if name is None:
        return general()
    from experiments.config.plain import to_plain  # imports jax

    return of_file(name, to_plain(config))


def general() -> str:
    """How --config is written, the config files, and the sections with the first lines of their docstrings."""
    found = [(path, _config(path)) for path in sorted((ROOT / "configs").glob("*.py"))]
    files = [(str(path.relative_to(ROOT)), text) for path, text in found if text]
    sections = [(name, _first_line(target)) for name, target in SECTIONS.items()]
    tasks = [(f"task (name={name})", _first_line(target)) for name, target in TASKS.items()]
    return "\n".join([
        "\nThe config:",
        "  --config=FILE:ARGUMENT",
        f"    A config file and its argument, key=value,key=value: --config={EXAMPLE}:method=lora,rank=8",
        f"    --help --config={EXAMPLE} lists the file's arguments, and all keys with their values.",
        *_aligned(files),
        "  --config.SECTION.KEY=VALUE",
        "    Sets one key of the config. Its sections:",
        *_aligned([*sections, *tasks]),
    ])  # fmt: skip


def of_file(name: str, plain: dict) -> str:
    """A config file's arguments, and all keys of its config as flags.

    Args:
      name: FILE:ARGUMENT.
      plain: the complete config that it gives.
    """
    path = name.partition(":")[0]
    declared = arguments(path)
    lines = [f"\n{path} declares no arguments."]
    if declared:
        lines = [f"\nArguments of {path} (--config={path}:KEY=VALUE,...):"]
    lines += _aligned([(f"{key}={_shown(default)}", words) for key, default, words in declared])
    lines += [f"\nKeys and their values with --config={name}:"]
    return "\n".join([*lines, *(f"  --config.{key}={_shown(value)}" for key, value in _leaves(plain, ""))])


def arguments(path: str) -> list[tuple[str, Any, str]]:
    """(key, default, what it takes) of each argument that a config file passes to `configs.common.parse_arg`."""
    if not path.endswith(".py"):
        return []
    try:
        load_module(path).get_config(ASK)
    except Exception as answer:  # a file that does not use parse_arg may raise anything
        return getattr(answer, "arguments", [])
    return []


def _config(path: Path) -> str:
    """The first line of a config file's docstring; "" for another module."""
    tree = ast.parse(path.read_text())
    found = any(isinstance(node, ast.FunctionDef) and node.name == "get_config" for node in tree.body)
    return (ast.get_docstring(tree) or "").partition("\n")[0] if found else ""


def _first_line(target: str) -> str:
    """The first line of the docstring of the class "module:name", read from its file: importing it takes seconds."""
    module, name = target.split(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    return (ast.get_docstring(found) or "").partition("\n")[0]


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        yield path, node
        return
    for key in sorted(node):
        yield from _leaves(node[key], f"{path}.{key}".strip("."))


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"    {name.ljust(width)}  {text}".rstrip() for name, text in rows]


def _shown(value: Any) -> str:
    """A value as it is written in a flag."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return repr(tuple(value))
    return "(not set)" if value is None else json.dumps(value)
