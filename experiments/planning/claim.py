"""LoRA's memory claim for GPT-3 175B, beside what this project would hold: counted on shapes, nothing is compiled."""

import functools

import jax
import jax.numpy as jnp

from experiments.papers import gpt3
from experiments.records.text_table import format_table
from lowrank_jax import adapters
from lowrank_jax.bases.base import BaseConfig, abstract_base
from lowrank_jax.core.trees import EVERYTHING, count, nbytes, partition
from lowrank_jax.train.optimizer import OptimizerConfig, make_optimizer
from lowrank_jax.train.state import init_state

GB, TB, MB = 1e9, 1e12, 1e6
TASKS = 100


def held(name: str = gpt3.MODEL, rank: int = gpt3.MEMORY_RANK, dtype: str = "float16") -> dict[str, int]:
    """Bytes over all devices: {"full": of full fine-tuning, "lora": of LoRA, "base", "adapter": of their files}.

    A training holds parameters, gradients and Adam's moments: trained leaves, their gradients and moments in float32,
    frozen ones in `dtype`. A file has `dtype` throughout.

    Args:
      name: of a shape.
      rank: of LoRA on query and value.
      dtype: of frozen weights and files.
    """
    base = abstract_base(BaseConfig(name, random_init=True, dtype=dtype))
    plan = adapters.make_plan(base.params, (adapters.AdapterConfig("lora", rank=rank, targets=("query", "value")),))
    created = jax.eval_shape(functools.partial(adapters.create, plan), jax.random.PRNGKey(0), base.params)
    optimizer = make_optimizer(OptimizerConfig())

    def training(trainable, frozen) -> int:
        state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer, learning_rate=1.0, seed=0), trainable)
        return nbytes(state) + nbytes(state.trainable) + nbytes(frozen)  # the gradients are as large as what is trained

    full = training(*partition({"params": base.params}, EVERYTHING))
    lora = training(*partition({"params": base.params, **created}))
    size = jnp.dtype(dtype).itemsize
    return {"full": full, "lora": lora, "base": size * count(base.params), "adapter": size * count(created["adapters"])}


def rows(found: dict[str, int]) -> list[tuple[str, str, str]]:
    """(quantity, the paper's, ours) of the claim; `found` is `held`'s."""
    one = found["base"] + TASKS * found["adapter"]
    return [
        ("training: full fine-tuning", gpt3.MEMORY["full"], f"{found['full'] / TB:.2f} TB"),
        ("training: LoRA", gpt3.MEMORY["lora"], f"{found['lora'] / GB:,.0f} GB"),
        ("checkpoint: full fine-tuning", gpt3.MEMORY["base"], f"{found['base'] / GB:,.0f} GB"),
        ("checkpoint: LoRA", gpt3.MEMORY["adapter"], f"{found['adapter'] / MB:,.1f} MB"),
        (f"{TASKS} tasks: full fine-tuning", gpt3.MEMORY["tasks_full"], f"{TASKS * found['base'] / TB:,.2f} TB"),
        (f"{TASKS} tasks: LoRA", gpt3.MEMORY["tasks_lora"], f"{one / GB:,.1f} GB"),
    ]


def claim() -> list[str]:
    """The lines of the claim."""
    return [
        f"LoRA's memory claim for {gpt3.MODEL} (r={gpt3.MEMORY_RANK} on query and value), over all devices:",
        format_table([["bytes", "paper", "counted here"], *map(list, rows(held()))], "text"),
        "The paper states no data types. Here trained parameters, gradients and Adam's moments are float32, frozen",
        "parameters and files float16; activations are left out.",
    ]
