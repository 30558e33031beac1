"""The work of a benchmark's step: a random batch, its FLOPs, and the share of the devices' peak that it reaches."""

import numpy as np

from experiments.session.experiment import Experiment
from lowrank_jax.adapters.cost import adapter_flops, kernel_flops
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten

# jax's `device_kind` -> dense bfloat16 FLOP/s of one device, from its maker's data sheet.
PEAKS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5": 459e12,  # v5p
    "TPU v5 lite": 197e12,
    "TPU v6 lite": 918e12,
}


def random_batch(experiment: Experiment, trials: int = 1) -> dict[str, np.ndarray]:
    """A host batch of the experiment's shapes: random tokens and labels, no padding, every weight 1.

    Where the config's label "documents" says how many share a row, their lengths are drawn too, and the first token of
    each is no target.

    Args:
      trials: of one program, then a leading axis.

    Raises:
      UserError: a row has no room for so many documents.
    """
    rng, lead = np.random.default_rng(0), (trials,) if trials > 1 else ()
    draw = experiment.form.random_features(rng, experiment.base.config.vocab_size)
    batch = {
        name: draw[name]((*lead, *leaf.shape)).astype(leaf.dtype) for name, leaf in experiment.abstract_batch.items()
    }
    if count := experiment.config.labels.get("documents"):
        batch["segments"] = packed = _segments(rng, batch["tokens"].shape, int(count))
        batch["weights"] = (np.diff(packed, axis=-1, prepend=0) == 0).astype(batch["weights"].dtype)
    return batch


def _segments(rng: np.random.Generator, shape: tuple[int, ...], count: int) -> np.ndarray:
    """The number of each token's document, from 1: `count` of them a row, of random lengths.

    Raises:
      UserError: a row has no room for so many.
    """
    if not 1 <= count <= shape[-1]:
        raise UserError(f"documents={count} is no number of documents in a row of {shape[-1]} tokens; set it from 1 on")
    begins = np.zeros(shape, np.int32)
    for row in begins.reshape(-1, shape[-1]):
        row[rng.choice(np.arange(1, shape[-1]), count - 1, replace=False)] = 1
    return 1 + begins.cumsum(-1, dtype=np.int32)


def step_flops(experiment: Experiment, tokens: int) -> int:
    """FLOPs of a step over `tokens` rows in products with weights: kernels, a tied head's table and the adapters.

    Left out are attention's products without weights, what a remat policy recomputes, and an encoder's pooler and head,
    which read one token a row.
    """
    config, flat = experiment.base.config, flatten(experiment.base.params)
    once = experiment.form.once
    kernels = {path: leaf for path, leaf in flat.items() if path.endswith("/kernel") and path.split("/")[0] not in once}
    weights = {path: tuple(leaf.shape) for path, leaf in kernels.items()}
    if getattr(config, "tie_word_embeddings", False):
        weights["embed/embedding"] = (config.hidden_size, config.vocab_size)
    learnt = flatten(experiment.abstract_state.trainable.get("params", {}))
    base = sum(kernel_flops([shape], tokens, trained=path in learnt) for path, shape in weights.items())
    return base + adapter_flops(experiment.plan, tokens)


def utilisation(flops: float, seconds: float, kind: str, devices: int) -> float | None:
    """MFU = FLOPs of a step / (seconds * devices * peak FLOP/s); None where PEAKS lacks the kind.

    Args:
      flops: `step_flops` for all tokens of all trials. A frozen kernel has no weight gradient, and counts 4 FLOPs a
        weight and token, not full training's 6: the MFU has no products that are not computed.
      seconds: the time of a step.
      kind: jax's `device_kind`.
      devices: how many of them.
    """
    peak = PEAKS.get(kind)
    return None if peak is None else flops / (seconds * devices * peak)
