"""The compiler options of a training step, by the device and the shape of its products."""

import os
from typing import Any

from lowrank_jax.core.fused import Groups

TRITON = "xla_gpu_enable_triton_gemm"
GRAPHS = "xla_gpu_enable_command_buffer"
WIDE = 2_048  # between the two widths that were measured, 576 and 4,096


def compiler_options(width: int, groups: Groups, device: Any) -> dict[str, bool | str]:
    """XLA options for `jax.jit` of a step; an option that XLA_FLAGS name is the user's and left alone.

    GPUs, wide products of fused kernels: no Triton products. Where XLA's autotuner takes cuBLAS in Triton's place, each
    layer's weights are copied out of the stack first (LLaMA-2-7B shape, LoRA r=8, 8 x 512 tokens, one H100: 251 ms a
    step; without Triton's candidates 227, and 2.5 s to compile instead of 9). Narrow ones stay with Triton: a step of
    SmolLM2-135M, layers unrolled, 64 x 64 tokens, takes 29 ms with cuBLAS alone and 19 with Triton.

    Nor CUDA graphs there: some buffer's address changes with every step, and the whole graph is brought up to date
    before it starts (the same step unrolled, one H200: 214.6 ms, without graphs 211.6). Narrow steps are too short to
    launch their kernels one by one: a scan over SmolLM2-135M takes 54 ms so, and 32 with graphs.

    Args:
      width: features of the residual stream.
      groups: the kernels that lie side by side (`core.fused`); without, XLA's defaults stay: not measured.
      device: one of the step's.
    """
    if device.platform != "gpu" or not groups or width < WIDE:
        return {}
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in {TRITON: False, GRAPHS: ""}.items() if name not in given}
