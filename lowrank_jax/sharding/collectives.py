"""What a compiled program moves between devices: its collectives, read from XLA's text of it."""

import collections
import dataclasses
import math
import re
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}  # of one entry; other types end in their number of bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_OPERATION = re.compile(r"^(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_NUMBER = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """Transfers of one kind and size.

    Attributes:
      kind: one of KINDS.
      nbytes: of the largest array that one leaves on a device.
      times: in one execution of the program; a loop counts as often as it runs, where XLA knows that, and
        every branch of a condition counts.
    """

    kind: str
    nbytes: int
    times: int

    @property
    def total(self) -> int:
        """Bytes of all of them, on one device."""
        return self.nbytes * self.times


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program, those with the most bytes in total first.

    Args:
      text: `compiled.as_text()`.
    """
    bodies, entry = _computations(text)
    # On a TPU one transfer can be several operations on one channel, each fused with other work; some of them may be in
    # a loop that runs meanwhile. An operation that is not fused is a transfer of its own, whatever its channel: jax
    # gives one channel to all transfers that a program asks for itself (`jax.lax.ppermute`).
    runs = _runs(bodies, entry)
    lines = [line for body in bodies.values() for _, operation, line in body if operation == "fusion"]
    fused = {name for line in lines for name in _CALLED.findall(line)}
    transfers: dict[Any, tuple[str, int, int]] = {}
    for name, times in runs.items():
        for number, (result, operation, line) in enumerate(bodies[name]):
            if (kind := operation.removesuffix("-start")) in KINDS:
                nbytes = max(map(_nbytes, _ARRAY.findall(result)), default=0)
                channel = _CHANNEL.search(line) if name in fused else None
                key = channel[1] if channel else (name, number)
                _, most, least = transfers.get(key, (kind, nbytes, times))
                transfers[key] = (kind, max(most, nbytes), min(least, times))
    found = collections.Counter()
    for kind, nbytes, times in transfers.values():
        found[kind, nbytes] += times
    counted = [Collective(kind, nbytes, times) for (kind, nbytes), times in found.items()]
    return sorted(counted, key=lambda one: (-one.total, one))


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """({computation: [(type of the result, operation, line)]}, name of the first one that runs)."""
    bodies: dict[str, list[tuple[str, str, str]]] = {}
    entry, here = "", ""
    for line in map(str.strip, text.splitlines()):
        if (head := _COMPUTATION.match(line)) and " = " not in line.split("->")[0]:
            here = head[2]
            bodies[here] = []
            entry = here if head[1] else entry
        elif here and (operation := _OPERATION.match(line)):
            bodies[here].append((operation[1], operation[2], line))
    return bodies, entry


def _runs(bodies: dict[str, list[tuple[str, str, str]]], entry: str) -> dict[str, int]:
    """{computation: how often it runs}."""
    runs: collections.Counter[str] = collections.Counter()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for _, operation, line in bodies[name]:
            trips = _trips(bodies, line) if operation == "while" else 1
            called = _CALLED.findall(line) + [
                word.strip().lstrip("%") for group in _BRANCHES.findall(line) for word in group.split(",")
            ]
            for each in called:
                if each in bodies:
                    visit(each, times * trips)

    visit(entry, 1)
    return runs


def _trips(bodies: dict[str, list[tuple[str, str, str]]], loop: str) -> int:
    """How often a loop runs: as XLA says, or up to the one number that its condition compares with; otherwise 1."""
    if known := _TRIPS.search(loop):
        return int(known[1])
    condition = _CONDITION.search(loop)
    lines = [line for *_, line in bodies.get(condition[1], [])] if condition else []
    numbers = [int(found[1]) for line in lines if (found := _NUMBER.search(line))]
    return numbers[0] if len(numbers) == 1 and any("direction=LT" in line for line in lines) else 1


def _nbytes(array: tuple[str, str]) -> int:
    kind, sizes = array
    numbers = re.findall(r"\d+", kind)
    bits = BITS[kind] if kind in BITS else int(numbers[0]) if numbers else 8
    return math.prod(map(int, filter(None, sizes.split(",")))) * bits // 8
