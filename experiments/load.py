"""Time and peak host memory of reading a base model, as one JSON line: `python -m experiments.load --base=FOLDER`.

    python -m experiments.load --make=/tmp/synthetic      # writes a random Llama of about 2 GB there first
    python -m experiments.load --base=/tmp/synthetic
"""

import json
import resource
import threading
import time
from pathlib import Path
from typing import Any

from absl import flags

from experiments.main import launch
from lowrank_jax.core.errors import UserError

flags.DEFINE_string("make", None, "Folder to write a random bfloat16 Llama of about 2 GB to; nothing is measured then.")
flags.DEFINE_string("base", None, "Base model to read, as in base.name.")
flags.DEFINE_string("dtype", "bfloat16", "Type the leaves are held in.")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints {"seconds", "params_gib", "largest_leaf_gib", "peak_over_params_gib", ...}."""
    import jax
    import jax.numpy as jnp

    from experiments.runs import environment_record
    from lowrank_jax.core.trees import nbytes
    from lowrank_jax.interop.sources import BaseConfig, export_params, load_base, random_params
    from lowrank_jax.models.llama import LlamaConfig

    if FLAGS.make:
        shape = LlamaConfig(32_000, 2048, 5632, 16, 32, max_position_embeddings=2048)
        params = random_params(shape, jax.random.key(0), jnp.bfloat16)
        print(export_params(params, shape, FLAGS.make, "bfloat16", shard_size=500_000_000))
        return
    if not FLAGS.base:
        raise UserError("give --base=FOLDER, or --make=FOLDER to write one")
    jax.block_until_ready(jnp.zeros(8) + 1)  # the devices' own memory is no part of the load
    started = time.perf_counter()
    with AnonymousPeak() as peak:
        base = load_base(BaseConfig(FLAGS.base, dtype=FLAGS.dtype))
        jax.block_until_ready(base.params)
    total, largest = nbytes(base.params), max(nbytes(leaf) for leaf in jax.tree.leaves(base.params))
    record = {
        "base": base.name,
        "seconds": round(time.perf_counter() - started, 2),
        "params_gib": round(total / 2**30, 3),
        "largest_leaf_gib": round(largest / 2**30, 3),
        # On a CPU the host holds the params too: what is left is what the load itself needed.
        "peak_over_params_gib": round((peak.bytes - total) / 2**30, 3),
        "dtype": FLAGS.dtype,
        **environment_record(),
    }
    print(json.dumps(record))


class AnonymousPeak:
    """Most anonymous memory beyond that at the start, sampled every 2 ms: resident pages without mapped files.

    A checkpoint is read through a mapping, whose pages the kernel may drop at any time: they are no need of the load.
    """

    def __enter__(self) -> "AnonymousPeak":
        self._start, self.bytes, self._stop = self._now(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.bytes = max(self.bytes, self._now() - self._start)

    @staticmethod
    def _now() -> int:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
        return (resident - shared) * resource.getpagesize()


if __name__ == "__main__":
    launch(main)
