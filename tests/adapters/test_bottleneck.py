"""Houlsby, Lin, Pfeiffer and AdapterDrop: placement against blocks written by hand, start, gradients, errors."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, jitted

from lowrank_jax.adapters import (
    AdapterConfig,
    BottleneckConfig,
    attach,
    check,
    create,
    describe,
    make_plan,
    merge,
    read_configs,
)  # fmt: skip
from lowrank_jax.adapters.registry import FAMILIES
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.models.bert import Bert, BertConfig
from lowrank_jax.models.deberta import Deberta, DebertaConfig
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.parts.cache import init_cache
from lowrank_jax.models.registry import get_model

D, LAYERS, RANK = 16, 3, 4
SHAPE = dict(
    vocab_size=50, hidden_size=D, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=2,
    max_position_embeddings=32,
)  # fmt: skip
MODELS = {
    "bert": lambda **o: Bert(BertConfig(**SHAPE), **o),
    "deberta": lambda **o: Deberta(DebertaConfig(**SHAPE, position_buckets=8, conv_kernel_size=3), **o),
    "gpt2": lambda **o: GPT2(GPT2Config(**SHAPE), **o),
    "llama": lambda **o: Llama(
        dataclasses.replace(get_model("toy-llama"), vocab_size=50, hidden_size=D, num_hidden_layers=LAYERS), **o
    ),
}
METHODS = ("houlsby", "pfeiffer", "lin")
PAIRS = [("bert", method) for method in METHODS] + [
    ("deberta", "houlsby"), ("deberta", "pfeiffer"), ("gpt2", "houlsby"), ("gpt2", "lin"), ("llama", "lin")
]  # fmt: skip
TWO = ("houlsby", "lin")  # one with two places, one with its own norm: for tests in which pfeiffer would add nothing
TOKENS = np.random.default_rng(3).integers(0, 50, (2, 7))


@functools.cache
def params_of(name):
    params = drawn(MODELS[name](), TOKENS)["params"]
    rng = np.random.default_rng(5)  # norms and biases that are not their neutral starts hide no mix-up
    return jax.tree.map(lambda x: jnp.asarray(x + 0.2 * rng.normal(size=x.shape), jnp.float32), params)


def adapted(name, config, moved=True):
    plan, variables = _adapted(name, tuple(config) if isinstance(config, list) else config, moved)
    return plan, dict(variables)


@functools.cache
def _adapted(name, config, moved):
    plan = make_plan(params_of(name), config)
    made, rng = jax.jit(functools.partial(create, plan))(jax.random.key(1)), np.random.default_rng(0)
    if moved:
        made["adapters"] = jax.tree.map(
            lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), jnp.float32), made["adapters"]
        )
    return plan, {"params": params_of(name), **made}


@functools.cache
def applied(name, plan, **options):
    """The adapted model as one program: one for all tests."""
    return jax.jit(attach(MODELS[name](**options), plan), static_argnames="method")


def run(name, plan, variables, method=None, **options):
    return np.asarray(jax.tree.leaves(applied(name, plan, **options)(variables, TOKENS, method=method))[0])


@functools.cache
def plain(name):
    return np.asarray(jax.tree.leaves(jitted(MODELS[name]())({"params": params_of(name)}, TOKENS))[0])


# --- placement, against blocks written out by hand in NumPy ---


def layer_norm(x, leaf, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * leaf["scale"] + leaf["bias"]


def linear(x, leaf):
    return x @ leaf["kernel"] + leaf["bias"]


def bottleneck(x, leaf, activation):
    hidden = x @ leaf["down_kernel"] + leaf["down_bias"]
    hidden = np.maximum(hidden, 0) if activation == "relu" else hidden / (1 + np.exp(-hidden))
    return hidden @ leaf["up_kernel"] + leaf["up_bias"]


def own_norm(x, leaf):
    return layer_norm(x, {"scale": leaf["norm_scale"], "bias": leaf["norm_bias"]}, 1e-5)


def attention(x, leaf, causal):
    q, k, v = (linear(x, leaf[n]).reshape(*x.shape[:2], 2, D // 2) for n in ("query", "key", "value"))
    scores = np.einsum("bthd,bshd->bhts", q, k) / math.sqrt(D // 2)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear(np.einsum("bhts,bshd->bthd", weights, v).reshape(x.shape), leaf["out"])


def by_hand(name, variables, method):
    """The last hidden states of the toy BERT or GPT-2 with the family's adapters."""
    variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    params, tokens = variables["params"], np.asarray(TOKENS)
    embed, post = params["embed"], name == "bert"
    positions = np.arange(tokens.shape[1])
    if post:
        x = embed["word"]["embedding"][tokens] + embed["type"]["embedding"][0]
        x = layer_norm(x + embed["position"]["embedding"][positions], params["embed_norm"], 1e-12)
        act = lambda u: u * 0.5 * (1 + np.vectorize(math.erf)(u / math.sqrt(2)))  # noqa: E731
    else:
        x = embed["embedding"][tokens] + params["position"]["embedding"][positions]
        act = lambda u: 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))  # noqa: E731
    eps = 1e-12 if post else 1e-5
    for i in range(LAYERS):
        leaf = jax.tree.map(lambda p, i=i: p[i], params["layers"])
        extra = jax.tree.map(lambda p, i=i: p[i], variables["adapters"]["layers"])
        h = attention(x if post else layer_norm(x, leaf["attention_norm"], eps), leaf["attention"], not post)
        if method == "houlsby":
            h = h + bottleneck(h, extra["attention"], "swish")
        x = layer_norm(x + h, leaf["attention_norm"], eps) if post else x + h
        read = x if post else layer_norm(x, leaf["mlp_norm"], eps)
        h = linear(act(linear(read, leaf["mlp"]["up"])), leaf["mlp"]["down"])
        if method == "houlsby":
            h = h + bottleneck(h, extra["mlp"], "swish")
        elif method == "lin":
            h = h + bottleneck(own_norm(h, extra["mlp"]), extra["mlp"], "relu")
        elif method == "pfeiffer":
            h = h + bottleneck(layer_norm(h + x, leaf["mlp_norm"], eps), extra["mlp_norm"], "relu")
        x = layer_norm(x + h, leaf["mlp_norm"], eps) if post else x + h
    return x if post else layer_norm(x, params["final_norm"], eps)


@pytest.mark.parametrize(("name", "method"), [p for p in PAIRS if p[0] in ("bert", "gpt2")])
def test_the_places_are_those_of_a_block_by_hand(name, method):
    plan, variables = adapted(name, AdapterConfig(method, RANK))
    ours = run(name, plan, variables, None if name == "bert" else "hidden")  # BERT gives its states and their pool
    expected = by_hand(name, variables, method)
    np.testing.assert_allclose(ours, expected, atol=2e-5 * np.abs(expected).max())


def test_the_activation_can_be_another():
    config = AdapterConfig("houlsby", RANK, bottleneck=BottleneckConfig("relu"))
    plan, variables = adapted("bert", config)
    other = make_plan(params_of("bert"), AdapterConfig("houlsby", RANK))
    assert np.abs(run("bert", plan, variables) - run("bert", other, variables)).max() > 1e-3


# --- start, effect, scan ---


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_the_start_is_the_base_and_every_adapter_is_read(name, method):
    plan, variables = adapted(name, AdapterConfig(method, RANK), moved=False)
    check(MODELS[name](), plan, variables, TOKENS)
    fresh = run(name, plan, variables)
    if method == "pfeiffer":  # the second norm may be compiled otherwise than the first
        np.testing.assert_allclose(fresh, plain(name), atol=2e-6)
    else:
        np.testing.assert_array_equal(fresh, plain(name))
    _, variables = adapted(name, AdapterConfig(method, RANK))
    changed = run(name, plan, variables)
    assert np.abs(changed - plain(name)).max() > 1e-2
    if name == "bert":  # a scan written out, of layers that are computed again, is the same function
        again = run(name, plan, variables, scan_unroll=LAYERS, remat="projections")
        np.testing.assert_allclose(again, changed, atol=2e-5)


@pytest.mark.parametrize("method", TWO)
def test_bfloat16_computes_about_the_same(method):
    plan, variables = adapted("bert", AdapterConfig(method, RANK))
    wide, narrow = run("bert", plan, variables), run("bert", plan, variables, dtype=jnp.bfloat16)
    assert narrow.dtype == jnp.bfloat16
    assert np.abs(narrow - wide).max() < 0.05 * np.abs(wide).max()


def test_a_cache_goes_through_an_adapted_attention():
    """Attention returns (output, cache): decoding token by token gives what one pass gives."""
    plan, variables = adapted("gpt2", AdapterConfig("houlsby", RANK))
    model = MODELS["gpt2"]()
    apply_fn, cache, seen = attach(model, plan), init_cache(model.config, 2, 7, jnp.float32), []
    step = jax.jit(lambda token, cache: apply_fn(variables, token, mask=jnp.ones((2, 7), bool), cache=cache))
    for i in range(7):
        logits, cache = step(TOKENS[:, i : i + 1], cache)
        seen.append(logits)
    np.testing.assert_allclose(np.concatenate(seen, 1), run("gpt2", plan, variables), atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_finite_differences(method):
    with jax.enable_x64(True):
        smooth = BottleneckConfig("tanh")  # a step may cross relu's corner
        plan, variables = adapted("bert", AdapterConfig(method, RANK, bottleneck=smooth))
        variables = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
        apply_fn = attach(MODELS["bert"](dtype=jnp.float64), plan)
        weights = np.random.default_rng(2).normal(size=(2, 7, D))

        @jax.jit
        @jax.value_and_grad
        def loss(adapters):
            return (apply_fn({**variables, "adapters": adapters}, TOKENS)[0] * weights).sum()

        gradient, rng = jax.tree.map(np.asarray, loss(variables["adapters"])[1]), np.random.default_rng(3)
        for path in flatten(gradient):
            direction = {p: np.zeros(x.shape) for p, x in flatten(gradient).items()}
            direction[path] = rng.normal(size=direction[path].shape)

            def moved(t, direction=unflatten(direction)):
                return jax.tree.map(lambda leaf, along: leaf + t * along, variables["adapters"], direction)

            # The model's norms and sums are float32 whatever it computes in, hence no smaller a step.
            slope = (loss(moved(1e-3))[0] - loss(moved(-1e-3))[0]) / 2e-3
            exact = sum((g * direction[p]).sum() for p, g in flatten(gradient).items())
            np.testing.assert_allclose(slope, exact, rtol=1e-2, atol=2e-2, err_msg=path)


@pytest.mark.parametrize("method", TWO)
def test_dropout_acts_on_the_branch(method):
    """Without dropout in the model, and W_up at zero, a key changes nothing; with W_up moved it does."""
    config = dataclasses.replace(MODELS["bert"]().config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = Bert(config)
    for moved in (False, True):
        plan, variables = adapted("bert", AdapterConfig(method, RANK, dropout=0.5), moved)
        apply_fn = jax.jit(attach(model, plan))
        dropped = apply_fn(variables, TOKENS, rngs={"dropout": jax.random.key(0)})[0]
        assert (np.abs(dropped - apply_fn(variables, TOKENS)[0]).max() > 1e-3) == moved


# --- AdapterDrop ---


@pytest.mark.parametrize("method", TWO)
def test_dropped_layers_have_no_adapter(method):
    config = AdapterConfig(method, RANK, bottleneck=BottleneckConfig(drop_layers=2))
    plan, variables = adapted("bert", config)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(variables["adapters"])} == {LAYERS - 2}
    everywhere, full = adapted("bert", AdapterConfig(method, RANK))
    padded = jax.tree.map(lambda x: np.concatenate([np.zeros((2, *x.shape[1:]), "f"), x]), variables["adapters"])
    np.testing.assert_allclose(
        run("bert", plan, variables), run("bert", everywhere, {**full, "adapters": padded}), atol=1e-6
    )
    fresh = adapted("bert", config, moved=False)[1]
    np.testing.assert_allclose(run("bert", plan, fresh), plain("bert"), atol=2e-6)
    assert f"{plan.parameters:,} trainable" in str(plan)


# --- combinations ---


def test_a_kernel_and_the_value_behind_it_are_adapted_in_turn():
    """LoRA inside attention, at its output product too, and Houlsby behind it: W' first, then the bottleneck."""
    lora = AdapterConfig("lora", 2, targets=("attention/out", "query"))
    plan, variables = adapted("bert", [lora, AdapterConfig("houlsby", RANK)])
    paths = [site.path for site in plan.sites]
    assert paths == [f"layers/{p}" for p in ("attention", "attention/out", "attention/query", "mlp")]
    check(MODELS["bert"](), plan, variables, TOKENS)
    alone = make_plan(params_of("bert"), lora)
    inner = {name: {"layers": {"attention": {
        k: v for k, v in variables[name]["layers"]["attention"].items() if k in ("out", "query")
    }}} for name in ("adapters", "scales")}  # fmt: skip
    merged = merge({"params": variables["params"], **inner}, alone)
    expected = by_hand("bert", {**variables, "params": merged}, "houlsby")
    np.testing.assert_allclose(run("bert", plan, variables), expected, atol=2e-5 * np.abs(expected).max())


def test_the_plan_of_several_families_adds_up():
    configs = (AdapterConfig("lora", 2), AdapterConfig("pfeiffer", 3), AdapterConfig("none"))
    plan = make_plan(params_of("bert"), configs)
    assert plan.methods == "lora and pfeiffer"
    assert plan.parameters == sum(make_plan(params_of("bert"), one).parameters for one in configs)
    lines = str(plan).splitlines()
    assert lines[-1] == f"together: {plan.parameters:,} trainable parameters, float32"
    assert [line.split(":")[0] for line in lines if "trainable" in line] == ["lora", "pfeiffer", "together"]
    with pytest.raises(UserError, match="the plan holds lora and pfeiffer; this works for one family"):
        plan.config  # noqa: B018
    assert read_configs(describe(plan), "x") == plan.configs
    plans = plan, make_plan(params_of("bert"), configs[0])
    made, alone = (jax.jit(functools.partial(create, each))(jax.random.key(4)) for each in plans)
    for path, leaf in flatten(alone).items():  # a family beside it leaves a site's start as it was
        np.testing.assert_array_equal(flatten(made)[path], leaf)


def test_a_plan_of_several_families_is_hashable_and_an_adapter_of_it_is_kept(tmp_path):
    import json

    from lowrank_jax.checkpoints.adapters_only import load_adapter, save_adapter

    plan, variables = adapted("bert", [AdapterConfig("lora", 2), AdapterConfig("houlsby", RANK)])
    hash(plan)
    scales = {path: np.asarray(leaf).tolist() for path, leaf in flatten(variables["scales"]).items()}
    kept = {"adapters": variables["adapters"]}
    save_adapter(tmp_path / "a", kept, describe(plan), scales, {"name": "x", "fingerprint": "y"})
    trained, read_scales, description = load_adapter(tmp_path / "a", abstract=kept)
    assert json.loads((tmp_path / "a/adapter.json").read_text())["config"][1]["method"] == "houlsby"
    again = make_plan(params_of("bert"), read_configs(description["config"], "adapter.json"))
    assert again == plan
    back = {"params": params_of("bert"), **trained, "scales": read_scales}
    np.testing.assert_array_equal(run("bert", again, back), run("bert", plan, variables))


# --- refused ---


def refuse(match, name="bert", config=None, **options):
    with pytest.raises(UserError, match=match) as caught:
        make_plan(params_of(name), config or AdapterConfig(**{"rank": 2, **options}))
    assert "\n" not in str(caught.value)


def test_two_families_on_one_module_are_refused():
    lora, mora = AdapterConfig("lora", 2), AdapterConfig("mora", 2, targets=("value",))
    refuse(r"layers/attention/value is adapted by lora and by mora; name it in", config=(lora, mora))
    refuse(r"layers/mlp is adapted by houlsby and by lin", config=[AdapterConfig("houlsby"), AdapterConfig("lin")])
    plan = make_plan(params_of("bert"), (dataclasses.replace(lora, exclude=("value",)), mora))
    assert [site.family.name for site in plan.sites] == ["lora", "mora"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_pfeiffer_needs_a_norm_behind_the_mlp(name):
    refuse(r"pfeiffer shares the norm behind the MLP.*final_norm\); use houlsby or lin", name, method="pfeiffer")


def test_what_does_not_fit_is_named():
    refuse(r"^layers/attention: a bottleneck of 17 exceeds the width 16", method="houlsby", rank=17)
    refuse(
        r"drop_layers is 3 and layers/mlp has 3 layers, of which", method="lin", bottleneck=BottleneckConfig("relu", 3)
    )
    refuse(r"adapter.exclude entry 'query' matches no place.*", method="houlsby", exclude=("query",))
    refuse(r"leaves nothing of lin's \['layers/mlp'\]", method="lin", exclude=("mlp",))
    with pytest.raises(UserError, match=r"houlsby has its place behind attention/out or mlp/down.*its kernels: up"):
        make_plan({"up": {"kernel": jnp.zeros((4, 4))}}, AdapterConfig("houlsby", 2))
    loop = {"mlp": {"down": {"kernel": jnp.zeros((4, 4))}}}
    with pytest.raises(UserError, match=r"mlp has no stacked layers; lower it"):
        make_plan(loop, AdapterConfig("lin", 2, bottleneck=BottleneckConfig(drop_layers=1)))
    with pytest.raises(UserError, match=r"unknown adapter.bottleneck.activation 'reul'; did you mean relu"):
        BottleneckConfig("reul")
    with pytest.raises(UserError, match=r"drop_layers is -1"):
        BottleneckConfig(drop_layers=-1)
    with pytest.raises(UserError, match=r"'pissa' is a start for lora and dora; houlsby has its own"):
        AdapterConfig("houlsby", init="pissa")


def test_places_can_be_excluded_and_have_ranks_of_their_own():
    config = AdapterConfig("houlsby", 2, rank_pattern=(("mlp", 3),))
    ranks = {site.path: site.spec.rank for site in make_plan(params_of("bert"), config).sites}
    assert ranks == {"layers/attention": 2, "layers/mlp": 3}
    config = dataclasses.replace(config, exclude=("attention",))
    assert [site.path for site in make_plan(params_of("bert"), config).sites] == ["layers/mlp"]


@pytest.mark.parametrize("method", METHODS)
def test_a_bottleneck_does_not_merge(method):
    plan, variables = adapted("bert", [AdapterConfig("lora", 2), AdapterConfig(method, 2)])
    with pytest.raises(UserError, match=rf"^{method} at layers/.* cannot be merged: no weight computes it; keep"):
        merge(variables, plan)


@pytest.mark.parametrize("method", METHODS)
def test_scaled_leaves_carry_the_scale(method):
    family, rng = FAMILIES[method], np.random.default_rng(0)
    spec = dataclasses.replace(make_plan(params_of("bert"), AdapterConfig(method, RANK)).sites[0].spec, stack=(2,))
    leaf = {k: rng.normal(size=(2, *shape)).astype("float32") for k, shape in family.shapes(spec).items()}
    x, scales = rng.normal(size=(3, D)).astype("float32"), np.float32([0.3, 7.0])
    once = jax.vmap(lambda one: family.delta(one, x, spec))(family.scale_leaf(leaf, scales))
    plain = jax.vmap(lambda one, s: s * family.delta(one, x, spec))(leaf, scales)
    np.testing.assert_allclose(once, plain, rtol=2e-5, atol=2e-5)
