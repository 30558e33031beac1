"""XLA's options for a step, and how far the loss's loop is unrolled, by device and width of the products."""

import os
from typing import Any

import jax

from lowrank_jax.layouts.fused import Groups

TRITON = "xla_gpu_enable_triton_gemm"
GRAPHS = "xla_gpu_enable_command_buffer"
SLICES = "xla_gpu_enable_dynamic_slice_fusion"
MERGE = "xla_gpu_dot_merger_threshold_mb"
WIDE = 2_048  # between the two widths that were measured, 576 and 4,096


def compiler_options(
    width: int, groups: Groups, unrolled: bool, device: Any, fp8: bool = False, coded: bool = False
) -> dict[str, bool | int | str]:
    """XLA options for `jax.jit` of a step; an option that XLA_FLAGS names is left to the user.

    What was measured: docs/performance_log.md, "Figures behind comments in the code". On GPUs with fused kernels, or
    without a loop over the layers:

    * No Triton products: where XLA's autotuner takes cuBLAS instead of Triton, it first copies each layer's weights out
      of the stack. Narrow scans keep Triton: not measured.
    * No merging of products that read the same input: at rank 256 XLA joins a frozen kernel with its adapter, which
      copies the kernel in every layer.
    * In wide scans no CUDA graphs: as products read their weights within the stack, XLA updates the whole graph before
      every step.
    * With FP8 kernels, fused or not, no Triton products: XLA makes cuBLASLt's FP8 products where Triton takes none.
    * Unrolled, with every layer's weights a separate array (`layouts.unstacked`): no products that read slices in
      place. Only the adapters' would, at a higher cost before a step than that of their copies in it; without them a
      graph is replayed as it is.

    Args:
      width: features of the residual stream.
      groups: the fused kernels (`layouts.fused`); a loop without any keeps XLA's defaults: not measured.
      unrolled: whether there is no loop over the layers.
      device: one of the step's.
      fp8: whether frozen kernels are FP8 codes.
      coded: whether frozen kernels are codes of another kind, which Triton's products may dequantise; without groups
        XLA's defaults stay.
    """
    if device.platform != "gpu" or not (groups or fp8 or (unrolled and not coded)):
        return {}
    chosen: dict[str, bool | int | str] = {MERGE: 0}
    if fp8:
        chosen |= {TRITON: False}
    if unrolled:
        chosen |= {TRITON: False, SLICES: False}
    elif width >= WIDE:
        chosen |= {TRITON: False, GRAPHS: ""}
    given = os.environ.get("XLA_FLAGS", "")
    return {name: value for name, value in chosen.items() if name not in given}


def loss_unroll(device: Any) -> int:
    """Chunks of logits in an iteration of the loss's compiled loop (`ops.losses.chunked_next_token_loss`).

    Eight on GPUs, where the host launches each iteration outside the CUDA graph. Elsewhere 1: XLA's CPU backend keeps
    the logits of all chunks of an iteration. Times: docs/performance_log.md, "Figures behind comments in the code".
    """
    return 8 if device.platform == "gpu" else 1


def counting_options(device: Any) -> dict[str, bool | int | str] | None:
    """XLA options for a program that is compiled only to count its memory; None for XLA's defaults.

    On a CPU, XLA assigns buffers before LLVM optimises, which is about half of the compilation (pico-llama, LoRA r=8:
    6.2 s of CPU with it, 3.0 s without). Where jax's compilation cache is set, nothing is left out: the run then reads
    the program from there.
    """
    if device.platform != "cpu" or jax.config.values["jax_compilation_cache_dir"]:
        return None
    return {"xla_backend_optimization_level": 0}
