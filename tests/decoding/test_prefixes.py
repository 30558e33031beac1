"""Prompts that begin alike: which beginnings are read apart, and texts beside one are those of whole prompts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax import adapters
from lowrank_jax.adapters.base import AdapterConfig
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.decoder import cached_decoder, make_decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.decoding.prefixes import shared_groups
from lowrank_jax.decoding.stream import Streamer
from lowrank_jax.decoding.weights import ready
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.rotary import DynamicScaling, LinearScaling, LongRopeScaling
from lowrank_jax.models.parts.shared import can_share
from lowrank_jax.models.registry import get_model
from lowrank_jax.text.tokenizers import ByteTokenizer

SHAPE = dataclasses.replace(get_model("toy-llama"), max_position_embeddings=96)
WINDOWS = dataclasses.replace(
    SHAPE, layers=dataclasses.replace(SHAPE.layers, sliding_window=6, local=(True, False)), max_position_embeddings=96
)


def fewest_read(rows):
    """Tokens read by the best division, by trying every set of beginnings that rows share."""
    best = sum(map(len, rows))
    for length in range(1, max(map(len, rows), default=1)):
        heads = {row[:length] for row in rows if len(row) > length}
        for head in heads:
            own = [row for row in rows if row[:length] == head and len(row) > length]
            others = [row for row in rows if row not in own]
            if len(own) > 1 and len(own) < len(rows):
                best = min(best, fewest_read(tuple(own)) + fewest_read(tuple(others)))
            elif len(own) > 1:
                best = min(best, sum(map(len, own)) - length * (len(own) - 1))
    return best


def read(rows, groups):
    return sum(sum(len(rows[row]) for row in own) - length * (len(own) - 1 if length else 0) for length, own in groups)


def test_groups_are_a_division_that_reads_the_fewest_tokens():
    """Random rows of few different tokens; each is in one group, begins as it does, and keeps a token of its own."""
    rng = np.random.default_rng(0)
    gains = 0
    for _ in range(60):
        rows = [tuple(rng.integers(0, 2, rng.integers(1, 6)).tolist()) for _ in range(rng.integers(0, 6))]
        rows = list(dict.fromkeys(rows))
        groups = shared_groups(rows, [len(row) - 1 for row in rows], shortest=1)
        assert sorted(row for _, own in groups for row in own) == list(range(len(rows)))
        for length, own in groups:
            assert len({rows[row][:length] for row in own}) == 1
            assert not length or (len(own) > 1 and min(len(rows[row]) for row in own) > length)
        assert read(rows, groups) == fewest_read(tuple(rows)) <= sum(map(len, rows))
        gains += read(rows, groups) < sum(map(len, rows))
    assert gains > 20


def test_worked_examples_are_read_once_for_their_questions():
    """Two subjects with five examples; each question has four long options, whose beginning is longer still."""
    rng = np.random.default_rng(1)

    def tokens(count):
        return rng.integers(0, 250, count).tolist()

    rows, subjects = [], [[1, 2, *tokens(600)], [1, 2, *tokens(500)]]
    for subject in subjects:
        for _ in range(20):
            question = [*subject, *tokens(40)]
            rows += [[*question, *tokens(6)] for _ in range(4)]
    groups = shared_groups(rows, [len(row) - 6 for row in rows])
    assert [(length, len(own)) for length, own in groups] in (
        [(len(one), 80) for one in subjects],
        [(len(one), 80) for one in reversed(subjects)],
    )
    # without the examples of one question the options alone are left to share
    assert [(length, len(own)) for length, own in shared_groups(rows[:4], [642] * 4)] == [(642, 4)]
    assert [(length, len(own)) for length, own in shared_groups(rows, [len(row) - 6 for row in rows], fewest=81)] == [
        (0, 160)
    ]
    assert shared_groups([[1] * 40, [1] * 31 + [2] * 9], [39, 39]) == [(0, [0, 1])]  # too short to be read apart
    assert shared_groups([], []) == []
    assert shared_groups([[5]], [0]) == [(0, [0])]
    nested = [[7] * count for count in range(40, 1600)]  # each goes on from the one before; no limit of recursion
    assert sum(len(own) for _, own in shared_groups(nested, [len(row) - 1 for row in nested])) == len(nested)


@functools.cache
def made(name):
    """(decoder, variables) of a toy."""
    shape = GPT2Config(256, 32, 2, 4, max_position_embeddings=96) if name == "gpt2" else WINDOWS
    model = (GPT2 if name == "gpt2" else Llama)(shape)
    params = jax.tree.map(lambda leaf: 6 * leaf, drawn(model, np.zeros((1, 4), np.int32))["params"])
    if name == "gpt2":
        return make_decoder(model.apply, shape, jnp.float32), {"params": params}
    plan = adapters.make_plan(params, AdapterConfig("lora", 2, targets=("query", "value", "down")))
    variables = moved(plan, params=params)
    if name == "ready":
        fast = ready(model, params, plan, variables)
        return cached_decoder(fast.apply_fn, fast.empty, fast.whole), fast.variables
    return make_decoder(adapters.attach(model, plan), shape, jnp.float32), {"params": params, **variables}


@pytest.mark.parametrize("name", ["lora", "ready", "gpt2"])
@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=1.0, top_k=20, seed=3)])
def test_texts_beside_a_beginning_are_those_of_whole_prompts(name, how):
    """Of unequal rests, in a batch with a row that only fills it; layers with a window, LoRA, learnt positions."""
    decoder, variables = made(name)
    assert decoder.shared is not None
    rng = np.random.default_rng(2)
    beginning = rng.integers(1, 250, 41).tolist()
    prompts = [[*beginning, *rng.integers(1, 250, count).tolist()] for count in (1, 9, 16)]
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, :41] = beginning
    prefix = jax.jit(decoder.shared.read)(variables, tokens, np.array([41], np.int32))
    streamer, limits = Streamer(decoder, ByteTokenizer(), 96, chunk=5), Limits(12, how=how)

    def texts(*given):
        pieces = list(streamer.stream(variables, prompts, limits, [5, 7, 9], 4, *given))
        return {piece.row: piece.stream.text for piece in pieces}

    wanted = texts()
    assert len(set(wanted.values())) == 3
    assert texts(prefix, 41) == wanted
    assert texts(prefix, 41) == wanted  # it is still there: only the cache of own tokens is donated


def test_models_whose_rotation_depends_on_the_length_read_whole_rows():
    for scaling, shares in (
        (DynamicScaling(4.0, 24), False),
        (LongRopeScaling((1.0,) * 4, (4.0,) * 4, 24, 4.0), False),
        (LinearScaling(2.0), True),
        (None, True),
    ):
        config = dataclasses.replace(SHAPE, rope_scaling=scaling)
        assert can_share(config) is shares
        assert (make_decoder(Llama(config).apply, config, jnp.float32).shared is not None) is shares
