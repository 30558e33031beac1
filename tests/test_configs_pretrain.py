"""configs/mora_pretrain.py: every shape, method and reading, on shapes; nothing is fetched or drawn."""

from pathlib import Path

import jax
import pytest
from config_files import unpack_file

from configs import mora_pretrain
from configs.hyperparameters import pretrain as tables
from experiments.config.labels import derive
from experiments.config.plain import to_plain
from experiments.session.build import build
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten

ROOT = Path(__file__).parents[1]
FILE = "configs/mora_pretrain.py"
# Trained beside the adapters: embeddings, head, norms; and LoRA's A and B at r=128 (64): r (d_in + d_out) a kernel.
BESIDE = {
    "small": 2 * 259 * 384 + 17 * 384,
    "250m": 2 * 32_100 * 768 + 49 * 768,
    "1.3b": 2 * 32_100 * 2_048 + 49 * 2_048,
}
LORA = {
    "small": 8 * 64 * (4 * 768 + 3 * 1_408),
    "250m": 24 * 128 * (4 * 1_536 + 3 * 3_328),
    "1.3b": 24 * 128 * (4 * 4_096 + 3 * 7_509),
}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def unpacked(arg):
    return unpack_file(f"{FILE}:data=FOLDER,{arg}")


@pytest.mark.parametrize("shape", ["small", *tables.SHAPES])
def test_every_method_on_shapes(shape):
    """What is trained and what is frozen; a merge of ReMoRA is laid out as its step is."""
    counts = {}
    for method in mora_pretrain.METHODS:
        experiment = build(unpacked(f"shape={shape},method={method}"), 16, devices=jax.devices()[:1])
        counts[method] = experiment.parameters["trainable"]
        assert (experiment.merge is not None) == (method in ("relora", "remora"))
        assert derive(to_plain(experiment.config))["method"] == {"full": "fft"}.get(method, method)
    assert counts["lora"] == counts["relora"] == BESIDE[shape] + LORA[shape]
    assert counts["mora"] == counts["remora"] == pytest.approx(counts["lora"], rel=0.01)
    frozen = flatten(experiment.abstract_frozen)
    assert not frozen  # of full training
    layers = build(unpacked(f"shape={shape},method=remora"), 16, devices=jax.devices()[:1])
    state, held = jax.eval_shape(layers.merge, layers.abstract_state, layers.abstract_frozen)
    for now, then in ((state, layers.abstract_state), (held, layers.abstract_frozen)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), now) == jax.tree.map(lambda x: (x.shape, x.dtype), then)


def test_readings_lengths_and_refusals():
    paper, code = (unpacked(f"shape=250m,method=remora,reading={reading}") for reading in ("paper", "code"))
    assert (paper.restart.schedule, paper.restart.groups, paper.schedule.end_fraction) == ("jagged", "paper", 0.1)
    assert (code.restart.schedule, code.restart.groups, code.schedule.end_fraction) == ("restart", "code", 0.0)
    assert (paper.restart.every, paper.restart.warmup_steps, paper.train.steps) == (2_000, 50, 10_000)
    assert (paper.adapter.alpha, paper.optimizer.learning_rate, paper.train.batch_size) == (64.0, 5e-4, 1_024)
    short = unpacked("method=relora,steps=100")
    assert (short.restart.every, short.schedule.warmup_steps, short.adapter.alpha) == (20, 5, 32.0)
    assert unpacked("method=lora,rank=8").adapter.alpha == 4.0
    assert unpacked("method=mora").restart.every == 0
    with pytest.raises(UserError, match="config argument every is not read by method=mora"):
        unpacked("method=mora,every=10")
    with pytest.raises(UserError, match="path is empty"):
        unpack_file(FILE)
