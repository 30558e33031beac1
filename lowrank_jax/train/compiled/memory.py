"""Compares a compiled step's memory with its device's, before any weight is loaded."""

import contextlib
import dataclasses
import os
import resource
import sys
from pathlib import Path
from typing import Any

import jax

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.shortage import GIB, REMEDIES
from lowrank_jax.core.types import Device


class TooLarge(UserError):
    """A compiled function needs more memory than its device has."""

    here = True


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes per device of one execution of a compiled function.

    Attributes:
      arguments, outputs: its inputs and results.
      temporaries: buffers that are only used during the execution.
      aliased: results that reuse a donated argument's buffer.
      code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    @property
    def needed(self) -> int:
        """arguments + temporaries + outputs - aliased."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


def memory_report(compiled: Any) -> MemoryReport | None:
    """The compiler's memory count for `jax.jit(f).lower(...).compile()`; None where the backend does not count."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return MemoryReport(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def device_limit(device: Device | None = None) -> int | None:
    """Bytes that a program may use on one device.

    An accelerator reports its allocator's limit. A CPU "device" may use what the machine has free, the container's
    limit included; all CPU devices of a machine share it.

    Returns:
      bytes, or None where the device does not say.
    """
    place = jax.local_devices()[0] if device is None else device
    if place.platform == "cpu":
        return _host_memory()
    return (place.memory_stats() or {}).get("bytes_limit")


def check_fits(compiled: Any, device: Device | None = None, what: str = "step") -> MemoryReport | None:
    """Prints "step needs X GiB of Y GiB"; an error where it does not fit.

    Args:
      compiled: an XLA executable.
      device: one that it runs on; by default the first local one.
      what: its name in the printed line.

    Raises:
      TooLarge: it needs more than the device has.
    """
    place = jax.local_devices()[0] if device is None else device
    report, limit = memory_report(compiled), device_limit(place)
    shared = len(jax.local_devices()) if place.platform == "cpu" else 1  # simulated devices share one memory
    if report is None or limit is None:
        need = f"{_gib(report.needed)} GiB" if report else "an uncounted amount of memory"
        _say(f"{what} needs {need}; {place.device_kind} does not say whether that fits")
        return report
    needed = report.needed * shared
    places = f" ({shared} CPU devices)" if shared > 1 else ""
    _say(f"{what} needs {_gib(needed)} of {_gib(limit)} GiB{places}")
    if needed > limit:
        raise TooLarge(
            f"the {what} needs {_gib(needed)} GiB ({_gib(report.arguments * shared)} of weights, states and inputs, "
            f"{_gib(report.temporaries * shared)} of activations) and {place.device_kind} has {_gib(limit)} GiB; "
            f"{REMEDIES}"
        )
    return report


def peak_bytes(device: Device | None = None) -> int | None:
    """Most bytes in use at once since the start: the allocator's count, or the process's peak resident set on CPU."""
    place = jax.local_devices()[0] if device is None else device
    if place.platform == "cpu":
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB, on macOS in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return (place.memory_stats() or {}).get("peak_bytes_in_use")


def _host_memory() -> int:
    limits = [_available()]
    for limit, usage in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.stat"),  # cgroup 2
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.stat"),  # cgroup 1
    ):
        with contextlib.suppress(OSError, ValueError):  # no such controller, or "max"
            limits.append(max(0, int(Path(limit).read_text()) - _anonymous(Path(usage).read_text())))
    return min(limits)


def _available() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _anonymous(stat: str) -> int:
    """Bytes in use in a container, without its page cache, which can be dropped."""
    values = dict(line.split() for line in stat.splitlines())
    return int(values.get("anon") or values.get("total_rss") or 0)


def _gib(count: int) -> str:
    return f"{count / GIB:.2f}"


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, flush=True)
