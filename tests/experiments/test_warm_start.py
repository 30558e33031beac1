"""A start from an adapter whose leaves have the run's shapes and another meaning."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.session.warm_start import StartConfig, check_start
from lowrank_jax.adapters import AdapterConfig, MoraConfig, PrefixConfig
from lowrank_jax.checkpoints.adapters_only import save_adapter
from lowrank_jax.core.errors import UserError

PREEMBED = AdapterConfig("preembed", prefix=PrefixConfig(4, 0))
MORA, LORA = AdapterConfig("mora", rank=4), AdapterConfig("lora", rank=4)
OTHERS = {
    "other places of virtual tokens": (
        PREEMBED,
        dataclasses.replace(PREEMBED, prefix=PrefixConfig(2, 2)),
        "its adapter.prefix.tokens is 4, the run's 2",
    ),
    "another compression": (
        MORA,
        dataclasses.replace(MORA, mora=MoraConfig("rotation")),
        "its adapter.mora.compression is sharing, the run's rotation",
    ),
    "another base beside it": (
        LORA,
        dataclasses.replace(LORA, init="pissa"),
        "its adapter.init is any, the run's pissa",
    ),
    "another family": (LORA, dataclasses.replace(LORA, method="dora"), "it is of lora, the run of dora"),
}
SAME = {
    "another start": (PREEMBED, dataclasses.replace(PREEMBED, prefix=PrefixConfig(4, 0, "normal"))),
    "another scale and dropout": (LORA, dataclasses.replace(LORA, alpha=32.0, dropout=0.1, init="gaussian")),
}


def start(folder, theirs, ours):
    leaves = {"adapters": {"embed": {"vectors": jnp.ones((4, 8))}}}
    save_adapter(folder, leaves, dataclasses.asdict(theirs), {}, {"name": "toy", "fingerprint": "x"})
    shapes = jax.eval_shape(lambda: leaves)
    check_start(StartConfig(str(folder)), shapes, {}, lambda path: False, (ours,))


@pytest.mark.parametrize("what", OTHERS)
def test_leaves_of_another_meaning_are_refused(tmp_path, what):
    theirs, ours, message = OTHERS[what]
    with pytest.raises(UserError, match=f"does not fit: {message}; use the adapter section it was made with"):
        start(tmp_path / "adapter", theirs, ours)


@pytest.mark.parametrize("what", SAME)
def test_what_changes_no_meaning_passes(tmp_path, what):
    start(tmp_path / "adapter", *SAME[what])
