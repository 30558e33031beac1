"""F1 of the named entities that a text such as "Smith (PER), Bank (ORG)" lists, as AdaptLLM scores them."""

import re
from collections.abc import Sequence
from typing import NamedTuple

MARKED = re.compile(r"(\S+\s+)\((\S+)\)")


class Entity(NamedTuple):
    """The word before a type in brackets, and the type."""

    name: str
    kind: str


def entities(text: str) -> list[Entity]:
    """The different entities of a text, in order; of a name of several words the last word, as the authors read it."""
    return list(dict.fromkeys(Entity(name[:-1], kind) for name, kind in MARKED.findall(text)))


def entity_f1(said: Sequence[Entity], wanted: Sequence[Entity]) -> float:
    """F1 = 2PR / (P + R) of two points an entity, its name and its type (MUC's definition); 0 where either is empty.

    P = points / (2 |said|), R = points / (2 |wanted|). A wanted entity gets its points from the first one said that has
    its name or its type. MUC also asks that both overlap in the text; without positions any two count as overlapping.

    Args:
      said, wanted: entities of one text.
    """
    points = 0
    for one in wanted:
        shared = ((one.name == other.name) + (one.kind == other.kind) for other in said)
        points += next((count for count in shared if count), 0)
    return points / (len(said) + len(wanted)) if said and wanted else 0.0
