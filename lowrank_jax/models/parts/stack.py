"""A model's fields and its stack of equal layers: one scan over stacked parameters, rematerialised by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.layouts.segments import segments
from lowrank_jax.ops.placement import is_divided

_policies = jax.checkpoint_policies

# Values that a block names with `checkpoint_name`, in running order. Absent on purpose: the outputs of the norms, cheap
# functions of saved values, and of `down` in a pre-norm block: it is only read in the sum that is the next block's
# input, which the scan saves. A post-norm block names the sum that its last norm reads "mlp_out": without it the
# product would run again. Where norms stand behind attention or MLP, or over queries and keys, the products that they
# read have the names "attention_out", "mlp_out", "query" and "key".
ATTENTION_PROJECTIONS = ("query", "key", "value", "attention", "attention_out")
PROJECTIONS = (*ATTENTION_PROJECTIONS, "gate", "up", "gate_up", "mlp_out")
ADAPTER = "adapter"  # named by `adapters` at each site: LoRA's x A, the sums of MoRA's groups
ROTATED = "rotated"  # and the blocks that MoRA has rotated, as wide as the input


def _flash_attention(primitive, *_, **__) -> bool:
    """Saves cuDNN's output and log-sum-exp: all that its backward kernel needs of the forward one."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _save(*names: str) -> Callable[..., bool]:
    return _policies.save_from_both_policies(_policies.save_only_these_names(*names), _flash_attention)


# What the forward pass saves for the backward pass besides each block's input, by name from little to much. Bytes a
# token and layer: the table of `base.remat` in docs/performance.md, "Settings that decide speed and memory".
POLICIES: dict[str, Callable[..., bool]] = {
    # The input alone: recomputes the whole block.
    "full": _policies.nothing_saveable,
    # And attention's output: recomputes products and norms, not cuDNN's attention.
    "attention": _save("attention"),
    # And its products, and LoRA's x A and the input of MoRA's square at each adapted site: recomputing one reads the
    # site's whole input again. Recomputes norms and the MLP, whose products are half of what the next one saves.
    "attention_projections": _save(*ATTENTION_PROJECTIONS, ADAPTER),
    # And the MLP's products. Recomputes norms and the activation.
    "projections": _save(*PROJECTIONS, ADAPTER),
    # And what `down` reads, for its adapter's gradient, and the blocks that MoRA has rotated. Recomputes norms.
    "activations": _save(*PROJECTIONS, ADAPTER, "hidden", ROTATED),
}
REMAT = ("none", *POLICIES)


class Model(nn.Module):
    """The fields of every model: its config, and how its layers run.

    Attributes:
      config: the shape; of an encoder, the head too.
      dtype: compute type; param_dtype: type that parameters are created in.
      remat: what the backward pass recomputes, a name of `stack.REMAT`.
      scan_unroll: layers per iteration of the compiled loop.
      attention: "auto", "xla", "cudnn" or "heads_first", or what a model says; see `attention_kernel`.
      cuts: layers at which the stack is cut into segments; see `add_layers`.
    """

    config: Any
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: str = "none"
    scan_unroll: int = 1
    attention: str = "auto"
    cuts: tuple[int, ...] = ()

    @property
    def drops_out(self) -> bool:
        """Whether the model itself zeroes entries in calls with a "dropout" key: its config has a rate above 0."""
        return any(rate for name, rate in vars(self.config).items() if "dropout" in name)


def is_unrolled(unroll: int, layers: int) -> bool:
    """Whether `scan_layers` leaves no loop in the compiled program."""
    return unroll >= layers


def scan_layers(
    block: type[nn.Module], layers: int, remat: str = "none", unroll: int = 1, keys: bool = True
) -> type[nn.Module]:
    """The module class that applies `layers` copies of `block`, their variables stacked on axis 0.

    Args:
      block: module whose call is (carry, rotary, allowed, layer) -> (carry, None); rotary (None where positions are
        embedded) and allowed are the same for all layers, layer has what differs between them by name ("number" is the
        layer's row of a cache).
      layers: how many.
      remat: "none" keeps all intermediate values for the backward pass; other names are keys of `POLICIES`.
      unroll: layers per iteration of the compiled loop.
      keys: whether a call may draw random numbers. If so, Flax traces the block twice and counts the keys of both
        traces; a single trace would draw other numbers. Without keys the block is traced once.

    Raises:
      UserError: an unknown remat name; an unroll below 1.
    """
    if remat not in REMAT:
        raise unknown_name("remat", remat, REMAT)
    if unroll < 1:
        raise UserError(f"scan_unroll is {unroll}; it must be at least 1")
    if remat != "none":
        # A loop keeps XLA from merging the recomputed values with the first ones; without a loop, barriers must. They
        # stand before the call's arguments, not the variables and keys: a layer's slice behind one is a copy of its
        # weights (LLaMA-2-7B shape: 128 copies and 2.1 GiB).
        # Weights that are divided between devices (`ops.placement`) need a barrier too: otherwise their gathered copies
        # are kept from the forward pass to the backward pass.
        barriers = (is_divided(), False, True, True, True, True) if is_unrolled(unroll, layers) else False
        block = nn.remat(block, policy=POLICIES[remat], prevent_cse=barriers)  # pyright: ignore[reportArgumentType] jax takes a tuple
    return nn.scan(
        block,
        variable_axes={"params": 0, "adapters": 0, "scales": 0},
        split_rngs={"params": True, "dropout": True, "adapters": True},
        in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType] Flax takes a tuple
        length=layers,
        unroll=min(unroll, layers),
        check_constancy_invariants=keys,
    )


def add_layers(model: Model, block: type[nn.Module], *fields: Any) -> None:
    """In a model's `setup`: its layers as the submodule "layers", or as one for each segment of `model.cuts`.

    Each segment is a scan over separate leaves, so that a rule can train the uppermost layers alone; the gradient then
    ends at the first of them.

    Args:
      model: has `config.num_hidden_layers`, `remat`, `scan_unroll` and `cuts`.
      block: as in `scan_layers`.
      fields: what each block is made with.
    """
    keys = any(model.has_rng(name) for name in ("params", "dropout", "adapters"))
    for name, low, high in segments(model.config.num_hidden_layers, model.cuts):
        setattr(model, name, scan_layers(block, high - low, model.remat, model.scan_unroll, keys)(*fields))


def run_layers(model: Model, carry: Any, rotary: Any, allowed: Any, kinds: Any) -> Any:
    """The carry after all layers of `add_layers`; arguments as a block's, `kinds` {name: [L]}."""
    for name, low, high in segments(model.config.num_hidden_layers, model.cuts):
        layer = jax.tree.map(lambda each, low=low, high=high: each[low:high], kinds)
        carry, _ = getattr(model, name)(carry, rotary, allowed, layer)
    return carry
