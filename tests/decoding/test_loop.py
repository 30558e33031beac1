"""The loop over tokens: equal to transformers' generate; and draws that depend on a row alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn

from lowrank_jax.core.errors import UserError
from lowrank_jax.decoding import beam
from lowrank_jax.decoding.choice import Sampling
from lowrank_jax.decoding.decoder import Decoder, make_decoder
from lowrank_jax.decoding.greedy import left_pad
from lowrank_jax.decoding.loop import Limits, Prompts, generate
from lowrank_jax.interop.llama import export_params
from lowrank_jax.models.llama import Llama, LlamaConfig

CONFIG = LlamaConfig(
    vocab_size=41, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
)  # fmt: skip
DECODER = make_decoder(Llama(CONFIG).apply, CONFIG, jnp.float32)
RUN = jax.jit(functools.partial(generate, DECODER), static_argnums=2)
NEW, LENGTHS = 12, (5, 11, 1, 8)


@pytest.fixture(scope="module")
def variables():
    """Random weights of unit gain: with small ones every row repeats one token."""
    made = drawn(Llama(CONFIG), np.zeros((1, 4), np.int32), seed=4)
    return jax.tree.map(lambda x: np.float32(1.5) * np.asarray(x), made)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(1, CONFIG.vocab_size, n).tolist() for n in LENGTHS]


def prompts(rows, numbers=None, multiple=8, live=None):
    tokens, mask = left_pad(rows, 0, multiple)
    return Prompts(tokens, mask, np.array(range(len(rows)) if numbers is None else numbers, np.int32), live)


def test_equals_transformers_with_a_penalty_and_several_ends(variables, rows, tmp_path):
    """Row by row there, as one ragged batch here: transformers' penalty would count a shorter row's padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    export_params(variables["params"], CONFIG, tmp_path)
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    def theirs(prompt, **settings):
        given = {"attention_mask": torch.ones(1, len(prompt)), "max_new_tokens": NEW, "do_sample": False}
        out = model.generate(torch.tensor([prompt]), **given, **settings, pad_token_id=0, bos_token_id=None)
        return out[0, len(prompt) :].tolist()

    free = [theirs(prompt, repetition_penalty=1.5, eos_token_id=None) for prompt in rows]
    assert free[0] != theirs(rows[0], eos_token_id=None)  # the penalty counts
    ends = [free[0][4], free[1][7]]
    wanted = [theirs(prompt, repetition_penalty=1.5, eos_token_id=ends) for prompt in rows]
    assert {5, 8} <= {len(row) for row in wanted}  # both ends are met
    limits = Limits(NEW, tuple(ends), 0, Sampling(repetition_penalty=1.5))
    got = np.asarray(RUN(variables, prompts(rows), limits)).tolist()
    assert got == [row + [0] * (NEW - len(row)) for row in wanted]


def test_a_row_draws_by_its_number_alone(variables, rows):
    """The same text with other neighbours, wider padding, beside a row that only fills the batch."""
    how = Sampling(temperature=1.5, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1, seed=3)
    limits = Limits(NEW, how=how)
    whole = np.asarray(RUN(variables, prompts(rows), limits))
    assert len({tuple(row) for row in whole}) == len(rows)
    np.testing.assert_array_equal(whole, RUN(variables, prompts(rows), limits))
    turned = np.asarray(RUN(variables, prompts(rows[::-1], [3, 2, 1, 0]), limits))
    np.testing.assert_array_equal(whole, turned[::-1])
    wide = np.asarray(RUN(variables, prompts([rows[1], rows[3], rows[0], rows[0]], [1, 3, 9, 0], 24), limits))
    np.testing.assert_array_equal(whole[[1, 3, 0]], wide[[0, 1, 3]])
    assert (wide[2] != wide[3]).any()  # of equal prompts each row draws for itself


def test_no_tokens_are_refused():
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        Limits(0)


def test_a_prompt_s_ngrams_may_be_written_once_where_the_limits_say_so():
    """A model that counts modulo 4 writes 1 after "0 1 2 3 0"; "0 1" is in the prompt, and later in the text."""

    def counting(token):
        return -jnp.abs((token[:, None] + 1) % 4 - jnp.arange(8, dtype=jnp.int32)).astype(jnp.float32)

    def start(variables, tokens, mask, length):
        return counting(tokens[:, -1]), jnp.zeros((), jnp.float32)

    def step(variables, token, position, slots, cache):
        return counting(token), cache

    def written(**limits):
        given = prompts([[0, 1, 2, 3, 0]], multiple=1)
        run = jax.jit(functools.partial(generate, Decoder(start, step)), static_argnums=2)
        return run({}, given, Limits(6, no_repeat_ngram=2, **limits)).tolist()[0]

    assert written()[0] == 0  # not 1: "0 1" would stand twice
    assert written(repeat_prompt=True) == [1, 2, 3, 0, 1, 1]


def test_beams_read_the_same_limits():
    tokens = jnp.asarray([[[2, 1, 2, 0]]], jnp.int32)
    state = beam.State(jnp.int32(3), tokens, *[None] * 5)
    for own, banned in ((False, [1, 3]), (True, [1])):
        limits = Limits(4, no_repeat_ngram=2, repeat_prompt=own)
        found = jax.jit(beam._repeating, static_argnums=(1, 3))(prompts([[2, 3]], multiple=1), limits, state, 5)
        assert np.flatnonzero(np.asarray(found)[0, 0]).tolist() == banned
