"""How the next token is chosen, against transformers' processors on random logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.decoding.choice import Sampling, choose, penalise, row_keys, warp

ROWS, VOCABULARY = 64, 97
SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"top_p": 0.6},
    {"top_p": 1e-3},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"temperature": 1.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
]


def random_logits(seed=0):
    return np.random.default_rng(seed).normal(0, 3, (ROWS, VOCABULARY)).astype(np.float32)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_warpers_equal_transformers(settings):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    made = {
        "temperature": transformers.TemperatureLogitsWarper, "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper, "min_p": transformers.MinPLogitsWarper,
    }  # fmt: skip
    want = torch.tensor(random_logits())
    for name, value in settings.items():
        want = made[name](value)(None, want)
    got = np.asarray(warp(jnp.asarray(random_logits()), Sampling(**{"temperature": 1.0, **settings})))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want.numpy()))
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-6)
    assert "temperature" in settings or not np.isfinite(got).all()


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_equals_transformers(penalty):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (ROWS, 30))
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    want = processor(torch.tensor(ids), torch.tensor(random_logits())).numpy()
    seen = jnp.zeros((ROWS, VOCABULARY), bool).at[jnp.arange(ROWS)[:, None], ids].set(True)
    np.testing.assert_allclose(penalise(jnp.asarray(random_logits()), seen, penalty), want, rtol=1e-6)


def test_the_order_is_transformers_own():
    """Of its generate: what it builds for one config, on one row of logits."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {"temperature": 1.7, "top_k": 30, "top_p": 0.8, "min_p": 0.04}
    tiny = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    model = transformers.LlamaForCausalLM(tiny)
    config = transformers.GenerationConfig(do_sample=True, repetition_penalty=1.4, **settings)
    prompt = torch.tensor([[1, 2, 3, 4]] * ROWS)
    built = model._get_logits_processor(config, 4, prompt, None, transformers.LogitsProcessorList(), device="cpu")
    assert len(built) == 5
    want = built(prompt, torch.tensor(random_logits())).numpy()
    seen = jnp.zeros((ROWS, VOCABULARY), bool).at[:, jnp.array([1, 2, 3, 4])].set(True)
    got = np.asarray(warp(penalise(jnp.asarray(random_logits()), seen, 1.4), Sampling(**settings)))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_draws_are_those_of_the_documented_keys():
    """fold_in(fold_in(key(seed), row), step): found again by hand; and the shares of draws are the probabilities."""
    logits, how = jnp.asarray(random_logits()), Sampling(temperature=1.0, seed=7)
    got = choose(logits, None, row_keys(7, jnp.arange(ROWS)), jnp.int32(3), how)
    for row in (0, 5):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), row), 3)
        assert got[row] == jax.random.categorical(key, logits[row])
    assert (got != choose(logits, None, row_keys(8, jnp.arange(ROWS)), jnp.int32(3), how)).any()
    many = 4000
    three = jnp.tile(jnp.log(jnp.array([[0.5, 0.3, 0.2]])), (many, 1))
    drawn = choose(three, None, row_keys(0, jnp.arange(many)), jnp.int32(0), Sampling(temperature=1.0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / many, [0.5, 0.3, 0.2], atol=0.03)


def test_one_candidate_is_the_most_likely_token():
    logits = jnp.asarray(random_logits())
    greedy = choose(logits, None, row_keys(0, jnp.arange(ROWS)), jnp.int32(0), Sampling())
    np.testing.assert_array_equal(greedy, np.argmax(random_logits(), axis=-1))
    for how in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-6)):
        np.testing.assert_array_equal(choose(logits, None, row_keys(0, jnp.arange(ROWS)), jnp.int32(0), how), greedy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", 1e-9), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 1.5),
     ("repetition_penalty", 0.0), ("seed", -1), ("seed", 2**32), ("temperature", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range(field, value):
    with pytest.raises(UserError, match=f"sampling.{field} is "):
        Sampling(**{field: value})
