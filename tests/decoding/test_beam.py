"""Beam search: transformers' own texts and scores, on ragged prompts; and prompts' keys that no beam copies."""

import functools
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lowrank_jax import adapters
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.decoding.beam import Beams, beam_search
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.decoder import Decoder, cached_decoder, make_decoder
from lowrank_jax.decoding.greedy import left_pad
from lowrank_jax.decoding.loop import Limits, Prompts, generate
from lowrank_jax.decoding.ngrams import repeating
from lowrank_jax.decoding.weights import ready

SHAPE = {
    "vocab_size": 41, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LLAMA = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
MODELS = {
    "llama": ("Llama", LLAMA),
    "gpt2": ("GPT2", {"n_positions": 64}),
    # Every other layer has a window, of fewer tokens than most prompts.
    "gemma2": ("Gemma2", {**LLAMA, "sliding_window": 5, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0,
                          "hidden_activation": "gelu_pytorch_tanh"}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 5}),
}  # fmt: skip
NEW, ENDS, ROWS, WIDTH = 14, (4, 7), 50, 16


@functools.cache
def torch_model(name):
    """A random model whose next token depends on the text: with small weights all beams repeat one token."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **fields, attn_implementation="eager")
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config).float().eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * (0.5 if parameter.ndim > 1 else 0.1) + (parameter.ndim == 1)
    return model


@functools.cache
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(8, SHAPE["vocab_size"], rng.integers(1, WIDTH + 1)).tolist() for _ in range(ROWS)]


def theirs(name, count, beams, **settings):
    """(tokens [B, K, up to NEW], scores [B, K]) of transformers' generate."""
    import torch

    # Padded by an end token, which no beam goes on from: transformers' n-grams include the padding.
    tokens, mask = left_pad(rows()[:count], ENDS[0], WIDTH)
    given = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": ENDS[0], "eos_token_id": list(ENDS)}
    given |= {"return_dict_in_generate": True, "output_scores": True, "num_return_sequences": beams}
    with torch.no_grad():
        out = torch_model(name).generate(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), num_beams=beams, **given, **settings
        )
    texts = out.sequences[:, tokens.shape[1] :].numpy().reshape(count, beams, -1)
    return texts, out.sequences_scores.numpy().reshape(count, beams) if beams > 1 else None


def prompts(given, live=None):
    tokens, mask = left_pad(given, 0, WIDTH)
    return Prompts(tokens, mask, np.zeros(len(given), np.int32), live)


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """load(name) -> the base that is read from the folder of transformers' model."""

    @functools.cache
    def call(name, quantize="none"):
        folder = tmp_path_factory.mktemp(name)
        torch_model(name).save_pretrained(folder)
        return load_base(BaseConfig(str(folder), quantize=quantize))

    return call


def ended(text):
    """A text up to its end token, or whole."""
    text = text.tolist()
    return text[: next((i for i, token in enumerate(text) if token in ENDS), len(text)) + 1]


def search(base, limits, how, given=None, model=None):
    model = model or base.model
    decoder = make_decoder(model.apply, base.config, jnp.float32)
    run = jax.jit(functools.partial(beam_search, decoder), static_argnums=(2, 3))
    return jax.tree.map(np.asarray, run({"params": base.params}, given or prompts(rows()), limits, how))


# Three beams and ten, with n-grams blocked and free, each of the ways to stop, penalties around the default.
SETTINGS = [
    ("llama", ROWS, 10, 4, 0.8, False),
    ("llama", ROWS, 10, 0, 1.2, "never"),
    ("llama", ROWS, 3, 0, 1.0, True),
    ("gpt2", 12, 3, 2, 0.8, False),
    ("gemma2", 12, 3, 2, 0.8, False),
    ("mistral", 12, 10, 4, 0.8, False),
]


@pytest.mark.parametrize(("name", "count", "beams", "n", "penalty", "stopping"), SETTINGS)
def test_equals_transformers(name, count, beams, n, penalty, stopping, load):
    """The best texts token by token; and the scores of all, of which two may be so close that they change places."""
    texts, scores = theirs(
        name, count, beams, length_penalty=penalty, early_stopping=stopping,
        **({"no_repeat_ngram_size": n} if n else {}),
    )  # fmt: skip
    limits = Limits(NEW, ENDS, 0, no_repeat_ngram=n)
    found = search(load(name), limits, Beams(beams, penalty, stopping), prompts(rows()[:count]))
    best = [ended(row[0]) for row in found.tokens]
    assert best == [ended(row[0]) for row in texts]
    assert len({tuple(text) for text in best}) > count / 2
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    assert all((row[0, len(text) :] == 0).all() for row, text in zip(found.tokens, best, strict=True))
    if name == "llama":
        assert min(map(len, best)) < NEW  # some end by themselves
        last = {text[-1] for row in found.tokens for text in map(ended, row)}
        assert last > set(ENDS)  # by either token, and some are cut


@pytest.fixture(scope="module")
def counted(load):
    """counted(prompts, how) -> what three beams find, and how many times they have read a token."""
    base, steps = load("llama"), []
    plain = make_decoder(base.model.apply, base.config, jnp.float32)

    def step(*args):
        jax.debug.callback(lambda: steps.append(1))
        return plain.beams(*args)

    run = jax.jit(functools.partial(beam_search, plain._replace(beams=step)), static_argnums=(2, 3))

    def call(given, how):
        steps.clear()
        found = jax.tree.map(np.asarray, run({"params": base.params}, given, Limits(NEW, ENDS, 0), how))
        jax.effects_barrier()
        return found, len(steps)

    return call


def test_it_ends_with_the_last_prompt_and_prompts_do_not_depend_on_each_other(counted):
    """Where all have as many texts as beams; rows that only fill the batch are not waited for."""
    how = Beams(3, 0.8, True)
    whole, steps = counted(prompts(rows()[:12]), how)
    lengths = [max(len(ended(text)) for text in row) for row in whole.tokens]
    assert steps == max(lengths) - 1  # each but the first token is written after a step
    quickest = int(np.argmin(lengths))
    assert lengths[quickest] < NEW - 1
    order = [quickest, *(row for row in range(12) if row != quickest)]
    live = np.arange(12) == 0
    turned, steps = counted(prompts([rows()[row] for row in order], live), how)
    assert steps == lengths[quickest] - 1
    np.testing.assert_array_equal(turned.tokens[0], whole.tokens[quickest])
    np.testing.assert_allclose(turned.scores[0], whole.scores[quickest], atol=1e-5)


def test_one_beam_is_greedy_decoding_which_blocks_n_grams_too(load):
    base, limits, given = load("llama"), Limits(NEW, ENDS, 0, no_repeat_ngram=2), prompts(rows()[:12])
    wanted = greedy_texts(no_repeat_ngram_size=2)
    assert wanted != greedy_texts()
    one = search(base, limits, Beams(1, 0.0, True), given).tokens[:, 0]
    assert [ended(row) for row in one] == wanted
    decoder = make_decoder(base.model.apply, base.config, jnp.float32)
    written = jax.jit(lambda v: generate(decoder, v, given, limits))({"params": base.params})
    assert [ended(row) for row in np.asarray(written)] == wanted


def greedy_texts(**settings):
    """What transformers' greedy decoding writes."""
    return [ended(row[0]) for row in theirs("llama", 12, 1, **settings)[0]]


@pytest.mark.parametrize("method", ["lora", "mora"])
def test_adapters_beside_and_merged(load, method):
    """The same texts with an adapter beside a quantised base and in decoding's layout: a cache a layer."""
    base, given = load("gemma2", "int8"), prompts(rows()[:12])
    plan = adapters.make_plan(base.params, adapters.AdapterConfig(method, rank=4, targets=("query", "value", "down")))
    fresh = jax.jit(functools.partial(adapters.create, plan))(jax.random.key(0))
    variables = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), fresh)
    limits, how = Limits(NEW, ENDS, 0, no_repeat_ngram=2), Beams(3, 0.8)

    def search(decoder):
        return jax.jit(lambda variables: beam_search(decoder, variables, given, limits, how))

    beside = search(make_decoder(adapters.attach(base.model, plan), base.config, jnp.float32))
    wanted = beside({"params": base.params, **variables})
    fast = ready(base.model, base.params, plan, variables)
    got = search(cached_decoder(fast.apply_fn, fast.empty))(fast.variables)
    np.testing.assert_array_equal(*(np.asarray(found.tokens)[:, 0] for found in (got, wanted)))
    np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-4)
    without = beside({"params": base.params, **fresh})
    assert (np.asarray(got.tokens)[:, 0] != np.asarray(without.tokens)[:, 0]).any()


def made(jaxpr):
    """(shape, dtype, primitive's name) of every value in a traced program, those of its loops and calls too."""
    for equation in jaxpr.eqns:
        yield from ((value.aval.shape, value.aval.dtype, equation.primitive.name) for value in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from made(inner)


def loops(jaxpr):
    """The bodies of a traced program's while loops."""
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            if equation.primitive is lax.while_p and inner is equation.params["body_jaxpr"].jaxpr:
                yield inner
            yield from loops(inner)


def test_no_beam_has_a_copy_of_the_prompt_s_keys_and_none_is_moved(load):
    """No array of the program has a layer's keys of the prompt for each beam; and a step only writes into keys."""
    base, beams, width, new = load("llama"), 10, 24, 4
    decoder = make_decoder(base.model.apply, base.config, jnp.float32)
    given = Prompts(np.ones((2, width), np.int32), np.ones((2, width), bool), np.zeros(2, np.int32))
    found = jax.make_jaxpr(lambda v: beam_search(decoder, v, given, Limits(new, ENDS), Beams(beams)))(
        {"params": base.params}
    )
    sizes = [math.prod(shape) for shape, dtype, _ in made(found.jaxpr) if dtype == jnp.float32]
    layers, kv = base.config.num_hidden_layers, base.config.num_key_value_heads * base.config.head_dim
    keys = 2 * (width + beams * new) * kv  # of a layer: the prompts' once, and the beams' own
    assert layers * keys in sizes
    assert max(sizes) < 2 * beams * width * kv
    (body,) = loops(found.jaxpr)
    head_dim = base.config.head_dim
    makers = {by for shape, _, by in made(body) if math.prod(shape) >= keys and shape[-1] == head_dim}
    assert makers <= {"dynamic_update_slice", "dynamic_slice", "squeeze", "scan", "pjit", "jit"}, makers
    assert "dynamic_update_slice" in makers


@pytest.mark.parametrize(("n", "rows_of"), [(1, 6), (2, 6), (3, 4), (4, 3), (9, 3)])
def test_ngrams_equal_transformers(n, rows_of):
    """On random texts of few different tokens, whole and behind padding that is none of them."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    rng, vocabulary = np.random.default_rng(n), 8
    tokens, end = rng.integers(0, rows_of, (40, 20)), 17
    pad = rng.integers(0, end, (40, 1)) * (np.arange(40) % 4 > 0)[:, None]
    valid = np.arange(20) >= pad
    texts = torch.tensor(np.where(valid, tokens, vocabulary + np.arange(20))[:, :end])
    scores = transformers.NoRepeatNGramLogitsProcessor(n)(texts, torch.zeros(40, vocabulary))
    run = jax.jit(repeating, static_argnums=(3, 4))
    got = np.asarray(run(tokens.astype(np.int32), valid, np.int32(end), n, vocabulary))
    np.testing.assert_array_equal(got, np.isinf(scores.numpy()))
    assert got.any() == (n < 9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Beams(0), "beam search.beams is 0; it must be at least 1"),
        (lambda: Beams(3, 7.0), r"beam search.length_penalty is 7.0; it must lie in \[-6, 6\]"),
        (lambda: Beams(3, math.nan), "beam search.length_penalty is nan"),
        (lambda: Beams(3, early_stopping="always"), "early_stopping is 'always'; it must be True, False or \"never\""),
        (lambda: Limits(4, no_repeat_ngram=-1), "no_repeat_ngram is -1; it must be at least 0"),
        (lambda: run_badly(Limits(4, how=Sampling(temperature=1.0))), "beam search draws nothing"),
        (lambda: run_badly(Limits(4, how=Sampling(repetition_penalty=1.2))), "penalises no token"),
        (lambda: run_badly(Limits(4)), "this model's own cache cannot be shared by beams"),
    ],
)
def test_mistakes(make, words):
    with pytest.raises(UserError, match=words):
        make()


def run_badly(limits):
    """A search with a decoder that has no beams."""
    return beam_search(Decoder(None, None), {}, prompts([[1]]), limits, Beams())


def test_positions_bound_the_tokens_and_not_the_beams(load):
    base = load("llama")
    with pytest.raises(UserError, match="take 76 slots and the model has 64 positions"):
        search(base, Limits(60), Beams())
    decoder = make_decoder(base.model.apply, base.config, jnp.float32)
    found = jax.eval_shape(
        lambda v: beam_search(decoder, v, prompts([[9]]), Limits(2), Beams(65)), {"params": base.params}
    )
    assert found.tokens.shape == (1, 65, 2)
