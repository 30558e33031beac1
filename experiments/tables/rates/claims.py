"""What the records say of three claims, as sentences: MoRA's advantage at tuned rates, and LoRA's best rate by rank."""

from collections.abc import Sequence

from experiments.tables import style
from experiments.tables.mora.rows import HIGHER, LOWER, NEAR, SEEDS, Loss, separated
from experiments.tables.rates.rows import RateRow

SCALES = {"lora": "alpha/r", "rslora": "alpha/sqrt(r)"}
OTHERS = ("lora", "rslora", "dora")  # low-rank methods that MoRA is compared with


def verdicts(rows: Sequence[RateRow], variant: str, other: str = "lora") -> dict[int, str]:
    """{rank: verdict} of a variant of MoRA against another method, each at its best rate, where both have SEEDS seeds.

    Args:
      rows: of one setting.
      variant: of MoRA.
      other: a method.
    """
    ours, theirs = _tuned(rows, "mora", variant), _tuned(rows, other)
    return {rank: separated(loss, theirs[rank][1]) for rank, (_, loss) in ours.items() if rank in theirs}


def at_edges(rows: Sequence[RateRow], variant: str, other: str = "lora") -> dict[int, list[str]]:
    """{rank: labels} of the rows behind `verdicts` beside whose best rate a better one may lie; absent: none.

    Args: as there.
    """
    ours, theirs = _tuned(rows, "mora", variant), _tuned(rows, other)
    pairs = {rank: (row, theirs[rank][0]) for rank, (row, _) in ours.items() if rank in theirs}
    found = {rank: [row.label for row in pair if row.edge or row.edge_of_seeds] for rank, pair in pairs.items()}
    return {rank: labels for rank, labels in found.items() if labels}


def sentences(rows: Sequence[RateRow]) -> list[str]:
    """The sentences that the rows of one setting support, one a claim and variant; [] where they are too few."""
    found = []
    for variant in dict.fromkeys(row.variant for row in rows if row.method == "mora"):
        for other in OTHERS:
            if found_at := verdicts(rows, variant, other):
                name, more = style.name_of(other), _open(rows, variant, other)
                found.append(f"MoRA {variant} against {name}, each at its own rate: {_by_verdict(found_at)}.{more}")
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


def _open(rows: Sequence[RateRow], variant: str, other: str) -> str:
    """What is to be said of `at_edges`; "" where there are none."""
    labels = dict.fromkeys(label for _, found in sorted(at_edges(rows, variant, other).items()) for label in found)
    return f" Open, as a better rate may lie beyond the best one of {', '.join(labels)}." if labels else ""


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
