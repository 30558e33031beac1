"""Compares the order of pre-training's methods with the paper's, and says whether a difference holds at more steps."""

import itertools
from collections.abc import Sequence

from experiments.papers import mora_pretrain as paper
from experiments.tables import style
from experiments.tables.mora.pretrain import Setting
from experiments.tables.mora.rows import LOWER, SEEDS, Loss, order_of, separated

LONGER = 2  # times the steps, at which an order that differs from the paper's is checked
SMALL = "small"  # the scale of the grid below
SWEEP = (
    "python -m experiments.sweep --config=configs/mora_pretrain.py:{argument} --grid=configs/sweeps/pretrain_small.py "
    "--together=3 --results=experiments/results/mora_pretrain"
)


def remarks(setting: Setting, others: Sequence[Setting]) -> list[str]:
    """Captions on an order that differs from the paper's; [] where no two methods are separated the other way.

    Args:
      setting: of the table.
      others: all settings that are recorded.
    """
    if not (wrong := unlike(setting)):
        return []
    first = f"The order of the methods differs from the paper's: {_pairs(wrong)}. Lowest first: {_order(setting)}."
    if any(unlike(other) and _length(other, setting) == LONGER for other in others):
        return [f"{first} At half the steps it differs too."]
    steps = f"double the steps ({LONGER * setting.steps:,})"
    longer = next((other for other in others if _length(setting, other) == LONGER), None)
    if longer is None:
        return [f"{first} Not yet checked at {steps}: {_command(setting)}"]
    if not (known := _losses(longer)) or len(known) < 2:
        return [f"{first} At {steps} fewer than two methods have {SEEDS} seeds yet."]
    again = unlike(longer)
    still = (
        f"it differs there too: {_pairs(again)}"
        if again
        else "no methods are separated the other way than in the paper"
    )
    return [f"{first} At {steps} the order is {_order(longer)}: {still}."]


def unlike(setting: Setting) -> list[tuple[str, str]]:
    """(lower, higher): methods with separated perplexities that are the other way round in all the paper's columns."""
    known = _losses(setting)
    return [
        (low, high)
        for low, high in itertools.permutations(known, 2)
        if separated(known[low], known[high]) == LOWER
        and all(mine > theirs for mine, theirs in zip(paper.TABLE3[low], paper.TABLE3[high], strict=True))
    ]


def _losses(setting: Setting) -> dict[str, Loss]:
    """The perplexities of the paper's methods that have SEEDS seeds."""
    return {
        row.method: Loss(row.mean, row.deviation, len(row.scores), None)
        for row in setting.rows
        if row.method in paper.TABLE3 and row.mean is not None and len(row.scores) >= SEEDS
    }


def _length(one: Setting, other: Setting) -> float:
    """The other setting's steps over this one's, where they differ in nothing else; otherwise 0."""
    return other.steps / one.steps if one.steps and one.kind == other.kind else 0.0


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{style.name_of(low)} is below {style.name_of(high)}" for low, high in pairs)


def _order(setting: Setting) -> str:
    """ "ReMoRA, MoRA, LoRA~": ~ is nearer to the one before than the larger of their two deviations."""
    places = order_of(_losses(setting))
    return ", ".join(
        style.name_of(method) + ("~ (not separated from the one before)" if place.endswith("~") else "")
        for method, place in sorted(places.items(), key=lambda item: int(item[1].rstrip("~")))
    )


def _command(setting: Setting) -> str:
    """The command that trains a setting at double the steps; without a grid of its scale, the words to add."""
    reading = [] if setting.reading == "paper" else [f"reading={setting.reading}"]
    words = ",".join([*reading, f"steps={LONGER * setting.steps}"])
    if setting.scale != SMALL:
        return f"add {words} to the argument of --config."
    return SWEEP.format(argument=f"data=FOLDER,{words}")
