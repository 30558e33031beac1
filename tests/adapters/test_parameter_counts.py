"""Parameter counts of LoRA and the bottlenecks on the papers' models: Hu et al., section 5.1 and tables 2 and 3."""

import functools

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.adapters import AdapterConfig, BottleneckConfig, make_plan
from lowrank_jax.models.bert import Bert
from lowrank_jax.models.deberta import Deberta
from lowrank_jax.models.gpt2 import GPT2
from lowrank_jax.models.registry import get_model


@functools.cache
def shapes_of(name):
    config = get_model(name)
    model = (Deberta if "deberta" in name else GPT2 if name.startswith("gpt") else Bert)(config)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def parameters(name, method, rank, drop=0, **options):
    config = AdapterConfig(method, rank, bottleneck=BottleneckConfig(drop_layers=drop), **options)
    return make_plan(shapes_of(name), config).parameters


@pytest.mark.parametrize(
    ("name", "rank", "count"),
    [
        ("roberta-base", 8, 294_912),
        ("roberta-large", 8, 786_432),
        ("deberta-v2-xxlarge", 8, 2_359_296),
        ("deberta-v2-xxlarge", 16, 4_718_592),
        ("gpt2-medium", 4, 393_216),
        ("gpt2-large", 4, 737_280),
        ("gpt3-175b", 1, 4_718_592),
        ("gpt3-175b", 4, 18_874_368),
        ("gpt3-175b", 64, 301_989_888),
    ],
)
def test_lora_has_the_papers_parameters(name, rank, count):
    """2 (matrices) 2 d r a layer: query and value alone are adapted."""
    plan = make_plan(shapes_of(name), AdapterConfig("lora", rank))
    assert [site.path.rpartition("/")[2] for site in plan.sites] == ["query", "value"]
    assert plan.parameters == count


@pytest.mark.parametrize("name", ["roberta-base", "roberta-large", "deberta-v2-xxlarge"])
@pytest.mark.parametrize(("method", "places"), [("houlsby", 2), ("pfeiffer", 1), ("lin", 1)])
def test_adapters_have_the_papers_parameters(name, method, places):
    """L_Adpt (2 d r + r + d) + 2 L_LN d."""
    layers, d = get_model(name).num_hidden_layers, get_model(name).hidden_size
    for rank in (8, 16, 64):
        norms = 2 * layers * d if method == "lin" else 0
        count = places * layers * (2 * d * rank + rank + d) + norms
        assert parameters(name, method, rank) == count
        dropped = places * (layers - 5) * (2 * d * rank + rank + d) + norms * (layers - 5) // layers
        assert parameters(name, method, rank, drop=5) == dropped


@pytest.mark.parametrize(
    ("name", "method", "rank", "count"),
    [  # the values that the paper rounds, for the ranks it prints or that its counts imply
        ("roberta-large", "pfeiffer", 64, 3_171_840),
        ("roberta-large", "pfeiffer", 16, 811_392),
        ("roberta-large", "houlsby", 64, 6_343_680),
        ("roberta-large", "houlsby", 8, 835_968),
        ("gpt2-medium", "lin", 6, 368_784),
        ("gpt2-medium", "lin", 224, 11_089_152),
        ("gpt2-large", "lin", 8, 875_808),
        ("gpt2-large", "lin", 248, 23_002_848),
    ],
)
def test_the_tables_counts(name, method, rank, count):
    assert parameters(name, method, rank) == count
