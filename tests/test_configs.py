"""Every config file, with every choice of its argument, is built on shapes: no weight is read, nothing trained."""

import importlib
import itertools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from config_files import unpack_file

from experiments.cli import complete_file
from experiments.config.labels import with_labels
from experiments.config.plain import config_hash, to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.registry import LLAMAS

ROOT = Path(__file__).parents[1]
COMPRESSIONS = ("truncation", "sharing", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")
SCALES = ("laptop", "gpu", "paper")
# The registered shape of each scale's base, whose weights may not be here; tokens a row.
SHAPES = {"laptop": ("pico-llama", 74), "gpu": ("smollm2-135m", 68), "paper": ("llama2-7b", 96)}
CACHE = os.environ.get("LOWRANK_JAX_CACHE")
METHODS = ("method=lora", "method=fft", *(f"method=mora,compression={name}" for name in COMPRESSIONS))


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path):
    """No weights in the cache, no Hub, and the paths that configs are named by."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path / "cache"))


def test_every_file_is_covered_here():
    found = {path.stem for path in (ROOT / "configs").glob("*.py") if "def get_config(" in path.read_text()}
    elsewhere = {"lora_glue", "lora_mnli", "lora_nlg", "mora_finetune", "mora_pretrain", "peft_metamath"}
    assert found == {"mora_uuid", "bench", "pico_pretrain", "finetune"} | elsewhere


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_mora_uuid(scale, method, tmp_path):
    """All readings and data; one layout a method and scale, as these change neither sites nor shapes.

    What a compression makes of a square is laid out at the paper's scale, two of them at each.
    """
    names = set()
    (tmp_path / "own.jsonl").write_text('{"text": "abc"}\n')
    for reading, data in itertools.product(("paper", "code"), ("uuid", "text")):
        name = f"configs/mora_uuid.py:scale={scale},{method},reading={reading},data={data}"
        config = unpack_file(name, **({"task__path": str(tmp_path / "own.jsonl")} if data == "text" else {}))
        names.add(config_hash(to_plain(complete_file(name))))
        assert config.task_name == data
        assert config.adapter.dropout == (0.05 if reading == "code" else 0.0)
    assert len(names) == 4
    if scale != "paper" and method.startswith("method=mora") and not method.endswith(("sharing", "rotation")):
        return
    shape, seq_len = SHAPES[scale]
    config = unpack_file(f"configs/mora_uuid.py:scale={scale},{method}", base__name=shape, base__random_init=True)
    experiment = build(config, seq_len)
    assert experiment.parameters["frozen" if method != "method=fft" else "trainable"] == {
        "laptop": 3_304_448, "gpu": 134_515_008, "paper": 6_738_415_616,
    }[scale]  # fmt: skip
    assert len(experiment.plan.sites) == (0 if method == "method=fft" else 7)


@pytest.mark.parametrize("data", ["uuid", "text"])
@pytest.mark.parametrize("reading", ["paper", "code"])
def test_the_laptop_scale_with_its_own_base_and_data(reading, data, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"prompt": "1 + 1 = ", "completion": "2"}\n')
    name = f"configs/mora_uuid.py:reading={reading},data={data}"
    experiment = build(unpack_file(name, **({"task__path": str(tmp_path / "own.jsonl")} if data == "text" else {})))
    features = experiment.task.features(experiment.task.train_source()[0])
    assert features["tokens"].shape == experiment.abstract_batch["tokens"].shape[1:]
    targets = {("uuid", "paper"): 36, ("uuid", "code"): 73, ("text", "paper"): 2, ("text", "code"): 2}
    assert features["weights"].sum() == targets[data, reading]


def test_equal_budgets():
    """At one rank LoRA and MoRA train about as many parameters at every scale; the paper's are 2a of its table."""
    for scale, (shape, seq_len) in SHAPES.items():
        names = (f"configs/mora_uuid.py:scale={scale},method={method}" for method in ("lora", "mora"))
        configs = (unpack_file(name, base__name=shape, base__random_init=True) for name in names)
        lora, mora = (build(config, seq_len).parameters["trainable"] for config in configs)
        assert mora == pytest.approx(lora, rel=0.02), scale


def test_ranks_of_the_paper():
    lora, mora = (
        build(unpack_file(f"configs/mora_uuid.py:scale=paper,{method},rank=256", base__name="llama2-7b",
                       base__random_init=True), 96)
        for method in ("method=lora", "method=mora")
    )  # fmt: skip
    assert lora.parameters["trainable"] == 32 * 19_988_480
    assert lora.config.adapter.alpha == 128
    assert mora.parameters["trainable"] == pytest.approx(lora.parameters["trainable"], rel=1e-3)
    with pytest.raises(UserError, match="rank 256 needs a square of 443, too large for a 576 x 192 kernel"):
        build(unpack_file("configs/mora_uuid.py:scale=gpu,method=mora,rank=256", base__random_init=True), 68)


def test_a_base_that_is_not_here_is_said_with_its_remedy(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"smollm2-135m is not in .*: python scripts/fetch_weights.py smollm2-135m"):
        build(unpack_file("configs/mora_uuid.py:scale=gpu"))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot reach the Hub for meta-llama/Llama-2-7b-hf .*; give a local folder"):
        build(unpack_file("configs/mora_uuid.py:scale=paper"))


def test_the_gpu_scale_with_its_own_tokenizer(monkeypatch):
    """Where the weights have been fetched: 67 tokens a pair on average, as letters may join; 74 in the longest."""
    from lowrank_jax.bases import locate

    if CACHE is None:
        monkeypatch.delenv("LOWRANK_JAX_CACHE")
    else:
        monkeypatch.setenv("LOWRANK_JAX_CACHE", CACHE)
    if not locate.cache_folder("smollm2-135m").is_dir():
        pytest.skip("smollm2-135m has not been fetched")
    experiment = build(unpack_file("configs/mora_uuid.py:scale=gpu", task__pairs=200, task__eval_pairs=20))
    weights = np.stack([experiment.task.features(row)["weights"] for row in experiment.task.train_source()])
    assert 66 < weights.sum(axis=1).mean() + 1 < 68
    assert experiment.task.seq_len <= 74


@pytest.mark.parametrize(
    ("shape", "method"),
    [(shape, "mora") for shape in sorted(LLAMAS)]  # whose squares ask most of a shape
    + [(shape, method) for shape in ("toy-llama", "llama2-7b", "gemma-3-1b") for method in ("lora", "fft")],
)
def test_bench(shape, method):
    rank = 2 if shape == "toy-llama" else 8
    name = f"configs/bench.py:shape={shape},method={method},rank={rank},batch=8,seq=64,remat=projections,unroll=2"
    config = unpack_file(f"{name},chunk_tokens=64")
    experiment = build(config, seq_len=config.labels["seq_len"])
    assert experiment.abstract_batch["tokens"].shape == (8, 64)
    assert experiment.base.model.remat == "projections"
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(experiment.base.params)} == {"bfloat16"}
    assert experiment.config.optimizer.clip_norm == 0


@pytest.mark.parametrize(
    ("remat", "option"),
    [
        ("none", "dtype=float32"),
        ("full", "method=mora,compression=rotation"),
        ("attention", "attention=xla"),
        ("projections", "unroll=4"),
    ],
)
def test_bench_options(remat, option):
    config = unpack_file(f"configs/bench.py:shape=pico-llama,batch=8,seq=64,remat={remat},{option}")
    assert build(config, seq_len=64).config.base.remat == remat


def test_pico_pretrain(tmp_path):
    (tmp_path / "own.jsonl").write_text('{"text": "abc "}\n' * 200)
    paths = dict.fromkeys(("task__path", "task__validation_path"), (str(tmp_path / "own.jsonl"),))
    for dtype in ("bfloat16", "float32"):
        experiment = build(unpack_file(f"configs/pico_pretrain.py:steps=50,dtype={dtype}", **paths))
        assert experiment.parameters == {"trainable": 3_304_448, "frozen": 0}
        assert str(experiment.base.params["embed"]["embedding"].dtype) == dtype
        assert experiment.config.schedule.warmup_steps == 5


GRIDS = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("[a-z]*.py"))


def config_of_grid(name):
    """The config file that a grid is for: by the grid's name, or its first word."""
    own = {"uuid": "mora_uuid", "ranks": "mora_uuid", "glue": "lora_glue", "mnli": "lora_mnli"}
    own |= {
        "e2e": "lora_nlg",
        "webnlg": "lora_nlg",
        "wikisql": "lora_nlg",
        "mora": "mora_finetune",
        "rates": "mora_finetune",
        "domains": "mora_finetune",
    }
    files = {**own, "pretrain": "mora_pretrain", "rates_uuid": "mora_uuid"}
    return f"configs/{files.get(name) or files[name.split('_')[0]]}.py"


@pytest.mark.parametrize("name", GRIDS)
def test_grids_are_made_of_configs_that_exist(name):
    """Each cell: its argument is known and its overrides are keys of the config."""
    from experiments.config.defaults import wrong_key

    grid = importlib.import_module(f"configs.sweeps.{name}")
    stages = grid.stages() if hasattr(grid, "stages") else [("full", grid.cells())]
    keys = {cell["arg"]: set() for _, cells in stages for cell in cells}
    for _, cells in stages:
        for cell in cells:
            keys[cell["arg"]] |= cell.get("overrides", {}).keys()
    for arg, names in keys.items():
        config = complete_file(f"{config_of_grid(name)}:{arg}")
        for key in names:
            assert wrong_key(config, f"config.{key}") is None, (arg, key)


@pytest.mark.parametrize("name", GRIDS)
def test_every_adapter_of_a_grid_fits_its_base(name):
    """The largest rank of each adapter, on the base's registered shape."""
    largest = {}
    for cell in Grid(config_of_grid(name), f"configs/sweeps/{name}.py").cells.values():
        adapter, base = (
            cell.plain["adapter"],
            with_labels(cell.plain)["labels"].get("model", cell.plain["base"]["name"]),
        )
        kind = json.dumps([base, {**adapter, "rank": 0, "alpha": 0}], sort_keys=True)
        if kind not in largest or largest[kind][1]["adapter"]["rank"] < adapter["rank"]:
            largest[kind] = (base, cell.plain)
    assert largest
    for base, plain in largest.values():
        plain["base"] |= {"name": base, "random_init": True}
        if plain["task"].get("path") == [""]:  # left to the command
            plain["task"]["path"] = "own.jsonl"
        plain["optimizer"]["learning_rate"] = 1e-3  # some cells take another cell's best rate, which is not known here
        build(unpack_run(plain), 16, devices=jax.devices()[:1])


FINETUNE = "configs/finetune.py"


@pytest.mark.parametrize("method", ["lora", "mora", "dora", "fft"])
def test_finetune_on_shapes(method):
    """Bases that are not here, by their registered shapes: a Llama, and GPT-2, which has no gate."""
    for shape, sites in (("smollm2-135m", 7), ("gpt2", 6)):
        config = unpack_file(f"{FINETUNE}:base={shape},data=a.jsonl,method={method},packed", base__random_init=True)
        experiment = build(config, 64)
        assert len(experiment.plan.sites) == (0 if method == "fft" else sites)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(experiment.base.params)} == {"bfloat16"}
        assert {*experiment.abstract_batch} == {"tokens", "weights", "segments"}
        assert config.optimizer.learning_rate == (2e-5 if method == "fft" else 3e-4)
        assert config.adapter.alpha == 16


def test_finetune_on_conversations(tmp_path):
    """The shipped base: length and batch from the data, an evaluation an epoch, packed or not."""
    ask, say = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": [ask, say] * (1 + i % 3)}) + "\n" for i in range(12)))
    name = f"{FINETUNE}:data={path},validation={path},chat=zephyr,batch=8,epochs=2"
    alone, packed = (build(unpack_file(name + more)) for more in ("", ",packed,rank=4,schedule=linear"))
    assert {*alone.abstract_batch} == {"tokens", "weights"}
    assert alone.config.train.eval_steps == (2, 3)  # 12 and 24 rows in batches of 8
    assert packed.abstract_batch["segments"].shape == packed.abstract_batch["tokens"].shape == (8, 104)
    assert (packed.config.adapter.rank, packed.config.adapter.alpha) == (4, 8)
    assert (alone.config.schedule.kind, packed.config.schedule.kind) == ("cosine", "linear")
    assert str(alone.base.params["embed"]["embedding"].dtype) == "float32"
    with pytest.raises(UserError, match=r"task\.path is empty"):
        unpack_file(FINETUNE)
    named = unpack_file(f"{FINETUNE}:data=hub:owner/name/config:train,validation=tfds:name:test")
    assert (named.task.path, named.task.validation_path) == ("hub:owner/name/config:train", "tfds:name:test")
