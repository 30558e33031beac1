"""Describes NVIDIA GPUs to XLA's CUDA compiler, so that it compiles for cards that this machine does not have."""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
HOST = 8  # most cards of a host: NVIDIA's HGX boards have 4 or 8
# A compilation needs neither the driver nor CUDA's libraries that the plugin looks for. Without a card no kernel can be
# timed, hence no autotuning: XLA takes its defaults.
UNCHECKED = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
UNTIMED = "--xla_gpu_autotune_level=0"
CUDNN = (9, 10, 0)  # the version that XLA and jax are told; jax 0.10.2 asks no later one of these cards


class Card(NamedTuple):
    """What XLA's compiler must know of a card, from NVIDIA's data sheets and CUDA's device properties.

    Attributes:
      name: NVIDIA's, which is jax's `device_kind`.
      capability: compute capability, (major, minor).
      cores: streaming multiprocessors.
      gib: memory as the driver counts it.
      bandwidth: of the memory, bytes a second.
      l2: bytes of the L2 cache.
      ghz: clock.
      shared, shared_block: bytes of shared memory of a multiprocessor, and the most that a block of threads may take.
      links: NVLinks to the other cards.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    gib: float
    bandwidth: float
    l2: int
    ghz: float
    shared: int
    shared_block: int
    links: int


CARDS = {
    "a100": Card("NVIDIA A100-SXM4-80GB", (8, 0), 108, 79.2, 2.04e12, 41_943_040, 1.41, 167_936, 166_912, 12),
    "h100": Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 79.2, 3.35e12, 52_428_800, 1.98, 233_472, 232_448, 18),
    "h200": Card("NVIDIA H200", (9, 0), 132, 139.8, 4.8e12, 52_428_800, 1.98, 233_472, 232_448, 18),
}


def has_compiler() -> bool:
    """Whether XLA's compiler for NVIDIA's cards is installed: jax's CUDA plugin."""
    return any(importlib.util.find_spec(name) is not None for name in PLUGINS)


def prepare() -> None:
    """Sets the environment variables that XLA and jax's CUDA plugin read when jax starts."""
    for name, value in UNCHECKED.items():
        os.environ.setdefault(name, value)
    given = os.environ.get("XLA_FLAGS", "")
    if UNTIMED.partition("=")[0] not in given:
        os.environ["XLA_FLAGS"] = f"{given} {UNTIMED}".strip()


def devices(kind: str, count: int) -> Sequence[Any]:
    """Devices to compile for: `count` cards of a kind, in hosts of at most HOST.

    Raises:
      RuntimeError: the plugin cannot describe them (jax's own error).
    """
    from jax.experimental import topologies

    each = max(number for number in range(1, HOST + 1) if count % number == 0)
    shape = f"1x{count // each}x{each}"  # one slice x hosts x cards
    return topologies.get_topology_desc("", "cuda", target_config=described(CARDS[kind]), topology=shape).devices


def described(card: Card) -> str:
    """XLA's `GpuTargetConfig` of a card, as text."""
    (major, minor), cudnn = card.capability, ".".join(map(str, CUDNN))
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared}
  threads_per_core_limit: 2048
  core_count: {card.cores}
  fpus_per_core: {128 if major >= 9 else 64}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(card.bandwidth)}
  l2_cache_size: {card.l2}
  clock_rate_ghz: {card.ghz}
  device_memory_size: {int(card.gib * 2**30)}
  shared_memory_per_block_optin: {card.shared_block}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability {major}.{minor}"
  device_address_bits: 64
  pcie_bandwidth: 34359738368
  ecc_enabled: true
  name: "{card.name}"
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "{cudnn}"
  device_interconnect_info {{ active_links: {card.links} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
device_description_str: "{card.name}"
"""


@contextlib.contextmanager
def cudnn_is_there(kind: str) -> Iterator[None]:
    """Inside, jax traces cuDNN's attention as for a card of a kind, though this machine has neither card nor cuDNN.

    Two private functions of jax, which ask the machine for both, are replaced: no public setting does it.
    """
    from jax._src.cudnn import fused_attention_stablehlo as attention

    major, minor, patch = CUDNN

    def at_least(capability: str) -> bool:
        return CARDS[kind].capability >= tuple(map(int, capability.split(".")))

    version = 10_000 * major + 100 * minor + patch
    with (
        mock.patch.object(attention, "check_cudnn_version", return_value=version),
        mock.patch.object(attention, "check_compute_capability", at_least),
    ):
        yield
