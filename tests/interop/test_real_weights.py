"""SmolLM2-135M from the cache, when scripts/fetch_weights.py has brought it: numbers that a wrong conversion misses."""

import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.interop import llama
from lowrank_jax.interop.keymap import TRANSPOSE
from lowrank_jax.interop.sources import BaseConfig, cache_folder, load_base
from lowrank_jax.models.registry import get_model

pytestmark = pytest.mark.skipif(
    not list(cache_folder("smollm2-135m").glob("*.gguf")), reason="run: python scripts/fetch_weights.py smollm2-135m"
)
TEXT = (
    "The sun rises in the east and sets in the west. Every morning the farmer walks to the field, feeds the animals "
    "and checks the fences. In the evening he returns home, eats dinner with his family and reads a book before going "
    "to sleep."
)


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("smollm2-135m"))


def perplexity(base, text):
    tokens = jnp.array([base.tokenizer.encode(text)])
    log_probs = jax.nn.log_softmax(base.model.apply({"params": base.params}, tokens)[:, :-1])
    return float(jnp.exp(-jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1).mean()))


def test_shape_and_perplexity(base, monkeypatch):
    assert base.config == get_model("smollm2-135m")
    assert perplexity(base, TEXT) == pytest.approx(12.934, rel=0.01)  # transformers, the same file, float32
    monkeypatch.setattr(llama, "unpermute", lambda heads: TRANSPOSE)
    assert perplexity(load_base(BaseConfig("smollm2-135m")), TEXT) > 30  # the test can fail


def test_tokenizer_round_trip(base):
    texts = [str(uuid.UUID(int=n << 64 | n)) for n in np.random.default_rng(0).integers(0, 2**62, 50).tolist()]
    for text in [*texts, TEXT, "def f(x):\n\treturn x\n", "naïve 日本語 🙂"]:
        assert base.tokenizer.decode(base.tokenizer.encode(text)) == text
    assert base.tokenizer.encode("Hello world 42") == [19556, 905, 216, 36, 34]
