"""Measures reading a base model: time and peak host memory; also writes a synthetic base to read."""

import json
import math
import time
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.core.json_text import read_json

GIB = 2**30


def make_base(folder: str) -> Path:
    """Writes a random bfloat16 Llama of about 2 GB."""
    import jax
    import jax.numpy as jnp

    from lowrank_jax.bases.base import export_params, random_params
    from lowrank_jax.models.llama import LlamaConfig

    shape = LlamaConfig(32_000, 2048, 5632, 16, 32, max_position_embeddings=2048)
    params = random_params(shape, jax.random.key(0), jnp.bfloat16)
    return export_params(params, shape, folder, "bfloat16", shard_size=500_000_000)


def measure(name: str, dtype: str, quantize: str, fsdp: int) -> dict[str, Any]:
    """The record of one load: {"seconds", "params_gib", "largest_shard_gib", "extra_gib", "extra_over_shard", ...}.

    Args:
      name, dtype, quantize: as in config.base.
      fsdp: devices that share each leaf.
    """
    import jax
    import jax.numpy as jnp

    from experiments.records.environment import environment_record
    from lowrank_jax.bases.base import BaseConfig, load_base
    from lowrank_jax.core.trees import count, nbytes
    from lowrank_jax.sharding.mesh import MeshConfig, make_mesh
    from lowrank_jax.sharding.rules import leaf_spec

    sharding_fn = None
    if fsdp > 1:
        mesh = make_mesh(MeshConfig(fsdp=fsdp))

        def place(path, shape):
            return jax.sharding.NamedSharding(mesh, leaf_spec(f"params/{path}", shape, mesh))

        sharding_fn = place

    jax.block_until_ready(jnp.zeros(8) + 1)  # the devices' memory does not count
    started = time.perf_counter()
    with ResidentPeak() as peak:
        base = load_base(BaseConfig(name, dtype=dtype, quantize=quantize), sharding_fn=sharding_fn)
        jax.block_until_ready(base.params)
    seconds = time.perf_counter() - started
    leaves = jax.tree.leaves(base.params)
    shard = max(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    # A CPU device's memory is the host's: the params must stay in it.
    held = sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards if part.device.platform == "cpu")
    return {
        "base": Path(base.name).name,
        "parameters": count(base.params),
        "dtype": dtype,
        "quantize": quantize,
        "fsdp": fsdp,
        "seconds": round(seconds, 2),
        "params_gib": round(nbytes(base.params) / GIB, 3),
        "largest_shard_gib": round(shard / GIB, 3),
        "extra_gib": round((peak.bytes - held) / GIB, 3),
        "extra_over_shard": round((peak.bytes - held) / shard, 2),
        **environment_record(),
    }


def append(file: Path, record: dict[str, Any]) -> None:
    """Adds a record to the list in a JSON file, which is created if it does not exist."""
    what = "python -m experiments.load --make=FOLDER; python -m experiments.load --base=FOLDER --dtype=... --fsdp=..."
    content = {"what": what, "records": []}
    if kind_of(file) is not None:
        content = read_json(file, "name another --out")
        if not isinstance(content, dict) or not isinstance(content.get("records"), list):
            raise UserError(f"{file} has no list of records; name another --out")
    content["records"].append(record)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class ResidentPeak:
    """The most memory beyond that at the start: all resident pages, those of mapped files included.

    By the kernel's high-water mark, reset at the start: a sampling thread would miss memory that is freed between its
    samples.

    Raises:
      UserError: no Linux, whose /proc this reads.
    """

    def __enter__(self) -> "ResidentPeak":
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the mark to the present size
        except OSError:
            raise UserError("peak memory is measured on Linux alone (/proc/self/clear_refs)") from None
        self._start, self.bytes = self._mark(), 0
        return self

    def __exit__(self, *_: Any) -> None:
        self.bytes = self._mark() - self._start

    @staticmethod
    def _mark() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
