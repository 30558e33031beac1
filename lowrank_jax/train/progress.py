"""Words before a run's progress bar while something other than a step takes long: compiling, above all."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

_bars: list[Any] = []  # of the loops that run; the last one is written to


@contextlib.contextmanager
def showing(bar: Any) -> Iterator[None]:
    """Within it `doing` writes to this bar, a tqdm."""
    _bars.append(bar)
    try:
        yield
    finally:
        _bars.remove(bar)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Within it the bar begins with these words. Only on a terminal: in a file each change would be a line."""
    bar = _bars[-1] if _bars else None
    if bar is None or bar.disable or not sys.stderr.isatty():
        yield
        return
    bar.set_description_str(what)
    try:
        yield
    finally:
        bar.set_description_str("")
