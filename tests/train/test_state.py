"""What is trained, by name: counts of the published shapes, and that a cut stack computes and learns as a whole one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import drawn

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, count, partition
from lowrank_jax.layouts.segments import Segments
from lowrank_jax.models.bert import Bert, BertConfig, with_head
from lowrank_jax.models.deberta import Deberta, DebertaConfig
from lowrank_jax.models.deberta import with_head as with_deberta_head
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.train.state import TRAINABLE, check_choice, init_state, layer_cuts, trainable_rules

LORA2, HOULSBY2 = adapters.AdapterConfig(rank=2), adapters.AdapterConfig("houlsby", 2)
NONE2 = adapters.AdapterConfig("none")
SHAPE = dict(
    vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
    max_position_embeddings=32,
)  # fmt: skip
TOKENS = np.random.default_rng(3).integers(0, 50, (2, 7))
MODELS = {
    "bert": Bert(BertConfig(**SHAPE)),
    "deberta": Deberta(DebertaConfig(**SHAPE, position_buckets=8, conv_kernel_size=3)),
    "gpt2": GPT2(GPT2Config(**SHAPE)),
    "llama": Llama(dataclasses.replace(get_model("toy-llama"), num_hidden_layers=4)),
}


@functools.cache
def params_of(name, labels=2):
    config = get_model(name)
    if name.startswith("gpt"):
        model = GPT2(config)
    elif name.startswith("deberta"):
        model = Deberta(with_deberta_head(config, "classification", labels))
    else:
        model = Bert(with_head(config, "classification", labels))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]


def trained(name, choice):
    layers = get_model(name).num_hidden_layers
    params = Segments(layer_cuts(choice, layers)).apply(params_of(name))
    trainable, frozen = partition({"params": params}, trainable_rules(choice))
    assert count(trainable) + count(frozen) == count(params_of(name))
    return count(trainable)


@pytest.mark.parametrize("name", ["roberta-base", "roberta-large", "deberta-v2-xxlarge", "gpt2-medium"])
def test_the_last_two_layers_are_counted_exactly(name):
    """A block: 4 d^2 + 2 d f of products, 9 d + f of biases and norms with f = 4 d, so 12 d^2 + 13 d."""
    d = get_model(name).hidden_size
    assert trained(name, "ft-top2") == 2 * (12 * d * d + 13 * d)
    if name == "gpt2-medium":
        assert trained(name, "ft-top2") == 25_192_448  # Table 3 prints 25.19M


@pytest.mark.parametrize(("name", "outside"), [("roberta-base", 1), ("roberta-large", 1), ("deberta-v2-xxlarge", 5)])
def test_bitfit_trains_every_bias(name, outside):
    """11 d a layer; outside the layers the embeddings' norm, and DeBERTa's relative table, convolution, its norm and
    the pooler. The head's biases are counted separately."""
    config = get_model(name)
    d, heads = config.hidden_size, 2 + (config.hidden_size if name.startswith("roberta") else 0)
    expected = 11 * d * config.num_hidden_layers + outside * d
    assert trained(name, "bitfit") == expected + heads
    if name == "roberta-base":
        assert expected == 102_144  # Table 2 prints 0.1M


def test_a_head_alone_and_beside():
    d = get_model("roberta-base").hidden_size
    head = (d * d + d) + (2 * d + 2)  # RoBERTa's has a dense layer
    assert trained("roberta-base", "head") == head
    assert trained("roberta-base", "ft-top2+head") == head + trained("roberta-base", "ft-top2")
    biases = d + 2
    assert trained("roberta-base", "bitfit+head") == trained("roberta-base", "bitfit") + head - biases
    assert trained("roberta-base", "full") == count(params_of("roberta-base"))


@functools.cache
def initial(name):
    """The parameters of a toy, drawn once."""
    return drawn(MODELS[name], TOKENS)["params"]


def outputs(model, params):
    return jax.tree.leaves(model.apply({"params": params}, TOKENS))[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_cut_stack_computes_what_the_whole_one_does(name):
    model, cuts = MODELS[name], (1, 3)
    params = initial(name)
    cut = model.clone(cuts=cuts)
    shapes = jax.eval_shape(cut.init, jax.random.key(0), TOKENS)["params"]
    split = Segments(cuts).apply(params)
    assert jax.tree.map(jnp.shape, split) == jax.tree.map(jnp.shape, dict(shapes))
    np.testing.assert_allclose(
        jax.jit(lambda p: outputs(cut, p))(split), jax.jit(lambda p: outputs(model, p))(params), atol=1e-5
    )


@pytest.mark.parametrize("name", ["deberta", "llama"])
def test_only_the_last_two_layers_learn(name):
    """Gradients and moments exist for them alone, equal those of full training, and no backward pass is made below.

    An encoder and a decoder: what a cut stack computes is held above for every model.
    """
    model, choice = MODELS[name], "ft-top2"
    params = initial(name)
    cuts = layer_cuts(choice, 4)
    cut = model.clone(cuts=cuts)
    trainable, frozen = partition({"params": Segments(cuts).apply(params)}, trainable_rules(choice))
    assert set(trainable["params"]) == {"layers_2_3"}

    weights = np.random.default_rng(1).normal(size=jax.eval_shape(lambda: outputs(model, params)).shape).astype("f4")

    def loss(trainable):
        return (outputs(cut, combine(trainable, frozen)["params"]) * weights).sum()

    grads = jax.jit(jax.grad(loss))(trainable)
    whole = jax.jit(jax.grad(lambda p: (outputs(model, p) * weights).sum()))(params)
    for path, leaf in flatten(grads["params"]["layers_2_3"]).items():
        expected = np.asarray(flatten(whole["layers"])[path])[2:]
        np.testing.assert_allclose(leaf, expected, atol=1e-5 * float(np.abs(expected).max()) + 1e-5, err_msg=path)
    state = init_state(trainable, optax.scale_by_adam(), 1e-3, 0)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * count(trainable)
    updated = jax.tree.map(lambda p, g: np.asarray(p) - np.float32(0.1) * np.asarray(g), trainable, grads)
    joined = flatten(Segments().undo(combine(updated, frozen)["params"]))
    for path, leaf in flatten(params).items():
        moved = np.abs(np.asarray(joined[path]) - np.asarray(leaf))
        below = moved[:2] if path.startswith("layers/") else moved
        assert not np.any(below), path
    scans = [eqn for eqn in jax.make_jaxpr(jax.grad(loss))(trainable).jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 3  # forward below, forward above, backward above


def test_names_and_refusals():
    assert {"full", "bitfit", "head", "adapters", "ft-top2"} <= TRAINABLE.keys()
    assert layer_cuts("full", 12) == layer_cuts((("params/.*", True),), 12) == ()
    assert layer_cuts("ft-top2", 12) == (10,)
    with pytest.raises(UserError, match=r'trainable "ft-top2" leaves nothing of 2 layers to freeze; use "full"'):
        layer_cuts("ft-top2", 2)
    with pytest.raises(UserError, match="unknown trainable 'ft-top'; did you mean ft-top2"):
        trainable_rules("ft-top")


@pytest.mark.parametrize(
    ("choice", "trains", "freezes", "words"),
    [
        (
            "full",
            ("params",),
            ("adapters", "scales"),
            r"'full' would leave the adapters as they start; set adapter",
        ),
        ("bitfit+head", ("params",), ("adapters",), r"'bitfit\+head' would leave the adapters as they start"),
        ("adapters+head", ("params",), (), r"'adapters\+head' and there are no adapters; .* or trainable=head"),
        (
            (("params/.*", True), (".*", False)),
            ("params",),
            ("adapters",),
            "trainable's rules would leave",
        ),
        ((("adapters/.*/a", False), ("adapters/.*", True)), ("adapters",), ("adapters",), None),
        ("adapters+head", ("adapters", "params"), ("params", "scales"), None),
        ("full", ("params",), ("scales",), None),
    ],
)
def test_rules_that_contradict_the_adapters(choice, trains, freezes, words):
    """Adapters that would stay at their start, or rules for adapters that are not there; A alone may be frozen."""
    leaf = {"head": {"w": jnp.zeros(1)}}
    trees = [dict.fromkeys(names, leaf) for names in (trains, freezes)]
    if words is None:
        check_choice(choice, *trees)
    else:
        with pytest.raises(UserError, match=words):
            check_choice(choice, *trees)


@pytest.mark.parametrize(
    ("choice", "configs", "words"),
    [
        (
            (("adapters/.*/query/.*", True), (".*", False)),
            [LORA2],
            r"the adapter at layers/attention/value as it starts",
        ),
        ((("adapters/.*/[ab]", True), (".*", False)), [LORA2, HOULSBY2], r"the adapter at layers/\w+ as it starts"),
        (
            (("params/.*", True), ("adapters/.*", True), (".*", False)),
            [NONE2],
            r"no adapters; .*rules without adapters/",
        ),
        ("adapters+head", [LORA2], r"has 'params/head/.\*', which is no leaf of this model"),
        ((("adapters/.*", True), ("params/haed/.*", True), (".*", False)), [LORA2], "has 'params/haed/.*'"),
        ((("adapters/.*/b", True), (".*", False)), [LORA2], None),  # A stays where it was drawn
        ((("adapters/.*", True), ("params/embed/.*", True), (".*", False)), [LORA2], None),
    ],
)
def test_rules_that_leave_an_adapter_or_name_nothing_are_refused(choice, configs, words):
    """A site whose adapter stays at its start would be recorded as adapted; a misspelt part trains nothing."""
    params = jax.eval_shape(MODELS["llama"].init, jax.random.key(0), TOKENS)["params"]
    plan = adapters.make_plan(params, configs)
    made = jax.eval_shape(lambda key: adapters.create(plan, key), jax.random.key(0))
    trees = partition({"params": params, **made}, trainable_rules(choice))
    if words is None:
        check_choice(choice, *trees)
        return
    with pytest.raises(UserError, match=words):
        check_choice(choice, *trees)
