"""The parts of evaluations: decoding prompts, predicting labels, and summing the loss over held-out batches."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lowrank_jax.core.trees import combine
from lowrank_jax.core.types import ApplyFn, Array, Objective, Tree
from lowrank_jax.decoding.beam import Beams, beam_search
from lowrank_jax.decoding.decoder import Decoder
from lowrank_jax.decoding.greedy import left_pad
from lowrank_jax.decoding.loop import Limits, Prompts, generate
from lowrank_jax.decoding.prefixes import shared_groups
from lowrank_jax.decoding.text import TextStream
from lowrank_jax.sharding.mesh import BATCH_AXES, batch_sharding, replicated
from lowrank_jax.tasks.base import round_up

MULTIPLE = 8  # prompts' slots are rounded up to one: few shapes to compile


def make_generator(
    decoder: Decoder,
    tokenizer: Any,
    mesh: Mesh,
    prompts: Sequence[Sequence[int]],
    limits: Limits,
    batch_size: int,
    stops: Sequence[str] = (),
    room: int | None = None,
    beams: Beams | None = None,
) -> Callable[[Tree], list[str]]:
    """Makes a function variables -> the continuation of every prompt; batches have one shape, which compiles once.

    A beginning that all prompts share (worked examples, a system's message) is read once a batch, and the cache has it
    once; not with beams.

    Args:
      decoder: a causal model with a cache.
      tokenizer: decode(ids) -> text.
      mesh: prompts are split over its batch axes.
      prompts: token ids.
      limits: how many tokens are written, and how they are chosen.
      batch_size: prompts a batch; rounded up until the mesh divides it.
      stops: strings that end a text and are no part of it.
      room: slots for the prompts, which padding leaves unexceeded where they fit; None: any number.
      beams: searches for the likeliest texts; prompts are then decoded by length, so that those of a batch end at about
        the same time. None: `limits` says how tokens are chosen, and prompts keep their order.
    """
    shards = int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))
    batch_size = -(-min(batch_size, len(prompts)) // shards) * shards
    missing = -len(prompts) % batch_size
    order = list(range(len(prompts)))
    if beams is not None:
        order.sort(key=lambda row: len(prompts[row]))
    prompts = [prompts[row] for row in order]
    beginning = _beginning(decoder, prompts, limits) if beams is None else []
    prompts = [prompt[len(beginning) :] for prompt in prompts]
    longest = max(map(len, prompts))
    width = max(min(round_up(longest, MULTIPLE), room or math.inf), longest, 1)
    tokens, mask = left_pad([*prompts, *list(prompts[:1]) * missing], limits.pad_id, int(width))
    rows = np.arange(len(tokens), dtype=np.int32)

    @jax.jit
    def decode(variables, *given):
        if beams is None:
            prefix = None
            if decoder.shared is not None and beginning:
                ids, length = jnp.asarray([beginning], jnp.int32), jnp.asarray([len(beginning)], jnp.int32)
                prefix = decoder.shared.read(variables, ids, length)
            out = generate(decoder, variables, Prompts(*given, prefix=prefix), limits)
        else:
            out = beam_search(decoder, variables, Prompts(*given), limits, beams).tokens[:, 0]
        return jax.lax.with_sharding_constraint(out, replicated(mesh))

    def place(rows):  # every process has all prompts; the sharding picks its rows
        return jax.make_array_from_callback(rows.shape, batch_sharding(mesh), rows.__getitem__)

    def write(variables: Tree) -> list[str]:
        texts = []
        for start in range(0, len(tokens), batch_size):
            part = slice(start, start + batch_size)
            given = (tokens[part], mask[part], rows[part], rows[part] < len(prompts))
            out = np.asarray(decode(variables, *map(place, given))).tolist()
            texts += [TextStream(tokenizer, limits.end_ids, stops).push(row, last=True) for row in out]
        written = dict(zip(order, texts, strict=False))  # those of the rows that fill the last batch are left out
        return [written[row] for row in range(len(order))]

    return write


def _beginning(decoder: Decoder, prompts: Sequence[Sequence[int]], limits: Limits) -> list[int]:
    """The tokens that all prompts begin with, where they are worth reading apart and can be."""
    if decoder.shared is None or limits.looks_back or len(prompts) < 2:
        return []
    groups = shared_groups(prompts, [len(prompt) - 1 for prompt in prompts], fewest=len(prompts))
    return list(prompts[0][: groups[0].length])


def make_predictor(apply_fn: ApplyFn, types: bool = True) -> Callable[[Tree, dict], Array]:
    """(variables, batch) -> float32 outputs of an encoder's head, [B, labels] or [B]; not jitted.

    Args:
      apply_fn, types: as in `label.label_objective`.
    """

    def predict(variables, batch):
        given = {name: batch[name] for name in ("mask", *(("types",) if types else ()))}
        return apply_fn(variables, batch["tokens"], **given).astype(jnp.float32)

    return predict


def in_order(size: int, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Puts rows of batches back into the source's order: (indices [B], values [B, ...]) -> [size, ...].

    Args:
      size: rows in all; an index of -1 marks a filler row.

    Raises:
      ValueError: a row is missing.
    """
    out, seen = None, np.zeros(size, bool)
    for indices, values in batches:
        out = np.zeros((size, *values.shape[1:]), values.dtype) if out is None else out
        real = indices >= 0
        out[indices[real]], seen[indices[real]] = values[real], True
    if not seen.all():
        raise ValueError(f"{int((~seen).sum())} of {size} rows were not evaluated")
    assert out is not None  # there are rows
    return out


def make_loss_evaluator(
    objective: Objective, options: Any = None
) -> Callable[[Tree, Iterable[dict]], tuple[float, float]]:
    """(variables, device batches) -> (sum of losses, sum of weights) over all of them; `options` as in `Setting`."""

    @functools.partial(jax.jit, compiler_options=options)
    def sums(variables, batch):
        loss, extra = objective(variables, batch, None)
        return loss, extra["weight"]

    def evaluate(variables: Tree, batches: Iterable[dict]) -> tuple[float, float]:
        loss, weight = _total(sums(variables, batch) for batch in batches).tolist()
        return loss, weight

    return evaluate


def make_trials_loss_evaluator(
    objective: Objective, axes: Any, mesh: Mesh, options: Any = None
) -> Callable[[Tree, Tree, Iterable[dict]], list[tuple[float, float]]]:
    """(stacked trainable, frozen, host batches) -> for each trial the sums of `make_loss_evaluator`, in one program.

    Args:
      objective, options: as there.
      axes: of the frozen tree, for `jax.vmap`.
      mesh: of the trials.
    """

    def each(trainable, frozen, batch):
        loss, extra = objective(combine(trainable, frozen), batch, None)
        return loss, extra["weight"]

    stacked = jax.vmap(each, in_axes=(0, axes, None))
    sums = jax.jit(stacked, out_shardings=replicated(mesh), compiler_options=options)

    def evaluate(trainable: Tree, frozen: Tree, batches: Iterable[dict]) -> list[tuple[float, float]]:
        totals = _total(sums(trainable, frozen, batch) for batch in batches)
        return [(loss, weight) for loss, weight in totals.T.tolist()]

    return evaluate


def _total(sums: Iterable[tuple[Array, Array]]) -> np.ndarray:
    """The batches' (loss, weight) added in float64: [2], or [2, trials]. All are dispatched before any is fetched.

    Fetching each one first would leave the device idle while the next batch is read, encoded and sent.
    """
    found = list(sums)
    return np.sum(np.asarray(jax.device_get(found), np.float64), axis=0) if found else np.zeros(2)
