"""A run's labels derive from its config: of every recorded result, and under overrides."""

from pathlib import Path

import pytest

from experiments.cli import complete_file
from experiments.config.labels import RSLORA, derive, methods_apart, tags, with_labels
from experiments.config.plain import to_plain
from experiments.records.results import load_results
from experiments.records.run_folder import run_name

ROOT = Path(__file__).parents[2]
# What nothing else in a config says, so that its own labels keep it.
KEPT = ("scale", "model", "protocol", "reading")
# What a config file says itself, though labels of other files derive it.
OWN = {"lora_mnli": "task", "mora_finetune": "task"}
NAMED_BY_HAND = {"pico"}  # with --name, which no config holds


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def labels_of(name, **changes):
    config = complete_file(f"configs/{name}")
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return derive(to_plain(config))


def test_labels_and_name_of_every_recorded_result():
    """From its config without the labels that can be derived, and the stage of its cell."""
    # Records of forward passes (`bench --latency`) are of no run.
    results = [one for one in load_results(["experiments/results"]) if one["config"]["experiment"] != "latency"]
    assert len(results) > 500
    for result in results:
        recorded, config = result["labels"], dict(result["config"])
        own = OWN.get(config["experiment"])
        kept = (*KEPT, own, *(["method"] if recorded["method"] == RSLORA else []))  # LoRA's config has its scale too
        config["labels"] = {name: value for name, value in recorded.items() if name in kept}
        config = with_labels(config, recorded.get("stage"))
        assert config["labels"] == {"rank": None, "stage": "full", **recorded}, result["name"]
        named = {config.get("name") or run_name(config)}
        assert result["name"] in named | NAMED_BY_HAND


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("mora_uuid.py", {}, dict(method="mora", rank=8, scale="laptop", stage="full")),
        ("mora_uuid.py:method=fft", {}, dict(method="fft", rank=None, scale="laptop", stage="full")),
        ("mora_uuid.py", {"adapter__rank": 4, "adapter__method": "lora"}, dict(method="lora", rank=4)),
        ("mora_uuid.py", {"adapter__mora__compression": "rotation"}, dict(method="mora", variant="rotation")),
        ("mora_uuid.py:method=lora", {"trainable": "full", "adapter__method": "none"}, dict(method="fft", rank=None)),
        ("mora_uuid.py", {"labels__stage": "rates"}, dict(stage="rates")),
        ("lora_glue.py:method=mora", {}, dict(method="mora", task="mrpc", variant="sharing", model="minilm-l6")),
        ("lora_glue.py:targets=q+o", {}, dict(method="lora", variant="q+o")),
        ("lora_glue.py:method=adapterdrop", {}, dict(method="pfeiffer", rank=48, variant="drop5")),
        ("lora_glue.py:method=ft-top2", {}, dict(method="ft-top2", rank=None, variant="")),
        ("lora_glue.py:method=bitfit,model=deberta-v2-xxlarge", {}, dict(method="bitfit", rank=None)),
        ("lora_glue.py:method=head,model=deberta-v2-xxlarge", {}, dict(method="head", rank=None)),
        ("lora_glue.py:method=lora,model=deberta-v2-xxlarge", {}, dict(method="lora", rank=8)),
        ("mora_uuid.py:method=lora", {"optimizer__multipliers": (("adapters/.*/b", 4.0),)}, dict(method="lora+")),
        ("mora_uuid.py:method=mora", {"optimizer__multipliers": (("adapters/.*/m", 4.0),)}, dict(method="mora")),
        ("mora_uuid.py:method=lora", {"adapter__init": "asylora"}, dict(method="asylora")),
        ("mora_uuid.py:method=lora", {"adapter__scaling": "rslora"}, dict(method="lora")),
        (
            "mora_uuid.py:method=lora",
            {"adapter__scaling": "rslora", "labels__method": "rslora"},
            dict(method="rslora", rank=8),
        ),
        ("mora_uuid.py:method=lora", {"labels__method": "rslora"}, dict(method="lora")),
        ("pico_pretrain.py", {}, dict(method="fft", rank=None, scale="pico-llama", stage="full")),
    ],
)
def test_labels_say_what_is_trained(name, changes, expected):
    labels = labels_of(name, **changes)
    assert labels == labels | expected
    assert "variant" in expected or labels.get("variant", "") == ""


def test_a_bench_is_labelled_by_its_own_config():
    labels = labels_of("bench.py:shape=toy-llama,method=mora,rank=2,seq=16")
    assert labels == {"shape": "toy-llama", "method": "mora sharing", "rank": 2, "seq_len": 16}


def tags_of(name, **changes):
    config = complete_file(f"configs/{name}")
    with config.unlocked():
        config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return tags(to_plain(config))


def test_tags_for_wandb():
    """The user's own first; what tells any kind of run from its siblings, none twice or longer than W&B takes."""
    assert tags_of("mora_uuid.py") == ("mora", "rank 8", "rate 0.003", "seed 0", "uuid", "pico-llama")
    assert tags_of("mora_uuid.py:method=fft", base__name="/data/my-llama/") == (
        "fft",
        "rate 0.001",
        "seed 0",
        "uuid",
        "my-llama",
    )
    assert {"lora", "rank 8", "rte", "seed 3"} < {*tags_of("lora_glue.py:task=rte,model=minilm-l6", seed=3)}
    assert tags_of("mora_uuid.py:compression=rotation")[:3] == ("mora", "rotation", "rank 8")
    own = tags_of("mora_uuid.py:method=lora", tracking__tags=("trial", "lora"), base__name="x" * 99)
    assert own == ("trial", "lora", "rank 8", "rate 0.003", "seed 0", "uuid", "x" * 64)


def test_a_list_of_runs_names_moras_compression_where_it_tells_them_apart():
    sharing, rotation = labels_of("mora_uuid.py"), labels_of("mora_uuid.py:compression=rotation")
    lora, merging = labels_of("mora_uuid.py:method=lora"), labels_of("mora_finetune.py:method=relora")
    assert methods_apart([sharing, lora, rotation]) == ["mora sharing", "lora", "mora rotation"]
    assert methods_apart([sharing, lora, merging, {}]) == ["mora", "lora", "relora", "-"]
    assert methods_apart([labels_of("mora_finetune.py:method=asylora,frozen"), lora]) == ["asylora frozen A", "lora"]
