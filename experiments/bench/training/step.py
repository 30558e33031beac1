"""Measures one training step: compiles it, runs it on random tokens, times it, and returns a record."""

import dataclasses
import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.training.work import random_batch, step_flops, utilisation
from experiments.records.environment import environment_record
from experiments.session.build import build
from experiments.session.trial_group import TrialGroup
from lowrank_jax.forms.registry import form_of
from lowrank_jax.sharding.mesh import batch_share
from lowrank_jax.train.compiled import memory

TRACED = 3  # steps of a profile


def measure(
    config: Any,
    seq_len: int | None,
    steps: int,
    warmup: int,
    trials: int = 1,
    trace: str | None = None,
    timings: int = 1,
) -> dict[str, Any] | None:
    """The record of a config's step: {"ms", "tokens_per_second", "peak_gib", "compile_seconds", ...}.

    Args:
      config: an unpacked RunConfig.
      seq_len: tokens a row; None takes the config's.
      steps, warmup: timed steps, and those before them.
      trials: in one program, which differ in their rates.
      trace: folder for a profile of TRACED more steps.
      timings: how often the steps are timed.

    Returns:
      None on other processes than the first.
    """
    started = time.perf_counter()
    # A labelled task's length is in its config; that of other tasks may be in their data.
    own = config.task.seq_len if form_of(config.task).bucketed else None
    seq_len = seq_len or config.labels.get("seq_len") or own
    if trials > 1:
        rates = [config.optimizer.learning_rate * (trial + 1) / trials for trial in range(trials)]
        optimizers = [dataclasses.replace(config.optimizer, learning_rate=rate) for rate in rates]
        group = TrialGroup([dataclasses.replace(config, optimizer=one) for one in optimizers], seq_len)
        experiment = group.lead
    else:
        group = experiment = build(config, seq_len=seq_len)
    compile_started = time.perf_counter()
    compiled = group.compile(ahead=True)
    compile_seconds = time.perf_counter() - compile_started
    needed = memory.check_fits(compiled)
    compiled = group.step_function(compiled)
    load_started = time.perf_counter()
    state, frozen, _fingerprint = group.load()
    load_seconds = time.perf_counter() - load_started

    local = random_batch(experiment, trials)
    shape = local["tokens"].shape
    tokens = math.prod(shape[-2:])  # of one trial
    share = batch_share(experiment.mesh)
    rows = len(local["tokens"]) // share["process_count"]
    batch = group.place({name: x[share["process_index"] * rows :][:rows] for name, x in local.items()})

    seconds, losses = [], []
    for step in range(warmup + steps * timings):
        begin = time.perf_counter()
        state, metrics = compiled(state, frozen, batch)
        jax.block_until_ready(metrics["loss"])  # as in the peer's script, where the copy to the host is not timed
        taken = time.perf_counter() - begin
        if step == 0:
            first_step, first_step_at = time.perf_counter() - started, time.time()
        if step >= warmup:
            seconds.append(taken)
        losses.append(float(np.mean(metrics["loss"])))
    if trace:
        with jax.profiler.trace(trace):
            for _ in range(TRACED):
                state, metrics = compiled(state, frozen, batch)
            jax.block_until_ready(metrics["loss"])
    each = [statistics.median(seconds[first : first + steps]) for first in range(0, len(seconds), steps)]
    median = statistics.median(each)
    device = jax.local_devices()[0]
    flops_per_token = step_flops(experiment, tokens) / tokens
    mfu = utilisation(flops_per_token * math.prod(shape), median, device.device_kind, group.mesh.size)
    record = {
        "labels": dict(config.labels),
        "trainable": experiment.parameters["trainable"],
        "frozen": experiment.parameters["frozen"],
        "batch": list(shape[-2:]),
        "trials": trials,
        "ms": round(median * 1e3, 3),
        "ms_min_max": [round(min(seconds) * 1e3, 3), round(max(seconds) * 1e3, 3)],
        "steps": steps,
        **({"timings_ms": [round(one * 1e3, 3) for one in each]} if timings > 1 else {}),
        "tokens_per_second": round(math.prod(shape) / median),
        "flops_per_token": round(flops_per_token),
        "devices": group.mesh.size,
        "mfu": round(mfu, 4) if mfu else None,
        "peak_gib": round(peak / 2**30, 3) if (peak := memory.peak_bytes(device)) else None,
        "step_gib": round(needed.needed / 2**30, 3) if needed else None,
        "build_seconds": round(compile_started - started, 2),
        "compile_seconds": round(compile_seconds, 2),
        "load_seconds": round(load_seconds, 2),
        "first_step_seconds": round(first_step, 2),
        "first_step_at": round(first_step_at, 2),  # since the epoch: the starting program knows its own start
        "losses": [round(losses[0], 4), round(losses[-1], 4)],
        "remat": config.base.remat,
        "scan_unroll": config.base.scan_unroll,
        "fused": config.base.fused,
        "dtype": jnp.dtype(config.base.dtype).name,
        "quantize": config.base.quantize,
        **environment_record(),
    }
    return record if jax.process_index() == 0 else None
