"""Measures the speed of decoding for each way of reading the weights, and of transformers with the same weights."""

import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.generation import BESIDE, EXACT
from experiments.records.environment import environment_record
from lowrank_jax import adapters
from lowrank_jax.bases.base import Base, BaseConfig, export_params, load_base
from lowrank_jax.bases.peft import export_peft
from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import nbytes
from lowrank_jax.decoding.decoder import cached_decoder
from lowrank_jax.decoding.loop import Limits, Prompts, advance, begin
from lowrank_jax.decoding.weights import Ready, ready
from lowrank_jax.models.parts.cache import init_cache

# jax's `device_kind` -> bytes a second of one device's memory, from its maker's data sheet.
BANDWIDTHS = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12, "NVIDIA A100-SXM4-80GB": 2.04e12}
PEER = Path(__file__).parents[2] / "tests" / "interop" / "peft_generate.py"


def rows(
    shape: str,
    weights: Sequence[str],
    batches: Sequence[int],
    *,
    rank: int = 8,
    prompt: int = 64,
    new: int = 64,
    dtype: str = "bfloat16",
    repeats: int = 5,
    peers: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Measures each way of reading the weights at each batch size; yields a record of each.

    Weights are random, with LoRA on all linear kernels. Decoding is greedy, all prompts are equally long, and no row
    ends early. A record has "ms", the milliseconds of one step, which adds a token to each row: (time of `new` tokens -
    time of one) / (new - 1), of the median times; "first_ms", "compile_seconds", "tokens_per_second", and so on.

    Args:
      shape: a name of `models.registry`.
      weights: of `generation.WEIGHTS`.
      batches: rows.
      rank: of LoRA.
      prompt, new: tokens of each row's prompt, and of its continuation.
      dtype: of the base's weights and of the computation.
      repeats: of each time.
      peers: caches of transformers, "dynamic" and "static", to measure too: the same weights and LoRA, in PEFT.

    Raises:
      UserError: no such shape, or the peer cannot run.
    """
    base, plan, variables = _adapted(shape, rank, dtype)
    tokens = {batch: _prompts(batch, prompt, base.config.vocab_size) for batch in batches}
    common = {"shape": shape, "rank": rank, "prompt": prompt, "new": new, "dtype": dtype, **environment_record()}
    found = {}
    for way in weights:
        model = _model(way, base, plan, variables)
        for batch in batches:
            record, found[batch] = _measure(model, tokens[batch], new, repeats)
            yield {"weights": way, "batch": batch, **record, **common}
        del model
    for cache in peers:
        options = {"new": new, "repeats": repeats, "cache": cache}
        for record, written in _peer(base, plan, variables, tokens, options):
            ours = found.get(record["batch"])
            same = None if ours is None else float((written == ours).all(1).mean())
            yield {"weights": f"transformers {cache}", "equal_rows": same, **record, **common}


def _adapted(shape: str, rank: int, dtype: str) -> tuple[Base, adapters.Plan, dict[str, Any]]:
    base = load_base(BaseConfig(shape, dtype=dtype, random_init=True), key=jax.random.key(0))
    plan = adapters.make_plan(base.params, adapters.AdapterConfig("lora", rank=rank, targets=("all-linear",)))
    variables = adapters.create(plan, jax.random.key(1))
    draw = jax.jit(lambda tree: jax.tree.map(lambda x: 0.01 * jax.random.normal(jax.random.key(2), x.shape), tree))
    return base, plan, {**variables, "adapters": draw(variables["adapters"])}  # B = 0 would be no update


def _prompts(batch: int, length: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (batch, length)).astype(np.int32)


def _model(way: str, base: Base, plan: adapters.Plan, variables: dict[str, Any]) -> Ready:
    if way == BESIDE:
        empty = functools.partial(init_cache, base.config, dtype=base.model.dtype)
        return Ready(adapters.attach(base.model, plan), {"params": base.params, **variables}, empty)
    return ready(base.model, base.params, plan, variables, exact=way == EXACT)


def _measure(model: Ready, tokens: np.ndarray, new: int, repeats: int) -> tuple[dict[str, Any], np.ndarray]:
    batch, decoder = len(tokens), cached_decoder(model.apply_fn, model.empty)
    prompts = Prompts(jnp.asarray(tokens), jnp.ones(tokens.shape, bool), jnp.arange(batch, dtype=jnp.int32))
    limits = Limits(new)

    def write(variables: Any, prompts: Prompts, until: Any) -> Any:
        state, cache = begin(decoder, variables, prompts, limits)
        return advance(decoder, variables, prompts, limits, state, cache, until)[0].output

    started = time.perf_counter()
    program = jax.jit(write).lower(model.variables, prompts, jnp.int32(new)).compile()
    compiled = time.perf_counter() - started

    def run(count: int) -> np.ndarray:
        return np.asarray(program(model.variables, prompts, jnp.int32(count)))

    times = {count: _median(functools.partial(run, count), repeats) for count in (1, new)}
    step = (times[new] - times[1]) / (new - 1)
    bandwidth = BANDWIDTHS.get(jax.devices()[0].device_kind)
    read = nbytes(model.variables) / step
    record = {
        "ms": round(step * 1e3, 4),
        "first_ms": round(times[1] * 1e3, 3),
        "tokens_per_second": round(batch / step),
        "weights_gib": round(nbytes(model.variables) / 2**30, 3),
        "bandwidth": round(read / bandwidth, 4)
        if bandwidth
        else None,  # share of it that reading the weights once takes
        "compile_seconds": round(compiled, 1),
    }
    return record, run(new)


def _median(run: Callable[[], Any], repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _peer(
    base: Base, plan: adapters.Plan, variables: Any, tokens: dict[int, np.ndarray], options: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(record, tokens) of each batch from PEER, the script of transformers, which gets weights and prompts as files."""
    dtype = jnp.dtype(base.model.dtype).name
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_params(base.params, base.config, folder / "base", dtype)
        export_peft(folder / "adapter", plan, {"params": base.params, **variables}, base)
        prompts: dict[str, Any] = {str(batch): given.astype(np.int64) for batch, given in tokens.items()}
        np.savez(folder / "prompts.npz", **prompts)
        files = {"base": "base", "adapter": "adapter", "prompts": "prompts.npz", "out": "out.npz"}
        flags = {**{name: folder / file for name, file in files.items()}, "dtype": dtype, **options}
        command = [sys.executable, str(PEER), *(f"--{name}={value}" for name, value in flags.items())]
        with interrupts.tidied():  # the child ends with this process
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(
                f"{PEER.name} ended with status {done.returncode}; its last lines say why (it needs the extra [parity])"
            )
        written = np.load(folder / "out.npz")
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                yield record, written[str(record["batch"])]
