"""What a compiled step is given by its device and the shape of its products: XLA options, the loss's unrolled loop."""

import os
from typing import Any

from lowrank_jax.layouts.fused import Groups

TRITON = "xla_gpu_enable_triton_gemm"
GRAPHS = "xla_gpu_enable_command_buffer"
SLICES = "xla_gpu_enable_dynamic_slice_fusion"
MERGE = "xla_gpu_dot_merger_threshold_mb"
WIDE = 2_048  # between the two widths that were measured, 576 and 4,096


def compiler_options(width: int, groups: Groups, unrolled: bool, device: Any) -> dict[str, bool | int | str]:
    """XLA options for `jax.jit` of a step; an option that XLA_FLAGS name is the user's and left alone.

    GPUs, fused kernels, no Triton products: where XLA's autotuner takes cuBLAS in Triton's place, each layer's weights
    are copied out of the stack first (a scan, LLaMA-2-7B shape, LoRA r=8, 8 x 512 tokens, one H100: 251 ms a step;
    without Triton's candidates 227, and 2.5 s to compile instead of 9). Narrow scans keep them: not measured.

    Nor products merged that read one input: at rank 256 XLA puts a frozen kernel and its adapter side by side, which is
    a copy of the kernel a layer (LLaMA-2-7B shape, by the compiled program: 65 GB a step).

    Wide scans: no CUDA graphs. As products read their weights within the stack, XLA brings the whole graph up to date
    before every step (unrolled, one H200: 214.6 ms, without graphs 211.6).

    Unrolled, where every layer's weights are an array of its own (`layouts.unstacked`): no products that read slices in
    place, which would be the adapters' alone. They cost more before a step than their copies in it (0.04 to 1.3 GB in
    one kernel), and without them a graph is replayed as it is (SmolLM2-135M, 64 x 64 tokens, one H200: 26.3 ms, 16.3).

    Args:
      width: features of the residual stream.
      groups: the kernels that lie side by side (`layouts.fused`); without, XLA's defaults stay: not measured.
      unrolled: whether the layers are no loop.
      device: one of the step's.
    """
    if device.platform != "gpu" or not groups:
        return {}
    chosen: dict[str, bool | int | str] = {MERGE: 0}
    if unrolled:
        chosen |= {TRITON: False, SLICES: False}
    elif width >= WIDE:
        chosen |= {TRITON: False, GRAPHS: ""}
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in chosen.items() if name not in given}


def loss_unroll(device: Any) -> int:
    """Chunks of logits in an iteration of the loss's compiled loop (`ops.losses.chunked_next_token_loss`).

    GPUs: an iteration is launched by the host, outside of the CUDA graph. With one chunk each, 32 of them took 1.4 ms
    more than 8 (eight trials of SmolLM2-135M, 16 x 64 tokens, 29.5 ms, one H100). Elsewhere 1: XLA's CPU backend keeps
    the logits of all chunks of an iteration.
    """
    return 8 if device.platform == "gpu" else 1
