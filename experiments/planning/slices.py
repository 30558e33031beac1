"""The smallest slice of a kind on which a step fits."""

from collections.abc import Callable

from experiments.planning.needs import Needs
from experiments.planning.topology import Topology

# (slice) -> bytes a device of the step's arguments; None where the config's mesh or batch cannot be divided so.
Given = Callable[[Topology], int | None]
Compiled = Callable[[Topology], Needs]


def smallest(asked: Topology, found: Needs, given: Given, compiled: Compiled) -> tuple[Topology, Needs] | None:
    """The smallest slice that fits and what the step needs there; None where none of those offered does.

    More devices of one kind never need more memory each, so that the slices are halved between one that fits and one
    that does not; those whose arguments alone are too large are not compiled for.

    Args:
      asked: a slice that was compiled for already, and
      found: what the step needs there.
      given, compiled: of another slice.
    """
    fits = found.fits(asked.usable)
    others = [one for one in asked.others() if (one.count < asked.count) == fits and one.count != asked.count]
    known = {asked: found}
    candidates = [one for one in others if (size := given(one)) is not None and size <= one.usable]
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        known[candidates[middle]] = compiled(candidates[middle])
        if known[candidates[middle]].fits(asked.usable):
            high = middle
        else:
            low = middle + 1
    best = candidates[low] if low < len(candidates) else asked if fits else None
    return best and (best, known[best])
