"""The work of a benchmark's step: a random batch, and its FLOPs."""

import numpy as np

from experiments.session.experiment import Experiment
from lowrank_jax.adapters.cost import adapter_flops, kernel_flops
from lowrank_jax.core.paths import flatten


def random_batch(experiment: Experiment, trials: int = 1) -> dict[str, np.ndarray]:
    """A host batch of the experiment's shapes: random tokens and labels, no padding, every weight 1.

    Args:
      trials: of one program, then a leading axis.
    """
    draw = experiment.form.random_features(np.random.default_rng(0), experiment.base.config.vocab_size)
    lead = (trials,) if trials > 1 else ()
    return {
        name: draw[name]((*lead, *leaf.shape)).astype(leaf.dtype) for name, leaf in experiment.abstract_batch.items()
    }


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
