"""The allowed range of a config's number, in its field's annotation: `rank: Annotated[int, Range(least=1)] = 8`."""

import dataclasses
import functools
import math
import numbers
import struct
import types
import typing
from typing import Any

from lowrank_jax.core.errors import UserError

MOST = 2**31 - 1  # for an int whose Range names no limit: steps, rows and axes are counted in int32
TINY = 2.0**-126  # float32's smallest normal number: XLA reads anything smaller as 0


class OutOfRange(UserError):
    """A number outside its field's range."""


def is_number(value: Any, whole: bool) -> bool:
    """Whether it is a number, or with `whole` a whole number; a bool is neither."""
    return isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may take; NaN and infinity are never allowed.

    A float must lie in its range as float32 too, which is what a device computes with: 1e-60 is 0 there, and 1 - 1e-9
    is 1.

    Attributes:
      least, most: the bounds, themselves allowed; None: no bound (for an int, `most` is then MOST).
      above, below: the same, themselves not allowed.
      also: single values outside the bounds that are allowed as well.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    also: tuple[float, ...] = ()

    def check(self, value: Any, kind: type, where: str) -> None:
        """Refuses a `value` that is not of the `kind`, int or float, or lies outside; `where` names its field.

        Raises:
          OutOfRange: in one line, with what is allowed.
        """
        whole = kind is int
        if not is_number(value, whole):
            wanted = self._words("a whole number" if whole else "a number")
            raise OutOfRange(f"{where} is {value!r}; it must be {wanted}")
        wide = int(value) if whole else _double(value)
        seen = wide if whole else _single(wide)
        if not whole and not math.isfinite(seen):
            raise OutOfRange(f"{where} is {value}; it must be {self._words('a finite number')}")
        if not self._holds(wide):
            raise OutOfRange(f"{where} is {value}; it must {self._bounds()}")
        if not self._holds(seen):
            raise OutOfRange(f"{where} is {value}, in float32 {seen:g}; it must {self._bounds()}")
        if whole and self.most is None and wide > MOST:
            raise OutOfRange(f"{where} is {value}; it must be at most {MOST}")

    def _holds(self, value: float) -> bool:
        inside = (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        return inside or value in self.also

    def _words(self, noun: str) -> str:
        bounds = self._bounds()
        return f"{noun} and {bounds.removeprefix('be ')}" if bounds else noun

    def _bounds(self) -> str:
        """What follows "it must"; "" without bounds."""
        low, high = (self.above if self.least is None else self.least), (self.below if self.most is None else self.most)
        if low is not None and high is not None:
            words = f"lie in {'(' if self.least is None else '['}{low}, {high}{')' if self.most is None else ']'}"
        elif low is not None:
            words = f"be {'above' if self.least is None else 'at least'} {low}"
        elif high is not None:
            words = f"be {'below' if self.most is None else 'at most'} {high}"
        else:
            return ""
        return ", or ".join([words, *map(str, self.also)])


def check_ranges(config: Any, where: str) -> None:
    """Raises at the first number of a dataclass outside its field's Range; for `__post_init__`.

    A Range may annotate a field, the value of an Optional, or the items of a list.

    Args:
      where: what the config is called in messages, "adapter".

    Raises:
      OutOfRange: see `Range.check`.
    """
    for name, hint in _ranged(type(config)):
        check_value(getattr(config, name), hint, f"{where}.{name}")


@functools.cache
def _ranged(cls: type) -> tuple[tuple[str, Any], ...]:
    """(field, annotation) of the fields with a Range."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return tuple((f.name, hints[f.name]) for f in dataclasses.fields(cls) if _has_range(hints[f.name]))


def _has_range(hint: Any) -> bool:
    marks = typing.get_args(hint)
    return any(isinstance(mark, Range) for mark in marks) or any(map(_has_range, marks))


def check_value(value: Any, hint: Any, where: str) -> None:
    """`check_ranges` for one value and its annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        for mark in args[1:]:
            if isinstance(mark, Range):
                mark.check(value, args[0], where)
    elif origin in (typing.Union, types.UnionType):
        for member in args:
            if value is not None and _has_range(member):
                check_value(value, member, where)
    elif origin is tuple:
        if not isinstance(value, list | tuple):
            raise OutOfRange(f"{where} is {value!r}; it must be a list")
        members = [args[0]] * len(value) if args[-1] is Ellipsis else args
        if len(value) != len(members):
            raise OutOfRange(f"{where} is {value!r}; it must have {len(members)} items")
        for i, (item, member) in enumerate(zip(value, members, strict=True)):
            if _has_range(member):
                check_value(item, member, f"{where}[{i}]")
    elif origin is dict:
        for key, item in value.items():
            check_value(item, args[1], f"{where}.{key}")


def _double(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an int of more than 308 digits
        return math.inf if value > 0 else -math.inf


def _single(value: float) -> float:
    """The float32 next to a float, as XLA reads it."""
    try:
        rounded = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return 0.0 if abs(rounded) < TINY else rounded
