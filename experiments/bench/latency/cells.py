"""What is measured: batches, lengths and adapter sizes of LoRA's Table 1 and Fig. 5, and the rank that a size means.

A size is a number of parameters, "0.5M", for which each method takes the rank with the nearest count. The counts are
those of Hu et al., section 5.1, over L layers of width d:

    LoRA on query and value   2 (2 L) d r
    Adapter-L                 L (2 d r + r + d) + L 2 d    (one a layer, with a LayerNorm)
    Adapter-H                 2 L (2 d r + r + d)          (two a layer)

On GPT-2 medium (L = 24, d = 1024) 0.5M means r = 5, 9 and 5, and 11M r = 112, 222 and 111. MoRA's square has as many
parameters as LoRA of its rank, and takes that. A size without a letter, "100", is a rank, as in Fig. 5.
"""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lowrank_jax.adapters import AdapterConfig, make_plan
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.types import Tree

UNITS = {"": 1, "k": 1e3, "M": 1e6}
CELL = re.compile(r"(\d+)x(\d+)x(\d+(?:\.\d+)?)([kM]?)")
TABLE1 = ("32x512x0.5M", "16x256x11M", "1x128x11M")
# Our choice: the figure has batches, lengths and bottlenecks as axes, and its values are only in the picture.
FIG5 = tuple(
    f"{batch}x{length}x{rank}" for length in (128, 256, 512) for batch in (1, 4, 16, 32) for rank in (10, 100, 250)
)


class Variant(NamedTuple):
    """A way of running the base: alone (no method), with an adapter beside it, or with one merged into it."""

    method: str | None
    merged: bool = False

    @property
    def name(self) -> str:
        """ "base", "lora", "lora merged"."""
        return " ".join([self.method or "base", *(["merged"] if self.merged else [])])


BASE = Variant(None)
OF_TABLE = (BASE, Variant("lora", True), Variant("mora", True), Variant("lora"), Variant("lin"), Variant("houlsby"))
OF_MAP = (BASE, Variant("lin"), Variant("houlsby"))


class Cell(NamedTuple):
    """Rows of a batch, tokens of a row, and the adapters' size as it was written: "0.5M" or a rank."""

    batch: int
    length: int
    size: str

    @property
    def name(self) -> str:
        """32x512x0.5M."""
        return f"{self.batch}x{self.length}x{self.size}"


def read_cells(given: Iterable[str]) -> list[Cell]:
    """Reads cells from words like "32x512x0.5M" (parameters) or "32x512x100" (a rank).

    Raises:
      UserError: names the first word that is none.
    """
    cells = []
    for word in given:
        found = CELL.fullmatch(word)
        size = found and float(found[3]) * UNITS[found[4]]
        if not found or not min(int(found[1]), int(found[2]), size or 0) or (not found[4] and "." in found[3]):
            raise UserError(
                f"--cells: {word!r} is no batch x tokens x size; write 32x512x0.5M, or 32x512x100 for a rank"
            )
        cells.append(Cell(int(found[1]), int(found[2]), found[3] + found[4]))
    if not cells:
        raise UserError("--cells is empty; leave it out, or write 32x512x0.5M")
    return cells


def adapter_of(method: str, size: str, params: Tree) -> AdapterConfig:
    """The adapter of a method and size on a base's parameters (or shapes): LoRA and MoRA on query and value.

    Raises:
      UserError: the family cannot serve that rank, or the base lacks its places.
    """
    if size[-1] not in UNITS:
        return AdapterConfig(method, rank=int(size))  # pyright: ignore[reportArgumentType]
    wanted = float(size[:-1]) * UNITS[size[-1]]

    def count(rank: int) -> int:
        counted: Any = "lora" if method == "mora" else method
        return make_plan(params, AdapterConfig(counted, rank=rank)).parameters

    slope = count(2) - count(1)
    rank = round((wanted - (count(1) - slope)) / slope)
    return AdapterConfig(method, rank=max(rank, 1))  # pyright: ignore[reportArgumentType]
