"""Tells an error that says memory is short, on a device or in the host, from others; and what to do about it."""

import errno
import re

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
FULL = re.compile(r"RESOURCE_EXHAUSTED.*(memory|alloc|\bhbm)|out.of.memory", re.IGNORECASE | re.DOTALL)
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


def asked(error: BaseException) -> str:
    """What was asked for, in GiB; "" where the error does not say it."""
    found = ASKED.search(str(error))
    unit = UNITS.get(found[2].lower()) if found else None
    return f"{float(found[1].rstrip('.')) * unit / GIB:.2f} GiB" if found and unit else ""
