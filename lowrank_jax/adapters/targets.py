"""Targets: which modules of a model an entry of an adapter's configuration names."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_jax.adapters.base import ALL_LINEAR, AdapterConfig
from lowrank_jax.adapters.registry import get_family
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import nearest
from lowrank_jax.core.patterns import check_pattern

TEMPLATE = r"(?:.*/)?(?:{})"  # a target names a whole path or its last parts
# Output layers, which `all-linear` leaves out: PEFT does so for a model's output embedding ("lm_head") and for
# "score" and "classifier", and adapts BERT's pooler. "head" is our Llama's.
OUTPUT_HEADS = ("head", "lm_head", "classifier", "score")


def matches(target: str, path: str) -> bool:
    """Whether a target names the module at `path`: a regular expression for the whole path or its last parts.

    `all-linear` names every module but those called as one of OUTPUT_HEADS and those inside one at the model's top.
    """
    if target == ALL_LINEAR:
        parts = path.split("/")
        return not {parts[0], parts[-1]} & set(OUTPUT_HEADS)
    return re.fullmatch(TEMPLATE.format(target), path) is not None


def checked_match(target: str, path: str, field: str) -> bool:
    """`matches`, of an entry of the adapter's field `field`.

    Raises:
      UserError: the entry is no regular expression.
    """
    check_pattern(f"adapter.{field} entry", target, TEMPLATE)
    return matches(target, path)


def check_names(
    config: AdapterConfig, field: str, targets: Iterable[str], known: Mapping[str, Any], near: Mapping[str, Any]
) -> None:
    """Every entry of a field must name one of the known modules.

    Args:
      config: the adapter's.
      field, targets: one of its fields, and the entries there.
      known, near: by path, the modules to name, and further ones to suggest.

    Raises:
      UserError: one names none, or is no regular expression; the near misses are named.
    """
    kinds = "kernel" if get_family(config.method).merges else "place"
    for target in targets:
        if any(checked_match(target, path, field) for path in known):
            continue
        if not known and not near:
            raise UserError(f"adapter.{field} entry {target!r}: the params have no {kinds} below a module's name")
        ends = sorted({path.split("/")[-1] for path in known})
        close = nearest(target, {*known, *ends, *near})
        hint = f"did you mean {' or '.join(close)}?" if close else f"{kinds}s: {', '.join(ends)}"
        hint += f", or '{ALL_LINEAR}'" if kinds == "kernel" and not close else ""
        raise UserError(f"adapter.{field} entry {target!r} matches no {kinds} of the model; {hint}")
