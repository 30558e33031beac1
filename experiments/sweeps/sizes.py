"""How many cells of a sweep may share a program: half as many as in one that has failed."""

import math
from collections.abc import Sequence

from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Cell


class Sizes:
    """Limits on the number of cells in a program, which a sweep lowers after a failure.

    A limit after a lack of memory is for all cells that could share the program. One after another error is for the
    cells that were in it alone, as one of them may be the cause.
    """

    def __init__(self):
        self._most: dict[str, int] = {}  # a cell's name or group key -> cells of a program

    def of(self, cell: Cell) -> float:
        """The most cells that a program with this one may have."""
        return min(self._most.get(key, math.inf) for key in (cell.name, group_key(cell.plain)))

    def fit(self, cells: Sequence[Cell]) -> int:
        """How many of the first cells may share a program."""
        least, count = math.inf, 0
        for cell in cells:
            least = min(least, self.of(cell))
            if count >= least:
                break
            count += 1
        return count

    def halve(self, cells: Sequence[Cell], short: bool) -> int:
        """Sets the limit to half of these cells, whose program has failed, and returns it.

        Args:
          short: whether it was short of memory.
        """
        half = len(cells) // 2
        for key in {group_key(cells[0].plain)} if short else {cell.name for cell in cells}:
            self._most[key] = half
        return half
