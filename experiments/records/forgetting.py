"""What a run's record says of forgetting: the rise of the loss on text that it was not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

TYPE, SCORE = "forgetting", "/text_loss"  # of the evaluation, and what its score of each source ends with


def rises(plain: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"forgetting": {source: {"start", "end", "rise", "tokens"}}} of losses per token in nats; {} without any.

    Args:
      plain: the run's config, whose `evals` say which evaluations are of forgetting.
      evaluations: those of the record; the first and the last of each source count, which must be of different steps.
    """
    entries = plain.get("evals") or {}
    named = tuple(f"{name}/" for name, one in entries.items() if isinstance(one, Mapping) and one.get("type") == TYPE)
    found: dict[str, list[tuple[int, float | None, float]]] = {}
    for one in evaluations:
        for key, loss in one.items():
            if named and key.startswith(named) and key.endswith(SCORE):
                source = key.partition("/")[2].removesuffix(SCORE)
                found.setdefault(source, []).append((one["step"], loss, one[f"{key.removesuffix(SCORE)}/tokens"]))
    said = {}
    for source, values in found.items():
        (first, start, tokens), (last, end, _) = values[0], values[-1]
        if first == 0 < last and start is not None and end is not None:  # None: it was no finite number
            said[source] = {"start": start, "end": end, "rise": end - start, "tokens": tokens}
    return {TYPE: said} if said else {}
