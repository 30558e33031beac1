"""Evaluation: continuations do not depend on batches, padding or mesh; held-out losses add up to the plain mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from lowrank_jax import adapters
from lowrank_jax.decoding.beam import Beams
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.decoding.loop import Limits
from lowrank_jax.forms.evaluate import make_generator, make_loss_evaluator
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh
from lowrank_jax.sharding.rules import shard_tree
from lowrank_jax.text.tokenizers import ByteTokenizer

CONFIG = get_model("toy-llama")
TOKENIZER = ByteTokenizer()
PROMPTS = [
    list(text.encode()) for text in ("a", "the cat", "longer than the others", "mat", "x y z", "fig", "0:", "1:", "no")
]
NEW = 5


@pytest.fixture(scope="module")
def model():
    """(apply_fn, variables): a toy Llama with an adapter that has left zero, so that a forgotten one shows."""
    module = Llama(CONFIG)
    params = drawn(module, np.zeros((1, 8), np.int32), seed=1)["params"]
    params = jax.tree.map(lambda x: 4 * np.asarray(x) if x.ndim > 2 else x, params)  # spread, so that texts differ
    plan = adapters.make_plan(params, adapters.AdapterConfig("mora", rank=4, targets=("query", "down")))
    return adapters.attach(module, plan), {"params": params, **moved(plan, 0.1)}


def generator(apply_fn, mesh=MeshConfig(), stop_id=None, batch_size=64, prompts=PROMPTS, room=None, beams=None):
    limits = Limits(NEW, () if stop_id is None else (stop_id,), TOKENIZER.pad_id)
    decoder = make_decoder(apply_fn, CONFIG, jnp.float32)
    return make_generator(decoder, TOKENIZER, make_mesh(mesh), prompts, limits, batch_size, room=room, beams=beams)


@pytest.fixture(scope="module")
def wanted(model):
    """Token by token over the whole text, without cache, padding or batch: the ids of each continuation."""
    apply_fn, variables = model
    forward = jax.jit(lambda tokens: apply_fn(variables, tokens))
    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(NEW):
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(ids)] = ids
            ids.append(int(np.argmax(forward(padded)[0, len(ids) - 1])))
        rows.append(ids[len(prompt) :])
    return rows


@pytest.mark.parametrize("batch_size", [1, 64])
def test_continuations_are_those_of_the_plain_model(model, wanted, batch_size):
    """Nine prompts: one whole batch and a rest, or one batch with padding rows, over 8 devices."""
    apply_fn, variables = model
    texts = generator(apply_fn, batch_size=batch_size)(variables)
    assert texts == [TOKENIZER.decode(row) for row in wanted]
    assert len(set(texts)) > 1


def test_beams_decode_by_length_and_return_the_prompts_order(model, wanted):
    """One beam is greedy decoding; nine prompts of seven lengths in batches of eight, over 8 devices."""
    apply_fn, variables = model
    texts = generator(apply_fn, batch_size=1, beams=Beams(1))(variables)
    assert texts == [TOKENIZER.decode(row) for row in wanted]


def test_a_prompt_that_just_fits(model):
    """Its slots are rounded up only as far as the model has positions for the new tokens."""
    apply_fn, variables = model
    room = CONFIG.max_position_embeddings - NEW
    assert room % 8, "nothing would be rounded"
    (text,) = generator(apply_fn, prompts=[[97] * room], room=room)(variables)
    assert text


def test_continuations_do_not_depend_on_the_mesh(model, wanted):
    apply_fn, variables = model
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    texts = generator(apply_fn, mesh)(shard_tree(variables, make_mesh(mesh)))
    assert texts == [TOKENIZER.decode(row) for row in wanted]


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_worked_examples_that_all_prompts_share_are_read_once_a_batch(model, mesh):
    """The same texts as of whole prompts, from rows that have the rests alone; where limits look back, whole ones."""
    apply_fn, variables = model
    examples, placed = list(b"one: two; three: four; five: six; " * 2), make_mesh(mesh)
    prompts = [[*examples, *prompt] for prompt in PROMPTS]
    decoder, seen = make_decoder(apply_fn, CONFIG, jnp.float32), []

    def start(variables, tokens, *given):
        seen.append(tokens.shape[1])
        return decoder.start(variables, tokens, *given)

    def texts(shared, limits):
        made = decoder._replace(start=start, shared=shared)
        return make_generator(made, TOKENIZER, placed, prompts, limits, 64)(shard_tree(variables, placed))

    limits = Limits(NEW, (), TOKENIZER.pad_id)
    wanted = texts(None, limits)
    assert texts(decoder.shared, limits) == wanted
    assert len(set(wanted)) > 1
    assert seen == [96, 24]
    if mesh == MeshConfig():
        texts(decoder.shared, Limits(NEW, (), TOKENIZER.pad_id, no_repeat_ngram=2))
        assert seen == [96, 24, 96]


def test_a_row_ends_at_the_stop_token(model, wanted):
    apply_fn, variables = model
    stop = wanted[1][2]
    texts = generator(apply_fn, stop_id=stop)(variables)
    cut = [row[: row.index(stop)] if stop in row else row for row in wanted]
    assert any(len(row) < NEW for row in cut)
    assert texts == [TOKENIZER.decode(row) for row in cut]


def test_fewer_prompts_than_devices(model, wanted):
    apply_fn, variables = model
    assert generator(apply_fn, prompts=PROMPTS[:1])(variables) == [TOKENIZER.decode(wanted[0])]


def test_decoding_compiles_once(model):
    """Also over several batches and for new weights: the adapters are arguments."""
    apply_fn, variables = model
    traced = []

    def counting(*args, **kwargs):
        traced.append(kwargs.get("method"))
        return apply_fn(*args, **kwargs)

    generate = generator(counting, batch_size=8)
    first = generate(variables)
    count = len(traced)
    other = generate(variables | {"adapters": jax.tree.map(jnp.zeros_like, variables["adapters"])})
    assert len(traced) == count
    assert other != first


def test_losses_and_weights_are_summed_over_batches(model):
    apply_fn, variables = model
    rng = np.random.default_rng(0)
    batches = [
        {
            "tokens": rng.integers(0, 256, (4, 12)).astype(np.int32),
            "weights": rng.integers(0, 2, (4, 12)).astype(np.float32),
        }
        for _ in range(3)
    ]
    batches[2]["weights"][2:] = 0  # the rows that fill up a last batch
    loss, weight = make_loss_evaluator(next_token_objective(apply_fn))(variables, batches)
    expected, total, forward = 0.0, 0.0, jax.jit(lambda *args: jax.nn.log_softmax(apply_fn(*args)))
    for batch in batches:
        logp = np.asarray(forward(variables, batch["tokens"]))[:, :-1]
        picked = np.take_along_axis(logp, batch["tokens"][:, 1:, None], -1)[..., 0]
        expected -= (picked * batch["weights"][:, 1:]).sum()
        total += batch["weights"][:, 1:].sum()
    assert weight == total
    assert loss == pytest.approx(expected, rel=1e-5)


def test_evaluation_has_no_dropout(model):
    """The objective gets no dropout key, so two passes agree to the bit."""
    _, variables = model
    module = Llama(CONFIG)
    config = adapters.AdapterConfig("mora", rank=4, targets=("query", "down"), dropout=0.5)
    apply_fn = adapters.attach(module, adapters.make_plan(variables["params"], config))
    batch = {"tokens": np.arange(24, dtype=np.int32).reshape(2, 12), "weights": np.ones((2, 12), np.float32)}
    evaluate = make_loss_evaluator(next_token_objective(apply_fn))
    assert evaluate(variables, [batch]) == evaluate(variables, [batch])
    plain = make_loss_evaluator(next_token_objective(model[0]))(variables, [batch])
    assert evaluate(variables, [batch])[0] == pytest.approx(plain[0], rel=1e-6)


def test_no_batches_give_zeros(model):
    assert make_loss_evaluator(next_token_objective(model[0]))(model[1], []) == (0.0, 0.0)
