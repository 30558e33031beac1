"""Reads from a run's evaluations what it forgot: the rise of the loss on text that it was not trained on."""

from collections.abc import Mapping, Sequence
from typing import Any

TYPE, SCORE = "forgetting", "/text_loss"  # of the evaluation, and what its score of each source ends with


def rises(plain: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"forgetting": {source: {"start", "end", "rise", "tokens"}}} of losses per token in nats; {} without any.

    Args:
      plain: the run's config, whose `evals` say which evaluations are of forgetting.
      evaluations: those of the record. A source is in it where the first is of step 0 and the last of a later one. It
        is called "entry/source" where several entries measure a source of this name.
    """
    entries = {
        name: entry
        for name, entry in (plain.get("evals") or {}).items()
        if isinstance(entry, Mapping) and entry.get("type") == TYPE
    }
    if not entries:
        return {}
    from lowrank_jax.forms.forgetting import ForgettingOptions  # imports jax, which other records do not need

    said: dict[tuple[str, str], dict[str, Any]] = {}
    for name, entry in entries.items():
        sizes = {key: entry[key] for key in ("rows", "tokens") if key in entry}
        tokens = ForgettingOptions(entry["path"], **sizes).targets
        for key in dict.fromkeys(key for one in evaluations for key in one):
            if key.startswith(f"{name}/") and key.endswith(SCORE):
                found = [(one["step"], one[key]) for one in evaluations if key in one]
                (first, start), (last, end) = found[0], found[-1]
                if first == 0 < last and start is not None and end is not None:  # None: it was no finite number
                    source = key.removeprefix(f"{name}/").removesuffix(SCORE)
                    said[name, source] = {"start": start, "end": end, "rise": end - start, "tokens": tokens}
    sources = [source for _, source in said]
    named = {f"{name}/{one}" if sources.count(one) > 1 else one: found for (name, one), found in said.items()}
    return {TYPE: named} if named else {}
