"""What the records say of three claims, as sentences: MoRA's advantage at tuned rates, and LoRA's best rate by rank."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.tables import style
from experiments.tables.mora.rows import HIGHER, LOWER, NEAR, SEEDS, Loss, separated
from experiments.tables.rates.rows import RateRow

SCALES = {"lora": "alpha/r", "rslora": "alpha/sqrt(r)"}
OTHERS = ("lora", "rslora", "dora")  # low-rank methods that MoRA is compared with


class Comparison(NamedTuple):
    """MoRA beside another method of equal rank.

    Attributes:
      verdict: of `separated`, on MoRA's mean loss.
      edges: labels of those of the two rows beside whose best rate a better one may lie.
    """

    verdict: str
    edges: list[str]


def comparisons(rows: Sequence[RateRow], variant: str, other: str) -> dict[int, Comparison]:
    """{rank: comparison} of a variant of MoRA with another method, each at its best rate, where both have SEEDS seeds.

    Args:
      rows: of one setting.
      variant: of MoRA.
      other: a method.
    """
    ours, theirs = _tuned(rows, "mora", variant), _tuned(rows, other)
    found = {}
    for rank in sorted({*ours} & {*theirs}):
        (mine, loss), (its, against) = ours[rank], theirs[rank]
        edges = [row.label for row in (mine, its) if row.edge or row.edge_of_seeds]
        found[rank] = Comparison(separated(loss, against), edges)
    return found


def sentences(rows: Sequence[RateRow]) -> list[str]:
    """The sentences that the rows of one setting support, one a claim and variant; [] where they are too few."""
    found = []
    for variant in dict.fromkeys(row.variant for row in rows if row.method == "mora"):
        for other in OTHERS:
            if at := comparisons(rows, variant, other):
                name, verdicts = style.name_of(other), {rank: one.verdict for rank, one in at.items()}
                edges = ", ".join(dict.fromkeys(label for one in at.values() for label in one.edges))
                unsure = f" Not settled: a better rate may lie beyond the best one of {edges}." if edges else ""
                found.append(f"MoRA {variant} against {name}, each at its own rate: {_by_verdict(verdicts)}.{unsure}")
    for method, scale in SCALES.items():
        found += _rates(rows, method, scale)
    if short := [row.label for row in rows if row.method in ("fft", *SCALES) and row.best and not seeded(row)]:
        found.append(
            f"No conclusion is drawn from the best rate of {', '.join(short)}: it, or a rate beside it, has fewer than "
            f"{SEEDS} seeds."
        )
    return found


def seeded(row: RateRow) -> bool:
    """Whether the best rate and those beside it were each run with SEEDS seeds; diverged runs count.

    With fewer, another rate may be the best.
    """
    if not row.best:
        return False
    place = row.points.index(row.best)
    return all(len(point.losses) + point.lost >= SEEDS for point in row.points[max(place - 1, 0) : place + 2])


def _by_verdict(at: dict[int, str]) -> str:
    words = {LOWER: "a lower loss at", HIGHER: "a higher loss at", NEAR: "not separated at"}
    said = {verdict: [rank for rank, one in sorted(at.items()) if one == verdict] for verdict in words}
    return "; ".join(f"{words[one]} r={', '.join(map(str, ranks))}" for one, ranks in said.items() if ranks)


def _rates(rows: Sequence[RateRow], method: str, scale: str) -> list[str]:
    """Compares LoRA's best rates with full fine-tuning's and by rank; leaves out rows with few seeds or at an edge."""
    name, found = style.name_of(method), []
    rows = [row for row in rows if seeded(row) and not row.edge]
    tuned = {row.rank: row for row in rows if row.method == method and row.rank}
    best = {rank: row.best.rate for rank, row in sorted(tuned.items()) if row.best}
    full = next((row for row in rows if row.method == "fft"), None)
    if full and full.best and best:
        times = ", ".join(f"{rate / full.best.rate:.3g} at r={rank}" for rank, rate in best.items())
        found.append(f"{name}'s best rate ({scale}) over full fine-tuning's: {times}.")
    if len(best) > 1:
        step = max(_step(row) for row in tuned.values())
        low, high = min(best.values()), max(best.values())
        listed = ", ".join(f"{rate:g} at r={rank}" for rank, rate in best.items())
        near = high / low <= step * 1.01  # rates are rounded to three digits
        said = (
            f"within one step of the rates that were tried (a factor of {step:.3g}), so that no dependence on the rank"
            if near
            else f"over a factor of {high / low:.3g}, where neighbours are a factor of {step:.3g} apart, so that a "
            "dependence on the rank"
        )
        found.append(f"{name}'s best rate by rank ({scale}): {listed}; {said} is seen.")
    return found


def _tuned(rows: Sequence[RateRow], method: str, variant: str = "") -> dict[int, tuple[RateRow, Loss]]:
    """{rank: (row, loss at its best rate)} of a method, of losses over SEEDS seeds or more."""
    found = {}
    for row in rows:
        loss = row.best.loss if (row.method, row.variant) == (method, variant) and row.best else None
        if loss and loss.seeds >= SEEDS and row.rank:
            found[row.rank] = row, loss
    return found


def _step(row: RateRow) -> float:
    """The largest factor between the best rate and a neighbour that was tried."""
    rates = [point.rate for point in row.points]
    place = rates.index(row.best.rate) if row.best else 0
    return max(rates[i + 1] / rates[i] for i in range(max(place - 1, 0), min(place + 1, len(rates) - 1)))
