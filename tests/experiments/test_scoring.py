"""Log-likelihoods: beside shared beginnings as of whole rows, and how many tokens are read for them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from experiments.evaluation import batches
from experiments.evaluation.scoring import Scorer
from lowrank_jax import adapters
from lowrank_jax.adapters.base import AdapterConfig, PrefixConfig
from lowrank_jax.core.errors import UserError
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.llama_config import LayerKinds, LlamaConfig
from lowrank_jax.tasks.framing import PLAIN, framing_of

ROOM, V = 160, 61
LLAMA = LlamaConfig(
    V, 32, 48, 2, 4, 2, max_position_embeddings=ROOM, layers=LayerKinds(sliding_window=6, local=(True, False))
)
METHODS = {
    "lora": AdapterConfig("lora", 2, targets=("query", "value", "down")),
    "prelayer": AdapterConfig("prelayer", prefix=PrefixConfig(3, 2)),
    "prefix": AdapterConfig("prefix", init_std=0.5, prefix=PrefixConfig(3)),
}


def tokens(count, seed):
    return np.random.default_rng(seed).integers(1, V, count).tolist()


@functools.cache
def made(name):
    """(model with its adapter, variables, config, virtual tokens)."""
    config = GPT2Config(V, 32, 2, 4, max_position_embeddings=ROOM) if name == "gpt2" else LLAMA
    model = (GPT2 if name == "gpt2" else Llama)(config)
    params = jax.tree.map(lambda leaf: 2 * leaf, drawn(model, np.zeros((1, 4), np.int32))["params"])
    if name == "gpt2":
        return model.apply, {"params": params}, config, PLAIN
    plan = adapters.make_plan(params, METHODS[name])
    return (
        adapters.attach(model, plan),
        {"params": params, **moved(plan, params=params)},
        config,
        framing_of(plan.virtual),
    )


@functools.cache
def scorer(name, share):
    apply_fn, variables, config, virtual = made(name)
    reads = make_decoder(apply_fn, config, jnp.float32).shared
    assert reads is not None
    return Scorer(apply_fn, variables, config, 8, virtual, reads if share else None)


@pytest.fixture(autouse=True)
def worth(monkeypatch):
    """Few tokens are worth a program here."""
    monkeypatch.setattr(batches, "WORTH", 1)


def asked(scorer, requests):
    """(scores, tokens that this call has read)."""
    before = scorer.count.read
    return scorer(requests), scorer.count.read - before


EXAMPLES = tokens(83, 0)  # no bucket has its length
QUESTIONS = [([*EXAMPLES, *tokens(5 + 4 * number, number + 1)], [option]) for number in range(9) for option in (7, 8)]
CONTEXTS = [tokens(length, 20 + length) for length in (50, 41)]
OPTIONS = [(context, tokens(length, 40 + length)) for context in CONTEXTS for length in (2, 5, 9)]
SHOWN = [([*EXAMPLES, *context], option) for context, option in OPTIONS]
SHOWN += [
    ([*EXAMPLES, *tokens(33, 80 + number)], tokens(2 + number, 90 + which)) for number in range(3) for which in (0, 1)
]
FAR = [([*tokens(ROOM - 12, 60), *tokens(count, 61 + count)], tokens(3, 63)) for count in (1, 8)]  # to the last place
REQUESTS = [
    *QUESTIONS,
    *OPTIONS,
    *SHOWN,
    *FAR,
    ([*EXAMPLES, *tokens(ROOM, 64)], [9]),  # loses its beginning
    (tokens(30, 65), tokens(4, 66)),
    ([3], tokens(40, 67)),  # as a window of a rolling log-likelihood
]


@pytest.mark.parametrize("name", ["lora", "prelayer", "prefix", "gpt2"])
def test_shared_beginnings_leave_log_likelihoods_as_they_are(name):
    """Examples, contexts of several long options, both, rows that end at the last place, cut ones, and one alone."""
    wanted, whole = asked(scorer(name, False), REQUESTS)
    found, read = asked(scorer(name, True), REQUESTS)
    assert [one.value for one in found] == pytest.approx([one.value for one in wanted], abs=1e-4)
    assert [one.greedy for one in found] == [one.greedy for one in wanted]
    assert np.isfinite([one.value for one in found]).all()
    assert len({round(one.value, 3) for one in found}) == len(REQUESTS)
    for option in (0, 1):
        assert found[2 * option].value != found[2 * option + 1].value
    assert read < 0.6 * whole
    alone, _ = asked(scorer(name, True), REQUESTS[:1])
    assert alone[0].value == pytest.approx(wanted[0].value, abs=1e-4)


def test_examples_are_read_once_a_group():
    """Nine questions in batches of eight read their examples once; options of a context read it once."""
    one = scorer("lora", True)
    calls, read, extend = [], one._read, one._extend

    def counted(call):
        def counting(*given):
            calls.append(given[-1].tolist())
            return call(*given)

        return counting

    one._read, one._extend = counted(read), counted(extend)
    try:
        _, count = asked(one, QUESTIONS)
        rests = [len(context) - len(EXAMPLES) for context, _ in QUESTIONS[::2]]
        assert (calls, count) == ([[len(EXAMPLES)]], len(EXAMPLES) + sum(rests))
        calls.clear()
        _, count = asked(one, OPTIONS)
        assert sorted(calls[0]) == sorted(len(context) - 1 for context in CONTEXTS)  # the last one predicts, beside it
        assert len(calls) == 1
        assert count == sum(len(context) - 1 for context in CONTEXTS) + sum(len(each) for _, each in OPTIONS)
        calls.clear()
        _, count = asked(one, SHOWN)
        questions = {tuple(context): len(context) - 1 - len(EXAMPLES) for context, _ in SHOWN}
        assert calls[0] == [len(EXAMPLES)]  # then each question behind them, but its last token, and its options
        assert sorted(itertools.chain(*calls[1:])) == sorted([0, *questions.values()])  # a place of a batch is empty
        assert count == len(EXAMPLES) + sum(questions.values()) + sum(len(option) for _, option in SHOWN)
        calls.clear()
        apart = [(tokens(40, 70 + number), [5, 6]) for number in range(3)]
        _, count = asked(one, apart)
        assert (calls, count) == ([], sum(len(context) + 1 for context, _ in apart))
        assert asked(one, []) == ([], 0)
        assert calls == []
    finally:
        one._read, one._extend = read, extend


def test_a_continuation_that_is_too_long_is_refused():
    for requests in ([([1], [2] * (ROOM + 1))], [([], [1])], [([1], [])]):
        with pytest.raises(UserError, match=f"both need at least one, and the model reads {ROOM}"):
            scorer("gpt2", True)(requests)


@pytest.mark.parametrize("limit", ["no limit", "LOGITS", "SCORES"])
def test_batches_have_every_row_once_and_keep_to_their_sizes(limit, monkeypatch):
    """Random rows of several subjects, questions and options: what a batch reads in parts joins to its rows."""
    rng, size = np.random.default_rng(0), 8
    if limit != "no limit":
        monkeypatch.setattr(batches, limit, 4 * 8 * V * 2 if limit == "LOGITS" else 1)
    for _ in range(20):
        rows, subjects = [], [rng.integers(1, V, rng.integers(30, 90)).tolist() for _ in range(rng.integers(1, 4))]
        for _ in range(rng.integers(0, 12)):
            question = [*subjects[rng.integers(len(subjects))], *rng.integers(1, V, rng.integers(1, 50)).tolist()]
            for _ in range(rng.integers(1, 6)):
                target = tuple(rng.integers(1, V, rng.integers(1, 20)).tolist())
                kept = tuple(question + list(target[:-1]))
                rows.append(batches.Row(kept, len(question) - 1, [(len(rows), target)]))
        made = list(batches.Layout(ROOM, V, size, heads=4)(rows))
        found = []
        for batch in made:
            ids, starts, counts, targets = batch.row_arrays()
            assert ids.shape == (len(batch.rows), batch.width)
            alone = limit == "SCORES" and batch.common and not batch.contexts  # no memory for two
            assert len(batch.rows) <= (1 if alone else size)
            assert not batch.contexts or len(batch.rows) % len(batch.contexts) == 0
            for place, row in batch.places():
                context = batch.contexts[place * len(batch.contexts) // len(batch.rows)] if batch.contexts else ()
                before = (*batch.common, *context)
                assert batch.skipped(place) == len(before) <= row.start
                assert (*before, *ids[place, : len(row.tokens) - len(before)].tolist()) == row.tokens
                assert len(before) + starts[place] == row.start
                assert targets[place, : counts[place, 0], 0].tolist() == list(row.targets[0][1])
                found.append(row.targets[0][0])
            if limit == "LOGITS" and not batch.contexts:
                assert len(batch.rows) <= max(1, 16 // batch.most)
        assert sorted(found) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("rows", "worth", "shared"),
    [(12, 12 * 40 - 40, 40), (12, 12 * 40 - 39, 0), (4, 120, 40), (4, 121, 0)],
)
def test_a_beginning_is_read_apart_where_that_saves_enough(rows, worth, shared, monkeypatch):
    """Of many rows, and of few: a program that is compiled for it takes seconds."""
    monkeypatch.setattr(batches, "WORTH", worth)
    beginning = tuple(tokens(40, 0))
    given = [batches.Row((*beginning, number, 1, 2), 40, [(number, (1, 2, 3))]) for number in range(rows)]
    made = list(batches.Layout(ROOM, V, 8, heads=4)(given))
    assert {batch.skipped(place) for batch in made for place, _ in batch.places()} == {shared}
