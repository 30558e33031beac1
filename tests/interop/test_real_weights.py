"""SmolLM2-135M and MiniLM-L6 compared with transformers, if scripts/fetch_weights.py has fetched them."""

import importlib.util
import json
import uuid
from pathlib import Path

import numpy as np
import pytest

from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.locate import cache_folder
from lowrank_jax.interop import llama
from lowrank_jax.interop.keymap import TRANSPOSE
from lowrank_jax.models.registry import get_model

RECORD = Path(__file__).parents[2] / "experiments" / "results" / "interop" / "real_weights.json"
needs_smollm2 = pytest.mark.skipif(
    not list(cache_folder("smollm2-135m").glob("*.gguf")), reason="run: python scripts/fetch_weights.py smollm2-135m"
)
needs_minilm = pytest.mark.skipif(
    not (cache_folder("minilm-l6") / "model.safetensors").is_file(),
    reason="run: python scripts/fetch_weights.py minilm-l6",
)


@pytest.fixture(scope="module")
def real():
    spec = importlib.util.spec_from_file_location("real_weights", Path(__file__).with_name("real_weights.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("smollm2-135m"))


def check_smollm2(found):
    for name, pair in found["perplexity"].items():
        assert pair["ours"] == pytest.approx(pair["transformers"], rel=0.01), name
    assert found["perplexity"]["farm"]["ours"] == pytest.approx(12.934, rel=0.01)
    assert found["logits"] < 1e-4
    for row in found["greedy"]:
        assert row["ours"] == row["transformers"], row["prompt"]
    assert len({row["ours"] for row in found["greedy"]}) == len(found["greedy"]) >= 4


def check_minilm(found):
    ours = np.array(found["ours"])
    np.testing.assert_allclose(ours, found["transformers"], rtol=0, atol=1e-4)
    assert found["largest_difference"] < 1e-4
    assert ours[0, 1] > 0.5 > ours[0, 2]
    assert ours[2, 3] > 0.5 > ours[1, 3]


@needs_smollm2
def test_smollm2_equals_transformers(real, base):
    assert base.config == get_model("smollm2-135m")
    check_smollm2(real.compare_smollm2(base))


@needs_smollm2
def test_a_missed_permutation_shows_in_the_perplexity(real, base, monkeypatch):
    ids = base.tokenizer.encode(real.TEXTS["farm"])
    monkeypatch.setattr(llama, "unpermute", lambda heads: TRANSPOSE)
    assert real.perplexity(real.logits(load_base(BaseConfig("smollm2-135m")), ids), ids) > 30


@needs_smollm2
def test_tokenizer_round_trip(base):
    texts = [str(uuid.UUID(int=n << 64 | n)) for n in np.random.default_rng(0).integers(0, 2**62, 50).tolist()]
    for text in [*texts, "def f(x):\n\treturn x\n", "naïve 日本語 🙂"]:
        assert base.tokenizer.decode(base.tokenizer.encode(text)) == text
    assert base.tokenizer.encode("Hello world 42") == [19556, 905, 216, 36, 34]


@needs_minilm
def test_minilm_equals_transformers(real):
    base = load_base(BaseConfig("minilm-l6"))
    assert base.config == get_model("minilm-l6")
    assert base.notes == (f"{cache_folder('minilm-l6')}: not read: embeddings.position_ids",)
    check_minilm(real.compare_minilm(base))


def test_the_record_says_the_same():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    check_smollm2(record["smollm2-135m"])
    check_minilm(record["minilm-l6"])
    assert record["git"]["dirty"] is False
