"""SmolLM2-135M, Gemma 3 270M and MiniLM-L6 compared with transformers, if scripts/fetch_weights.py fetched them."""

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from by_path import module_at

from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.bases.locate import cache_folder
from lowrank_jax.interop.causal import names
from lowrank_jax.interop.keymap import TRANSPOSE
from lowrank_jax.models.registry import get_model

RECORDS = Path(__file__).parents[2] / "experiments" / "results" / "interop"
needs_smollm2 = pytest.mark.skipif(
    not list(cache_folder("smollm2-135m").glob("*.gguf")), reason="run: python scripts/fetch_weights.py smollm2-135m"
)
needs_gemma3 = pytest.mark.skipif(
    not list(cache_folder("gemma3-270m").glob("*.gguf")), reason="run: python scripts/fetch_weights.py gemma3-270m"
)
needs_minilm = pytest.mark.skipif(
    not (cache_folder("minilm-l6") / "model.safetensors").is_file(),
    reason="run: python scripts/fetch_weights.py minilm-l6",
)


FARM = {"smollm2-135m": 12.934, "gemma3-270m": 9.8445}  # perplexities of the first text


@pytest.fixture(scope="module")
def real():
    return module_at(Path(__file__).with_name("real_weights.py"))


@pytest.fixture(scope="module")
def base():
    return load_base(BaseConfig("smollm2-135m"))


def check_decoder(found, farm):
    for name, pair in found["perplexity"].items():
        assert pair["ours"] == pytest.approx(pair["transformers"], rel=0.01), name
    assert found["perplexity"]["farm"]["ours"] == pytest.approx(farm, rel=0.01)
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
    check_decoder(real.compare_decoder(base), FARM["smollm2-135m"])


@needs_gemma3
def test_gemma3_equals_transformers(real, data_folder):
    """On windows of held-out novels too."""
    base = load_base(BaseConfig("gemma3-270m"))
    assert base.config == get_model("gemma3-270m")
    found = real.compare_decoder(base, data_folder / real.NOVELS)
    check_decoder(found, FARM["gemma3-270m"])
    assert len(found["perplexity"]) == len(real.TEXTS) + real.WINDOWS


@needs_smollm2
def test_a_missed_permutation_shows_in_the_perplexity(real, base, monkeypatch):
    ids = base.tokenizer.encode(real.TEXTS["farm"])
    monkeypatch.setattr(names, "unpermute", lambda heads: TRANSPOSE)
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


def test_the_records_say_the_same():
    record, newer = (json.loads((RECORDS / f"{name}.json").read_text()) for name in ("real_weights", "gemma3"))
    check_decoder(record["smollm2-135m"], FARM["smollm2-135m"])
    check_minilm(record["minilm-l6"])
    check_decoder(newer["gemma3-270m"], FARM["gemma3-270m"])
    assert not record["git"]["dirty"]
    assert not newer["git"]["dirty"]
