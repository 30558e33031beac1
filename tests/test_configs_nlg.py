"""configs/lora_nlg.py: every cell on shapes, the counts and tables of the paper, its readings, its grids, refusals."""

import importlib
from pathlib import Path

import jax
import pytest
from config_files import unpack_file

from experiments.cli import complete_file
from experiments.config.plain import content_hash, to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.sweeps.compatible import group_key
from experiments.sweeps.grid import Grid
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[1]
FILE = "configs/lora_nlg.py"
CONFIG = importlib.import_module("configs.lora_nlg")
TASKS = ("e2e", "webnlg", "dart", "wikisql", "samsum")


@pytest.fixture(autouse=True)
def nothing_fetched(monkeypatch, tmp_path):
    """No weights in the cache, no Hub, and the paths that configs are named by."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("LOWRANK_JAX_CACHE", str(tmp_path / "cache"))


def unpacked(arg, **changes):
    return unpack_file(f"{FILE}:{arg}", **changes)


def laid_out(arg):
    """The experiment on the model's registered shape."""
    model = unpacked(arg).labels["model"]
    return build(unpacked(arg, base__name=model, base__random_init=True), 16, devices=jax.devices()[:1])


# Trained scalars by the paper's formulas; the comments have what its tables print.
COUNTS = {
    "model=gpt2-medium,method=lora": 393_216,  # the paper prints 0.35M
    "model=gpt2-large,method=lora": 737_280,  # 0.77M
    "model=gpt2-medium,method=adapter-l": 368_784,  # 0.37M
    "model=gpt2-medium,method=adapter-l,rank=224": 11_089_152,  # 11.09M
    "model=gpt2-large,method=adapter-l": 875_808,  # 0.88M
    "model=gpt2-large,method=adapter-l,rank=248": 23_002_848,  # 23.00M
    "model=gpt2-medium,method=adapter-h": 11_064_576,  # 11.09M
    "model=gpt2-medium,method=ft-top2": 25_192_448,  # 25.19M
    "model=gpt2-medium,method=fft": 354_823_168,  # 354.92M
    "model=gpt2-large,method=fft": 774_030_080,  # 774.03M
    "model=gpt3-175b,method=lora,rank=1": 4_718_592,  # 4.7M
    "model=gpt3-175b,method=lora": 37_748_736,  # 37.7M
    "model=gpt3-175b,method=lora,rank=1,targets=q+k+v+o": 9_437_184,  # 9.4M
    "model=gpt3-175b,method=adapter-h,rank=1": 7_078_080,  # 7.1M
    "model=gpt3-175b,method=adapter-h": 40_109_568,  # 40.1M
    "model=gpt3-175b,method=bitfit": (11 * 96 + 1) * 12_288,  # 14.2M would be 12 d a layer
    "model=gpt3-175b,method=preembed": 3_244_032,  # 3.2M
    "model=gpt3-175b,method=prelayer": 18_874_368,  # 20.2M, above the formula
    "model=gpt3-175b,method=lora+pe": 37_748_736 + 147_456,  # 37.8M
    "model=gpt3-175b,method=lora+pl": 37_748_736 + 14_155_776,  # 52.8M
    "model=gpt2-medium,method=prelayer": 393_216,  # 0.35M, as LoRA
    "model=smollm2-135m,method=lora": 230_400,
    "model=smollm2-135m,method=mora": 229_470,
    "model=smollm2-135m,method=adapter-l": 224_790,
    "model=smollm2-135m,method=adapter-h": 242_100,
    "model=smollm2-135m,method=prelayer": 224_640,
}


@pytest.mark.parametrize("arg", COUNTS)
def test_parameter_counts(arg):
    assert laid_out(arg).parameters["trainable"] == COUNTS[arg]


@pytest.mark.parametrize("model", CONFIG.MODELS)
def test_every_cell_is_built_on_shapes(model):
    """The layout depends on model and method alone: each is built once, and every data set's config is read."""
    for method in (*CONFIG.FAMILIES, *CONFIG.RULES, *CONFIG.PREFIXES):
        arg = f"model={model},method={method}"
        if method == "bitfit" and model not in CONFIG.GPT2 + CONFIG.GPT3:
            with pytest.raises(UserError, match=f"{model} has none; take gpt2-medium"):
                unpacked(arg)
            continue
        configs = [unpacked(f"{arg},task={task}") for task in TASKS]
        assert [config.labels["task"] for config in configs] == list(TASKS)
        assert {config.labels["model"] for config in configs} == {model}
        assert [config.task.task for config in configs] == list(TASKS)
        if model in ("gpt2-medium", "gpt3-175b") and arg not in COUNTS:
            assert laid_out(arg).parameters["trainable"] > 0


def test_sizes_of_bottlenecks_are_the_nearest_to_loras_count():
    for model in ("smollm2-135m",):
        lora = laid_out(f"model={model},method=lora").parameters["trainable"]
        for method in ("adapter-l", "adapter-h"):
            own = unpacked(f"model={model},method={method}").adapter.rank
            distance = {
                rank: abs(laid_out(f"model={model},method={method},rank={rank}").parameters["trainable"] - lora)
                for rank in (own - 1, own, own + 1)
                if rank
            }
            assert min(distance, key=distance.__getitem__) == own, (model, method, distance)


# arg -> batch, epochs, rate, rank, alpha, dropout, weight decay, label smoothing, warm-up steps, length penalty
SPOTS = {
    "model=gpt2-medium": (8, 5, 2e-4, 4, 32, 0.1, 0.01, 0.1, 500, 0.9),
    "model=gpt2-medium,reading=code": (8, 5, 2e-4, 4, 32, 0.1, 0.01, 0.1, 500, 0.8),
    "model=gpt2-large,task=webnlg": (8, 5, 2e-4, 4, 32, 0.1, 0.01, 0.1, 500, 0.8),
    "model=gpt2-medium,task=dart": (8, 5, 2e-4, 4, 32, 0.0, 0.0, 0.0, 500, 0.8),
    "model=gpt3-175b,task=wikisql": (128, 2, 2e-4, 8, 8, 0.0, 0.1, 0.0, 5, 0.9),
    "model=gpt3-175b,task=samsum,method=fft": (128, 2, 5e-6, 8, 16, 0.0, 0.1, 0.0, 1, 0.9),
    "model=smollm2-135m,method=mora": (64, 5, 1e-3, 4, 32, 0.1, 0.01, 0.1, 0, 0.9),
}


@pytest.mark.parametrize("arg", SPOTS)
def test_hyperparameters(arg):
    config = unpacked(arg)
    train, optimizer, adapter, decode = config.train, config.optimizer, config.adapter, config.evals["decode"]
    found = (train.batch_size, train.epochs, optimizer.learning_rate, adapter.rank, adapter.alpha, adapter.dropout)
    rest = (optimizer.weight_decay, train.label_smoothing, config.schedule.warmup_steps, decode.length_penalty)
    if adapter.method == "none":
        found = (*found[:3], 8, 16, 0.0)
    assert (*found, *rest) == SPOTS[arg]
    assert (optimizer.eps, optimizer.clip_norm, decode.beams, decode.weights) == (1e-6, 0, 10, "best")


def test_readings_lengths_and_options():
    assert [unpacked(f"task=webnlg,reading={name}").task.seen for name in ("paper", "code")] == ["paper", "code"]
    assert unpacked("task=wikisql,model=gpt3-175b").task.seq_len == 384
    assert unpacked("task=samsum,model=gpt3-175b").task.seq_len == 2048
    assert unpacked("task=wikisql").evals["decode"].no_repeat_ngram == 0
    assert unpacked("task=e2e").evals["decode"].no_repeat_ngram == 4
    assert unpacked("decode=false").evals == {}
    beside = unpacked("method=lora+pe,infix=0")
    assert (beside.labels["method"], beside.adapter.method, beside.adapters[0].method) == (
        "lora+pe",
        "lora",
        "preembed",
    )
    assert unpacked("task=samsum,model=gpt3-175b,method=prelayer").task.seq_len == 2048  # its positions
    assert unpacked("task=wikisql,model=gpt3-175b,method=prelayer").task.seq_len == 384 + 16
    assert (beside.adapters[0].prefix.tokens, beside.adapters[0].prefix.infix) == (8, 0)
    config = unpacked("data_dir=some/folder,train_examples=9,packed,epochs=2,batch=3,seed=7,partial,targets=q+o")
    assert (config.task.data_dir, config.task.train_examples, config.task.packed) == ("some/folder", 9, True)
    assert (config.train.epochs, config.train.batch_size, config.seed) == (2, 3, 7)
    assert (config.adapter.targets, config.labels["variant"]) == (("query", "attention/out"), "q+o")
    both = unpacked("method=lora+pl,prefix=3,infix=0")
    assert (both.labels["method"], both.labels["variant"], both.adapter.method) == ("lora+pl", "p3i0 states", "lora")
    assert (both.adapters[0].method, both.adapters[0].prefix.tokens) == ("prelayer", 3)
    bare = {key: value for key, value in to_plain(complete_file(f"{FILE}:task=e2e")).items() if key != "name"}
    assert content_hash(bare) == content_hash({**bare, "task": {**bare["task"], "data_dir": "elsewhere"}})


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("method=adapter", "allowed: lora, mora"),
        ("task=e2", "allowed: e2e, webnlg"),
        ("model=gpt2", "allowed: gpt2-medium"),
        ("method=mora,infix=4", "method=mora has no virtual tokens"),
    ],
)
def test_what_is_refused(arg, message):
    with pytest.raises(UserError, match=message):
        unpacked(arg)


def test_label_smoothing_is_for_next_tokens():
    config = complete_file("configs/lora_glue.py")
    config.train.label_smoothing = 0.1
    with pytest.raises(
        UserError, match=r"train\.label_smoothing is for next-token losses; set it to 0 for task 'glue'"
    ):
        build(unpack_run(to_plain(config)), 16)


def test_grids():
    """Full rows wait for all rates of their method on E2E, by held-out loss; rates and seeds share programs."""
    grid = Grid(FILE, "configs/sweeps/e2e_smollm2.py")
    rates = [cell for cell in grid.cells.values() if cell.stage == "rates"]
    full = [cell for cell in grid.cells.values() if cell.stage == "full"]
    assert (len(rates), len(full)) == (44, 24)
    assert {cell.plain["train"]["epochs"] for cell in rates} == {1}
    assert not any(cell.plain["evals"] for cell in rates)
    assert all(cell.plain["evals"]["decode"]["weights"] == "best" for cell in full)
    assert len({group_key(cell.plain) for cell in rates}) == len({group_key(cell.plain) for cell in full}) == 7
    assert all({grid.cells[name].arg for name in cell.trials} == {cell.arg} for cell in full)
    result = {
        name: {
            "status": "finished",
            "config": grid.cells[name].plain,
            "losses": [[1, 9.0 - place]],
            "evaluations": [{"step": 1, "loss": (3.0, 1.0, 2.0, 4.0, 5.0, 6.0)[place]}],
        }
        for place, name in enumerate(full[0].trials)
    }
    assert grid.resolve(full[0], result).overrides["optimizer.learning_rate"] == 5e-5
    assert {cell.arg for cell in full[21:]} == {cell.arg for cell in full[15:18]}  # LoRA's, at a smaller rate
    assert grid.resolve(full[0], dict.fromkeys(full[0].trials)) is None
    known = set(grid.cells)
    for name in ("e2e_ranks", "webnlg_smollm2"):
        other = Grid(FILE, f"configs/sweeps/{name}.py")
        trials = {trial for cell in other.cells.values() for trial in cell.trials}
        assert trials <= known  # E2E's own: a recorded one is not run again
        chosen = [cell for cell in other.cells.values() if cell.stage == "full" and cell.trials]
        assert all(len(cell.trials) == (8 if "method=prelayer" in cell.arg else 6) for cell in chosen)
        assert len(chosen) == {"e2e_ranks": 14, "webnlg_smollm2": 15}[name]
    assert len(Grid(FILE, "configs/sweeps/e2e_gemma.py").cells) == 16
