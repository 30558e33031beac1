"""Measures beam search over E2E's test inputs on real weights, and transformers' beam search with the same weights."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.records.environment import environment_record
from lowrank_jax.bases.base import Base, BaseConfig, export_params, load_base
from lowrank_jax.core import interrupts
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.source import load_nlg
from lowrank_jax.data.builders.nlg.specs import NLG
from lowrank_jax.decoding.beam import Beams
from lowrank_jax.decoding.decoder import cached_decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.weights import ready
from lowrank_jax.forms.evaluate import make_generator
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh
from lowrank_jax.tasks.nlg.rows import NlgEncoder
from lowrank_jax.tasks.nlg.task import NlgConfig, decoded_split, inputs_of

PEER = Path(__file__).parents[2] / "tests" / "interop" / "beam_generate.py"
TASK = "e2e"


def rows(
    name: str,
    data_dir: str | None,
    *,
    beams: int = 10,
    length_penalty: float = 0.9,
    no_repeat_ngram: int = 4,
    new: int = 64,
    batch: int = 64,
    dtype: str = "bfloat16",
    repeats: int = 3,
    peer: bool = False,
    partial: bool = False,
) -> Iterator[dict[str, Any]]:
    """Decodes all inputs; yields a record of ours, and with `peer` one of transformers.

    A record has "seconds", the median time of all inputs, without compiling; "compile_seconds", by how much the first
    pass was longer; "inputs", "batches" and the settings. That of the peer also has "equal_texts", the share of equal
    texts: in bfloat16 two programs round differently, and choose differently where two beams are nearly equal.

    Args:
      name: of the base, with its weights; nothing is trained.
      data_dir: E2E's official files; see `load_nlg`.
      beams, length_penalty, no_repeat_ngram, new: of the search; prompts count for repeated n-grams.
      batch: inputs decoded at a time; those of a batch are about equally long, on both sides.
      dtype: of the weights and of the computation.
      repeats: how often the time is measured; the median counts.
      peer: whether transformers decodes the same prompts as well.
      partial: whether incomplete files of E2E are accepted.

    Raises:
      UserError: no such base or data; the peer cannot run.
    """
    base = load_base(BaseConfig(name, dtype=dtype), jax.random.key(0))
    if base.tokenizer is None:
        raise UserError(f"{name} comes without a tokenizer; name a base that has one")
    config = NlgConfig(TASK, data_dir=data_dir, allow_partial=partial)
    loaded, _ = load_nlg(TASK, decoded_split(config), data_dir, partial)
    encoder = NlgEncoder(NLG[TASK], base.tokenizer)
    prompts = [encoder.prompt(row.context) for row in inputs_of(config, loaded)]
    prompts.sort(key=len)
    limits = Limits(new, encoder.ends(), base.tokenizer.pad_id or 0, no_repeat_ngram=no_repeat_ngram)
    settings = {"beams": beams, "length_penalty": length_penalty, "no_repeat_ngram": no_repeat_ngram, "new": new}
    common = {"base": name, "dtype": dtype, "batch": batch, **settings, "inputs": len(prompts), **environment_record()}
    common["batches"] = -(-len(prompts) // batch)
    seconds, first, texts = _ours(base, prompts, limits, Beams(beams, length_penalty), batch, repeats)
    yield {"program": "ours", "seconds": seconds, "compile_seconds": round(first - seconds, 1), **common}
    if peer:
        record, written = _theirs(base, prompts, limits, {**settings, "batch": batch, "repeats": repeats})
        same = [base.tokenizer.decode(ids) == text for ids, text in zip(written, texts, strict=True)]
        yield {"program": "transformers", **record, "equal_texts": round(sum(same) / len(same), 4), **common}


def _ours(
    base: Base, prompts: list[list[int]], limits: Limits, beams: Beams, batch: int, repeats: int
) -> tuple[float, float, list[str]]:
    """(median seconds, seconds of the first pass, texts)."""
    fast = ready(base.model, jax.tree.map(jnp.asarray, base.params))
    decoder, mesh = cached_decoder(fast.apply_fn, fast.empty), make_mesh(MeshConfig(), jax.devices()[:1])
    write = make_generator(decoder, base.tokenizer, mesh, prompts, limits, batch, beams=beams)
    times, texts = [], []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        texts = write(fast.variables)
        times.append(time.perf_counter() - began)
    return round(statistics.median(times[1:]), 3), times[0], texts


def _theirs(
    base: Base, prompts: list[list[int]], limits: Limits, options: dict[str, Any]
) -> tuple[dict[str, Any], list[list[int]]]:
    """(record, tokens of each text without its end) from PEER, which gets weights and prompts as files."""
    dtype = jnp.dtype(base.model.dtype).name
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        export_params(base.params, base.config, folder / "base", dtype)
        (folder / "prompts.json").write_text(json.dumps(prompts))
        files = {name: folder / file for name, file in (("base", "base"), ("prompts", "prompts.json"))}
        flags = {**files, "out": folder / "out.json", "dtype": dtype, "pad": limits.pad_id, **options}
        flags["ends"] = ",".join(map(str, limits.end_ids))
        command = [sys.executable, str(PEER), *(f"--{name}={value}" for name, value in flags.items())]
        with interrupts.tidied():  # the child ends with this process
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise UserError(
                f"{PEER.name} ended with status {done.returncode}; its last lines say why (it needs the extra [parity])"
            )
        found = json.loads((folder / "out.json").read_text())
        return found["record"], found["tokens"]
