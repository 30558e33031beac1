"""Which runs can be trained in one program: those that differ only in keys that trials may differ in."""

import copy
import json
from collections.abc import Sequence

from experiments.config.plain import diff, without
from lowrank_jax.core.errors import UserError

# Arrays in the state, the frozen scales or the schedule's table, one for each trial.
FREE = ("seed", "optimizer.learning_rate", "schedule", "adapter.alpha")
# LoRA's A and B can be padded to another rank, where the start does not change the base.
PADDED_STARTS = ("kaiming_uniform", "gaussian", "orthogonal")

MOST_SEEDS = 10_000
LARGEST_SEED = 2**32 - 1  # the range of schema.RunConfig.seed


def shared_part(plain: dict) -> dict:
    """The part of a plain config that must be equal: without bookkeeping and free keys, and without its length."""
    adapter, base = plain.get("adapter") or {}, plain.get("base") or {}
    free: list[str] = list(FREE)
    if adapter.get("method") == "lora" and adapter.get("init", PADDED_STARTS[0]) in PADDED_STARTS:
        free.append("adapter.rank")
    if base.get("random_init") and plain.get("trainable") != "full":
        free.remove("seed")  # the seed draws the frozen weights too
    if (plain.get("restart") or {}).get("every"):
        free = []  # a merge changes the base: such a run shares no program
    bare = without(without(plain), free)
    return {name: value for name, value in bare.items() if value not in ({}, [])}


def group_key(plain: dict) -> str:
    """A key that is equal for runs that can share a program."""
    return json.dumps(shared_part(plain), sort_keys=True)


def shapes_key(plain: dict) -> str:
    """A key that is equal for runs whose steps need the same memory and time, also if they cannot share a program."""
    bare = without(without(plain), FREE)
    return json.dumps({name: value for name, value in bare.items() if value not in ({}, [])}, sort_keys=True)


def check_alike(plains: Sequence[dict]) -> None:
    """Checks that runs can share a program.

    Raises:
      UserError: names the first keys in which two of them differ.
    """
    first = shared_part(plains[0])
    for other in plains[1:]:
        if changed := diff(first, shared_part(other)):
            raise UserError(f"these runs cannot share a program: {'; '.join(changed[:3])}; run them separately")


def with_seed(plain: dict, seed: int) -> dict:
    """The same run with another seed."""
    changed = copy.deepcopy(plain)
    changed["seed"] = seed
    return changed


def parse_seeds(text: str) -> list[int]:
    """ "0,1,2" or "0:5" -> seeds.

    Raises:
      UserError: another syntax, no seed, or one twice.
    """
    try:
        if ":" in text:
            first, _, last = text.partition(":")
            seeds: Sequence[int] = range(int(first), int(last))
        else:
            seeds = [int(word) for word in text.split(",")]
    except ValueError:
        seeds = []
    few = len(seeds[: MOST_SEEDS + 1]) <= MOST_SEEDS  # len() of a range above 2^63 raises
    if not seeds or not few or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise UserError(
            f"--seeds={_short(text)!r}: write at most {MOST_SEEDS} different whole numbers from 0 to {LARGEST_SEED} as "
            "0,1,2 or 0:5 (0 to 4)"
        )
    return list(seeds)


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
