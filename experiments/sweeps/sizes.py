"""How many cells may share a program: after one that failed, half as many of its cells."""

import math
from collections.abc import Sequence

from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Cell


class Sizes:
    """The largest groups that cells may be part of.

    After a lack of memory that holds for all cells that can share the program; after another error for the cells that
    did, as one of them may be the cause.
    """

    def __init__(self):
        self._most: dict[str, int] = {}  # a cell's name or group key -> cells of a program

    def of(self, cell: Cell) -> float:
        """The most cells of a program that has this one."""
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
        """After the program of these cells has failed; returns the new size.

        Args:
          short: whether it was short of memory.
        """
        half = len(cells) // 2
        for key in {group_key(cells[0].plain)} if short else {cell.name for cell in cells}:
            self._most[key] = half
        return half
