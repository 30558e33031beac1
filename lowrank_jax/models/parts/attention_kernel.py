"""Which attention kernel a name stands for, by types, shapes and device: cuDNN's, XLA's, or ours by head."""

from typing import Any, Literal

import jax.numpy as jnp

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.ops.capability import compute_capability, platform

Kernel = Literal["xla", "cudnn", "heads_first"]
ATTENTION = ("auto", "xla", "cudnn", "heads_first")
# Added to the end of "auto" or "cudnn", so that cuDNN gets the mask of packed rows once for each head. Trials of one
# program need that: they run under `jax.vmap`, where jax gives cuDNN no mask that all heads share.
BY_HEAD = "_by_head"


def pick_implementation(
    name: str, dtype: Any, head_dim: int, length: int = 0, *, masked: bool, cached: bool, capped: bool = False
) -> Kernel:
    """The attention kernel that a name stands for.

    "auto" is cuDNN's flash attention where it applies, `attend.heads_first_attention` on CPUs, jax.nn's on XLA
    otherwise. cuDNN's applies to causal attention without cache or mask (but that of packed rows), in bfloat16 or
    float16, for heads of a multiple of 8 up to 128 (256 on Hopper) and rows of an even length (jax refuses its gradient
    for others), on an NVIDIA GPU of compute capability 8.0 or more. Cached steps always use XLA; a softcap on the
    scores (`capped`) always takes `attend.heads_first_attention`, the only one that has it.

    Args:
      name: one of ATTENTION.
      dtype, head_dim: of queries, keys and values.
      length: of the rows; 0 where it does not matter.
      masked, cached, capped: whether there are a mask, a cache, a softcap.

    Raises:
      UserError: an unknown name, or "cudnn" where it cannot run.
    """
    if name not in ATTENTION:
        raise unknown_name("attention", name, ATTENTION)
    if capped:
        if name == "cudnn":
            raise UserError('attention "cudnn" has no softcap on scores, which this model needs; set it to "auto"')
        return "heads_first"
    if name == "xla" or cached:
        return "xla"
    if name == "heads_first" or (name == "auto" and platform() == "cpu"):
        return "heads_first"
    if name == "auto" and masked:
        return "xla"
    capability = compute_capability()
    obstacle = None
    if length % 2:
        obstacle = f"rows of an even length, not {length}"
    elif capability < 8:
        obstacle = "an NVIDIA GPU of compute capability 8.0 or more"
    elif jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
        obstacle = f"bfloat16 or float16, not {jnp.dtype(dtype).name}"
    elif head_dim % 8 or head_dim > (256 if capability == 9 else 128):
        obstacle = f"head_dim to be a multiple of 8 up to 128 (256 on Hopper), not {head_dim}"
    if obstacle and name == "cudnn":
        raise UserError(f'attention "cudnn" needs {obstacle}; set attention to "auto" or "xla"')
    return "xla" if obstacle else "cudnn"
