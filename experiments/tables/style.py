"""How each method is called and drawn, in every table and figure: names, colours, dashes and markers, once."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Look(NamedTuple):
    """A method's name; its colour and marker where ranks do not matter; {rank: (colour, dash, marker)}."""

    name: str
    colour: str
    marker: str
    ranks: Mapping[int | None, tuple[str, str, str]] = MappingProxyType({})


# Okabe and Ito's palette, for colour-blind readers; each method keeps its colour family, each rank its dash.
METHODS = {
    "fft": Look("FFT", "#000000", "s", {None: ("#000000", "-", "s")}),
    "ft-top2": Look("FT-Top2", "#999999", "s"),
    "bitfit": Look("BitFit", "#CC79A7", "v"),
    "head": Look("head only", "#999999", "x"),
    "lora": Look(
        "LoRA", "#E69F00", "o",
        {8: ("#E69F00", "-", "o"), 32: ("#D55E00", "--", "^"), 256: ("#CC79A7", "-.", "v")},
    ),
    "mora": Look(
        "MoRA", "#0072B2", "D",
        {8: ("#56B4E9", "-", "D"), 32: ("#0072B2", "--", "P"), 256: ("#009E73", "-.", "X")},
    ),
    "lora+": Look("LoRA+", "#882255", "P"),
    "asylora": Look("AsyLoRA", "#117733", "<"),
    "rslora": Look("rsLoRA", "#AA4499", ">"),
    "relora": Look("ReLoRA", "#D55E00", "^"),
    "remora": Look("ReMoRA", "#009E73", "X"),
    "dora": Look("DoRA", "#D55E00", "h"),
    "houlsby": Look("Adapter-H", "#009E73", "^"),
    "pfeiffer": Look("Adapter-P", "#56B4E9", "P"),
    "lin": Look("Adapter-L", "#882255", "X"),
    "adapterdrop": Look("AdapterDrop", "#117733", "d"),
    "preembed": Look("PreEmbed", "#DDCC77", "<"),
    "prelayer": Look("PreLayer", "#AA4499", ">"),
    "lora+pe": Look("LoRA+PE", "#D55E00", "p"),
    "lora+pl": Look("LoRA+PL", "#882255", "H"),
    "prefix": Look("Prefix", "#332288", "*"),
}  # fmt: skip
ORDER = tuple(METHODS)  # of a table's rows
UNKNOWN = Look("", "#999999", "*")
SPARE = ("#F0E442", "#999999", "#882255", "#117733")
RANK_COLOURS = {2: "#882255", 8: "#E69F00", 16: "#56B4E9", 32: "#D55E00", 64: "#0072B2", 128: "#009E73", 256: "#CC79A7"}


def name_of(method: str) -> str:
    """The method's name, "MoRA"; an unknown one unchanged."""
    return METHODS[method].name if method in METHODS else method


def label(method: str, rank: int | None, variant: str = "") -> str:
    """MoRA 8 sharing."""
    parts = (name_of(method), "" if rank is None else str(rank), variant)
    return " ".join(part for part in parts if part)


def line(method: str, rank: int | None, variant: str = "") -> dict[str, Any]:
    """Colour, dash and marker of a curve, the same in every figure."""
    ranks = METHODS.get(method, UNKNOWN).ranks
    if not variant and rank in ranks:
        colour, dash, marker = ranks[rank]
    else:
        colour, dash, marker = SPARE[sum(map(ord, f"{method}{rank}{variant}")) % len(SPARE)], ":", "*"
    return {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.4}


def point(method: str) -> dict[str, Any]:
    """Colour and marker of a method's points, whatever its rank."""
    look = METHODS.get(method, UNKNOWN)
    return {"color": look.colour, "marker": look.marker, "markersize": 7, "linestyle": "none"}
