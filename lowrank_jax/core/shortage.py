"""One line for an error that says memory is short, on a device or in the host, wherever it was raised."""

import contextlib
import errno
import re
from collections.abc import Iterator

from lowrank_jax.core.errors import UserError, one_line

GIB = 2**30
UNITS = {"b": 1, "bytes": 1} | {
    f"{name}i{b}": 2 ** (10 * n) for n, name in enumerate("kmgt", 1) for b in ("b", "bytes")
}
REMEDIES = (
    "lower train.batch_size, raise train.accumulate, set base.remat or base.quantize, shorten the sequences, or use "
    "more devices"
)
ELSEWHERE = "end other programs on it, or take a smaller batch or base, or a device with more memory"
RUNTIME = ("JaxRuntimeError", "XlaRuntimeError")  # by name: this module imports no jax
FULL = re.compile(r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY")
ON_CHIP = re.compile(r"shared memory|[vs]mem\b", re.IGNORECASE)  # a kernel's, which no setting of a user's changes
ASKED = re.compile(r"allocat\w* ([\d.]+) ?([KMGTkmgt]?i?[Bb]\w*)")


def is_short(error: BaseException) -> bool:
    """Whether it says that the memory of a device or of the host is used up."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    runtime = any(kind.__name__ in RUNTIME for kind in type(error).__mro__)
    return runtime and bool(FULL.search(str(error))) and not ON_CHIP.search(str(error))


@contextlib.contextmanager
def named(what: str, remedy: str = REMEDIES) -> Iterator[None]:
    """Within it a lack of memory is an error that its user can fix.

    Args:
      what: is under way, for the message.
      remedy: what to do about it.

    Raises:
      UserError: memory was short; says how much was asked for.
    """
    try:
        yield
    except Exception as error:
        if not is_short(error):
            raise
        raise UserError(f"out of memory in {what}: {_asked(error)}; {remedy}") from error


def _asked(error: Exception) -> str:
    """What was asked for, or where the error does not say so, its own words."""
    found = ASKED.search(str(error))
    unit = UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        return one_line(error)
    return f"{float(found[1].rstrip('.')) * unit / GIB:.2f} GiB more were asked for than are left"
