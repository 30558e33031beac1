"""A config unpacked: its sections as typed dataclasses, strictly; a mistake names the key and the nearest right one."""

import collections.abc
import dataclasses
import re
import types
import typing
from typing import Any

from experiments.config.plain import is_section, to_plain
from experiments.config.sections import SECTIONS, eval_type, experiment_types
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.patterns import check_pattern
from lowrank_jax.core.ranges import OutOfRange, Range, check_ranges, check_value, is_number
from lowrank_jax.core.rates import RATE, refuse_auto


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole config, unpacked. `trainable` is one of `train.state.TRAINABLE` or (regular expression, bool) rules.

    `adapters` are further sections like `adapter`, for runs that combine families; `evals` are the run's evaluations by
    name, where they are not the task's at `train.eval_every` and `train.eval_steps`.
    """

    name: str | None
    seed: typing.Annotated[int, Range(least=0, most=2**32 - 1)]  # jax uses only its lower 32 bits
    experiment: str
    labels: dict[str, Any]
    trainable: str | tuple[tuple[str, bool], ...]
    base: Any
    adapter: Any
    adapters: tuple[Any, ...]
    task_name: str
    task: Any
    optimizer: Any
    schedule: Any
    restart: Any
    train: Any
    checkpoint: Any
    mesh: Any
    tracking: Any
    export: Any
    start: Any
    evals: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_ranges(self, "config")


def unpack_run(config: Any, sections: collections.abc.Mapping[str, Any] | None = None) -> RunConfig:
    """Unpacks a whole config; absent sections take their dataclass's defaults.

    Args:
      config: mapping or ConfigDict with the sections of SECTIONS and TASKS and the keys of RunConfig.
      sections: section -> dataclass, by default those of `experiment_types()`.

    Raises:
      UserError: a key is unknown, missing or of the wrong type.
    """
    sections = experiment_types() if sections is None else sections
    values = dict(_items(config, "config"))
    known = {"name", "seed", "experiment", "labels", "trainable", "task", "adapters", "evals", *SECTIONS}
    for key in values:
        if key not in known:
            raise _unknown("config", key, known)
    task = dict(_items(values.get("task", {}), "config.task"))
    if "name" not in task:
        raise UserError(f"config.task.name is missing; give one of {sorted(sections['task'])}")
    if not isinstance(task["name"], str):
        raise _wrong(task["name"], str, "config.task.name")
    if task["name"] not in sections["task"]:
        raise UserError(_did_you_mean("task", f"config.task.name={task['name']!r}", task["name"], sections["task"]))
    task_type = sections["task"][task["name"]]
    task_name = task["name"]
    if "name" not in {field.name for field in dataclasses.fields(task_type)}:
        del task["name"]
    unpacked = {}
    for section in SECTIONS:
        value = values.get(section, {})
        without_adapter = section == "adapter" and value is None
        unpacked[section] = None if without_adapter else unpack(value, sections[section], f"config.{section}")
    further = values.get("adapters", ())
    if not isinstance(further, list | tuple):
        raise _wrong(further, tuple, "config.adapters")
    return RunConfig(
        name=_convert(values.get("name"), str | None, "config.name"),
        seed=_convert(values.get("seed", 0), int, "config.seed"),
        experiment=_convert(values.get("experiment", "run"), str, "config.experiment"),
        labels=_convert(values.get("labels", {}), dict[str, Any], "config.labels"),
        trainable=_trainable(values.get("trainable", "adapters")),
        task_name=task_name,
        task=unpack(task, task_type, "config.task"),
        evals=_evals(values.get("evals") or {}),
        adapters=tuple(unpack(one, sections["adapter"], f"config.adapters[{i}]") for i, one in enumerate(further)),
        **unpacked,
    )


def unpack(section: Any, cls: type, where: str) -> Any:
    """Builds the dataclass `cls` from a section, strictly.

    Args:
      section: mapping or ConfigDict; ints pass as floats, lists as tuples; an instance of `cls` passes unchanged.
      cls: dataclass, whose annotations say what is allowed.
      where: dotted path of the section, for messages ("config.optimizer").

    Raises:
      UserError: an unknown key (names the nearest), a value of the wrong type, a missing key, or an error of the
        dataclass.
    """
    if isinstance(section, cls):
        return section
    values = _items(section, where)
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise _unknown(where, key, fields)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise UserError(f"{where}.{name} is missing; give it a value ({_describe(hints[name])})")
    converted = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _evals(section: Any) -> dict[str, Any]:
    named = _items(section, "config.evals")
    if wrong := [name for name in named if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name))]:
        raise UserError(f"config.evals.{wrong[0]}: name an evaluation with letters, digits and _.-")
    return {name: _eval(one, f"config.evals.{name}") for name, one in named.items()}


def _eval(entry: Any, where: str) -> Any:
    try:
        return unpack(entry, eval_type(entry), where)
    except UserError as error:  # a dataclass does not know its entry's name
        start, colon, said = str(error).partition(": ")
        raise UserError(f"{where}: {said}" if colon and start == "evals" else str(error)) from None


def _trainable(value: Any) -> str | tuple[tuple[str, bool], ...]:
    where = "config.trainable"
    if isinstance(value, str):
        from lowrank_jax.train.state import TRAINABLE  # imports jax

        if value not in TRAINABLE:
            raise UserError(_did_you_mean("rule set", f"{where}={value!r}", value, TRAINABLE))
        return value
    rules = _convert(value, tuple[tuple[str, bool], ...], where)
    for pattern, _ in rules:
        check_pattern(f"{where}: rule", pattern)
    return rules


def _items(section: Any, where: str) -> dict:
    if not is_section(section):
        raise UserError(f"{where}={section!r} is not a section; give it keys and values")
    return dict(section.items())


def _did_you_mean(kind: str, shown: str, name: Any, known: typing.Iterable[str]) -> str:
    from lowrank_jax.core.paths import nearest  # imports jax, which only this message needs

    close = nearest(str(name), known)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
    return f"unknown {kind} {shown}; {hint}"


def _unknown(where: str, key: Any, known: typing.Iterable[str]) -> UserError:
    return UserError(_did_you_mean("config key", f"{where}.{key}", key, known))


def _wrong(value: Any, wanted: Any, where: str) -> UserError:
    if where == f"config.{RATE}":
        refuse_auto(value, where)
    kind = "a section" if is_section(value) else f"a {type(value).__name__}"
    return UserError(f"{where}={value!r} is {kind}; wanted {_describe(wanted)}")


def _convert(value: Any, wanted: Any, where: str) -> Any:
    """`value` converted to the annotation `wanted`, or a UserError."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is typing.Annotated:
        if is_number(value, whole=False):
            check_value(value, wanted, where)
        return _convert(value, args[0], where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, wanted, args, where)
    if origin is typing.Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in args)
    elif wanted in (None, type(None)):
        fits = value is None
    elif wanted is Any:
        return to_plain(value, where) if is_section(value) else value
    elif wanted is bool:
        fits = isinstance(value, bool)
    elif wanted in (int, float):
        fits = is_number(value, whole=wanted is int)
        return wanted(value) if fits else _raise(_wrong(value, wanted, where))
    elif isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        return unpack(value, wanted, where)
    elif (origin or wanted) in (tuple, list, collections.abc.Sequence):
        return _convert_sequence(value, wanted, origin or wanted, args, where)
    elif (origin or wanted) in (dict, collections.abc.Mapping):
        if not is_section(value):
            raise _wrong(value, wanted, where)
        key_type, value_type = args or (Any, Any)
        pairs = ((key, item, f"{where}.{key}") for key, item in value.items())
        return {_convert(key, key_type, path): _convert(item, value_type, path) for key, item, path in pairs}
    elif (origin or wanted) is collections.abc.Callable:
        fits = callable(value)
    else:
        fits = isinstance(value, origin or wanted)
    return value if fits else _raise(_wrong(value, wanted, where))


def _convert_union(value: Any, wanted: Any, members: tuple, where: str) -> Any:
    for member in members:
        if type(value) is member:
            return value
    sections = [member for member in members if isinstance(member, type) and dataclasses.is_dataclass(member)]
    if len(sections) == 1 and is_section(value):
        return unpack(value, sections[0], where)  # its own message says more than "wanted this or that"
    for member in members:
        try:
            return _convert(value, member, where)
        except OutOfRange:  # the right kind: its own message says more than "wanted this or that"
            raise
        except UserError:
            continue
    raise _wrong(value, wanted, where)


def _convert_sequence(value: Any, wanted: Any, kind: type, args: tuple, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise _wrong(value, wanted, where)
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise _wrong(value, wanted, where)
        item_types = args
    else:
        item_types = [args[0] if args else Any] * len(value)
    pairs = enumerate(zip(value, item_types, strict=True))
    items = [_convert(item, item_type, f"{where}[{i}]") for i, (item, item_type) in pairs]
    return items if kind is list else tuple(items)


def _raise(error: UserError) -> typing.NoReturn:
    raise error


def _describe(wanted: Any) -> str:
    """An annotation in words, for messages."""
    origin, args = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(member) for member in args)
    if origin is typing.Literal:
        choices = [repr(choice) for choice in args]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if origin is typing.Annotated:
        return _describe(args[0])
    if wanted in (None, type(None)):
        return "None"
    if wanted is bool:
        return "True or False"
    if wanted in (int, float, str):
        return {int: "an int", float: "a float", str: "a string"}[wanted]
    if (origin or wanted) in (tuple, list, collections.abc.Sequence):
        if origin is tuple and args and args[-1] is not Ellipsis:
            return f"({', '.join(_describe(item) for item in args)})"
        return f"a list of ({_describe(args[0])})" if args else "a list"
    if (origin or wanted) in (dict, collections.abc.Mapping) or dataclasses.is_dataclass(wanted):
        return "a section"
    return getattr(wanted, "__name__", str(wanted))
