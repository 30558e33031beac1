"""Prefix methods: the papers' counts and equations, and every way in which a model reads its rows."""

import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, moved

from experiments.config import labels
from lowrank_jax import adapters
from lowrank_jax.adapters import AdapterConfig, PrefixConfig
from lowrank_jax.adapters.base import PREFIX_METHODS
from lowrank_jax.adapters.cost import adapter_flops
from lowrank_jax.adapters.prefix.places import VirtualTokens
from lowrank_jax.bases.base import param_shapes
from lowrank_jax.bases.codes import quantize_leaf
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.decoding.beam import Beams, beam_search
from lowrank_jax.decoding.decoder import make_decoder
from lowrank_jax.decoding.loop import Limits, Prompts, generate
from lowrank_jax.decoding.weights import ready
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.layouts.fused import Fused
from lowrank_jax.models import llama
from lowrank_jax.models.gpt2 import GPT2, GPT2Config
from lowrank_jax.models.registry import get_model
from lowrank_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh
from lowrank_jax.sharding.rules import shard_tree
from lowrank_jax.train.state import trainable_rules

SHAPE = get_model("toy-llama")
V = SHAPE.vocab_size
BOTH = PrefixConfig(3, 2)
PREFIX, INFIX = [V, V + 1, V + 2], [V + 3, V + 4]
LORA = AdapterConfig("lora", 2, targets=("query", "value", "embed"))  # whose table has no row of a virtual token
CONFIGS = {
    "preembed": (AdapterConfig("preembed", prefix=BOTH),),
    "prelayer": (AdapterConfig("prelayer", prefix=BOTH),),
    "lora+prelayer": (LORA, AdapterConfig("prelayer", prefix=BOTH)),
    "prefix": (AdapterConfig("prefix", init_std=0.5, prefix=PrefixConfig(3)),),
}
ROW = [*PREFIX, 40, 41, 42, *INFIX, 50, 51]  # prompt 40 .. 42
TOLERANCE = 4e-6  # 1.9e-6 on a processor without AVX-512, on one with it less than 1e-6


@functools.cache
def weights(model="llama"):
    shape = SHAPE if model == "llama" else GPT2Config(V, 32, 2, 4, max_position_embeddings=64)
    return shape, drawn((llama.Llama if model == "llama" else GPT2)(shape), np.zeros((1, 4), np.int32))["params"]


@functools.cache
def made(name, model="llama"):
    """(Linen model, plan, variables) with random adapters."""
    shape, params = weights(model)
    plan = adapters.make_plan(params, CONFIGS[name])
    kind = llama.Llama if model == "llama" else GPT2
    return kind(shape), plan, {"params": params, **moved(plan, 1.0, 1, params)}


@functools.cache
def apply_fn(name, model="llama"):
    linen, plan, _ = made(name, model)
    return jax.jit(adapters.attach(linen, plan), static_argnames=("method",))


def logits(name, tokens, model="llama", **more):
    return apply_fn(name, model)(made(name, model)[2], jnp.asarray(tokens, jnp.int32), **more)


def close(found, wanted, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, wanted, atol=tolerance * float(np.abs(np.asarray(wanted)).max()), rtol=0)


@pytest.mark.parametrize(
    ("method", "tokens", "infix", "lora", "count"),
    [  # Hu et al., Table 15, by the formulas of section 5.1; the ledger has where the printed counts differ
        *(("preembed", tokens, 8, None, 12288 * (tokens + 8)) for tokens in (32, 64, 128, 256, 512)),
        *(("prelayer", *pair, None, 96 * 12288 * sum(pair)) for pair in ((2, 2), (8, 0), (8, 8), (32, 4), (64, 0))),
        *(("preembed", 8, 4, rank, 4 * 96 * 12288 * rank + 12288 * 12) for rank in (8, 32, 64)),
        ("prelayer", 8, 4, 8, 4 * 96 * 12288 * 8 + 96 * 12288 * 12),
        ("prefix", 8, 0, None, 2 * 96 * 12288 * 8),  # keys and values
    ],
)
def test_parameter_counts_of_table_15(method, tokens, infix, lora, count):
    shapes = param_shapes(get_model("gpt3-175b"))
    params = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    configs = [AdapterConfig("lora", lora)] if lora else []
    plan = adapters.make_plan(params, [*configs, AdapterConfig(method, prefix=PrefixConfig(tokens, infix))])
    assert plan.parameters == count
    assert plan.virtual == VirtualTokens(50257, tokens, infix)
    assert f"{method}: " in str(plan)
    assert adapter_flops(plan, 1) == adapter_flops(adapters.make_plan(params, configs), 1) if lora else True
    assert f"{count:,}" in str(plan).splitlines()[-1]


def test_each_layer_reads_the_vectors_of_prelayer():
    """Against a plain loop over the toy's own blocks, in which the states at virtual tokens are overwritten."""
    linen, _, variables = made("prelayer")
    params, vectors = variables["params"], variables["adapters"]["layers"]["vectors"]
    block = llama.Block(SHAPE, jnp.float32, jnp.float32, "auto")

    @jax.jit
    def by_hand(params, vectors, tokens):
        x = jnp.take(params["embed"]["embedding"], jnp.where(tokens < V, tokens, 0), axis=0)
        rotation = llama.rotation_of(SHAPE, jnp.arange(len(ROW)))
        for number in range(SHAPE.num_hidden_layers):
            x = jnp.where((tokens >= V)[..., None], vectors[number][jnp.maximum(tokens - V, 0)], x)
            layer = jax.tree.map(lambda leaf, n=number: leaf[n], params["layers"])
            ((x, _), _) = block.apply({"params": layer}, (x, None), rotation, None, {})
        return linen.apply({"params": params}, x, method=lambda model, x: model.logits(model.final_norm(x)))

    close(logits("prelayer", [ROW]), by_hand(params, vectors, jnp.asarray([ROW])), 1e-5)


def test_preembed_is_a_longer_table():
    """Virtual tokens are rows that the table does not have; an id above theirs is still no token."""
    linen, _, variables = made("preembed", "gpt2")
    params = variables["params"]
    longer = jnp.concatenate([params["embed"]["embedding"], variables["adapters"]["embed"]["vectors"]])
    grown = linen.clone(config=dataclasses.replace(linen.config, vocab_size=V + 5))
    wanted = jax.jit(grown.apply)({"params": {**params, "embed": {"embedding": longer}}}, jnp.asarray([ROW]))
    close(logits("preembed", [ROW], "gpt2"), wanted[..., :V])
    assert np.isnan(logits("preembed", [[*ROW[:-1], V + 5]], "gpt2")[0, -1]).all()


@pytest.mark.parametrize("name", ["preembed", "lora+prelayer", "prefix"])
def test_gradients_reach_the_vectors_alone(name):
    """Every one of them, through whole rows in chunks whose labels are virtual too; beside LoRA both train."""
    row = [one for one in ROW if name != "prefix" or one not in INFIX]
    linen, plan, variables = made(name)
    trained, frozen = partition(variables, trainable_rules("adapters"))
    assert all(path.startswith("adapters/") for path in flatten(trained))
    targets = np.array([one < V for one in row]) & (np.arange(len(row)) >= len(row) - 2)
    batch = {"tokens": jnp.asarray([row]), "weights": jnp.asarray([targets], jnp.float32)}

    def loss(trained, model):
        objective = next_token_objective(adapters.attach(model, plan), chunk_tokens=3)
        return objective(combine(trained, frozen), batch, None)[0]

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradients = run(trained, linen)
    likely = np.asarray(jax.jit(jax.nn.log_softmax)(logits(name, [row])[0]))
    close(-value, likely[-3, row[-2]] + likely[-2, row[-1]], 1e-5)
    for path, gradient in flatten(gradients).items():
        reached = np.abs(np.asarray(gradient)).reshape(-1, gradient.shape[-1]).sum(1) > 0
        assert bool(reached.all() if path.endswith("/vectors") else reached.any()), path
        assert np.isfinite(np.asarray(gradient)).all(), path
    if name == "lora+prelayer":  # layers without a loop, whose states are computed again
        again = run(trained, linen.clone(remat="projections", scan_unroll=SHAPE.num_hidden_layers))[1]
        for path, gradient in flatten(again).items():
            close(gradient, flatten(gradients)[path], 1e-5)


@pytest.mark.parametrize(("name", "model"), [("lora+prelayer", "llama"), ("prefix", "gpt2")])
def test_padding_and_packing_leave_rows_as_they_are(name, model):
    """Left padding as in decoding, and two rows in one; each row has its own virtual tokens and positions."""
    rows = [ROW, [*PREFIX, 60, *INFIX, 70]]
    rows = [[one for one in row if name != "prefix" or one not in INFIX] for row in rows]
    alone = [logits(name, [row], model)[0] for row in rows]
    width = max(map(len, rows))
    padded = [[7] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    found = logits(name, padded, model, mask=jnp.asarray(mask))
    packed = logits(name, [rows[0] + rows[1]], model, segments=jnp.asarray([[1] * len(rows[0]) + [2] * len(rows[1])]))
    for row, wanted in enumerate(alone):
        close(np.asarray(found)[row, width - len(wanted) :], wanted)
    close(packed[0], np.concatenate(alone))


@pytest.mark.parametrize(("name", "model"), [("lora+prelayer", "llama"), ("prefix", "gpt2")])
def test_cached_decoding_and_beams_equal_whole_rows(name, model):
    """Prompts of unequal length, with repeated n-grams blocked; a beam's score is that of its text, computed anew."""
    prompts = [[*PREFIX, 40, 41, 42, *INFIX], [*PREFIX, 60, *INFIX]]
    prompts = [[one for one in row if name != "prefix" or one not in INFIX] for row in prompts]
    width, new = max(map(len, prompts)), 4
    tokens = np.array([[0] * (width - len(row)) + row for row in prompts], np.int32)
    mask = np.array([[False] * (width - len(row)) + [True] * len(row) for row in prompts])
    linen, _, variables = made(name, model)
    decoder = make_decoder(apply_fn(name, model), linen.config, jnp.float32)
    given = Prompts(jnp.asarray(tokens), jnp.asarray(mask), jnp.arange(2))
    limits = Limits(new, no_repeat_ngram=2)
    greedy, found = jax.jit(
        lambda v, given: (
            generate(decoder, v, given, limits),
            beam_search(decoder, v, given, limits, Beams(3, length_penalty=0.0)),
        )
    )(variables, given)
    for row, prompt in enumerate(prompts):
        best = found.tokens[row, 0].tolist()
        # Rows of one length for all, which compiles once; what follows a token does not change it.
        whole = [(prompt + text + [0] * width)[: width + new] for text in (greedy[row].tolist(), best)]
        each = np.asarray(jax.jit(jax.nn.log_softmax)(logits(name, whole, model)))
        places = len(prompt) - 1 + np.arange(new)
        text = [*prompt, *greedy[row].tolist()]
        for place in places:  # greedy: the likeliest token that repeats no pair
            banned = {two for one, two in itertools.pairwise(text[: place + 1]) if one == text[place]}
            likely = np.array(each[0, place])
            likely[[one for one in banned if one < V]] = -np.inf
            assert text[place + 1] == int(likely.argmax())
        close(found.scores[row, 0], each[1, places, np.asarray(best)].sum(), 1e-5)
        assert max(best) < V


def test_sharded_rows_equal_the_plain_model():
    """On eight devices along every axis, and for several adapters at once, as trials have them."""
    name = "lora+prelayer"
    tokens = jnp.asarray([ROW, [*ROW[:-1], 52]] * 2)
    linen, plan, variables = made(name)
    wanted, mesh = logits(name, tokens), make_mesh(MeshConfig(2, 2, 2))
    close(apply_fn(name)(shard_tree(variables, mesh), jax.device_put(tokens, batch_sharding(mesh))), wanted)
    two = jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), variables["adapters"])
    attached = adapters.attach(linen, plan)
    trials = jax.jit(jax.vmap(lambda vectors: attached({**variables, "adapters": vectors}, tokens)))(two)
    close(trials[0], wanted, 1e-5)
    assert float(jnp.abs(trials[1] - wanted).max()) > 0.01


def test_other_layouts_equal_the_plain_model():
    """A fused base, except for keys that a prefix replaces, and a quantised base, with virtual tokens."""
    linen, plan, variables = made("lora+prelayer")
    tokens = jnp.asarray([ROW])

    groups, joined = linen.fused_groups(), linen.clone(fused=True)
    fused = {**variables, "params": Fused(groups).apply(variables["params"])}
    close(jax.jit(adapters.attach(joined, plan, groups))(fused, tokens), logits("lora+prelayer", [ROW]))
    with pytest.raises(UserError, match=r"prefix at layers/attention/key .*set base\.fused to false"):
        adapters.attach(joined, made("prefix")[1], groups)
    coded = {path: quantize_leaf(path, leaf, "int8", None) for path, leaf in flatten(variables["params"]).items()}
    prefix, (_, _, variables) = [one for one in ROW if one not in INFIX], made("prefix")
    found = apply_fn("prefix")({**variables, "params": unflatten(coded)}, jnp.asarray([prefix]))
    close(found, logits("prefix", [prefix]), 0.05)


def test_vectors_start_as_rows_of_the_table_or_at_random():
    """Each of preembed and prelayer as a row of the table, once; prefix, and `normal`, with the given deviation."""
    params = weights()[1]
    table = np.asarray(params["embed"]["embedding"])

    def start(method, **changes):
        config = AdapterConfig(method, init_std=0.3, prefix=PrefixConfig(40, **changes))
        plan = adapters.make_plan(params, config)
        needed = params if adapters.needs_params(plan) else None
        found = flatten(jax.jit(functools.partial(adapters.create, plan))(jax.random.key(0), needed)["adapters"])
        return [np.asarray(leaf) for leaf in found.values()]

    (rows,) = start("preembed")
    which = [int(np.flatnonzero((table == row).all(1))[0]) for row in rows]
    assert len(set(which)) == 40
    (states,) = start("prelayer")
    np.testing.assert_array_equal(states[0], states[1])
    assert all((table == row).all(1).any() for row in states[0])
    for method in ("preembed", "prelayer", "prefix"):
        for leaf in start(method, init="normal"):
            assert leaf.std() == pytest.approx(0.3, rel=0.1)
            assert leaf.ndim == 2 or not np.array_equal(leaf[0], leaf[1])
    with pytest.raises(UserError, match=r"preembed with init 'family' starts from the base's table; give it"):
        adapters.create(adapters.make_plan(params, AdapterConfig("preembed")), jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(method="prefix", prefix=PrefixConfig(3, 2)), "prefix.infix is 2, and prefix trains no vector"),
        (dict(method="prefix", prefix=PrefixConfig(3, init="vocabulary")), "'vocabulary' starts embeddings"),
        (dict(method="preembed", prefix=PrefixConfig(0, 0)), "no virtual token for preembed"),
        (dict(method="prelayer", dropout=0.1), r"adapter\.dropout is not read by prelayer"),
        (dict(method="prelayer", exclude=("mlp",)), r"adapter\.exclude is not read by prelayer"),
        (dict(method="preembed", prefix=PrefixConfig(3, init="states")), "'states' is for prelayer, which has vectors"),
        (dict(method="preembed", init="pissa"), "'pissa' is a start for lora and dora"),
    ],
)
def test_settings_that_a_prefix_cannot_have(config, message):
    with pytest.raises(UserError, match=message):
        AdapterConfig(**config)


def test_what_has_no_virtual_tokens_or_no_weight_for_them():
    """An encoder, two methods at once, and everything that merges; a model's shape that does not fit the ids."""
    encoder = {path: jax.ShapeDtypeStruct(s, jnp.float32) for path, s in param_shapes(get_model("toy-bert")).items()}
    with pytest.raises(UserError, match="for causal language models alone: this model has no embed/embedding"):
        adapters.make_plan(unflatten(encoder), AdapterConfig("preembed"))
    params = weights()[1]
    with pytest.raises(UserError, match="preembed and prefix would share their virtual tokens"):
        adapters.make_plan(params, [AdapterConfig("preembed"), AdapterConfig("prefix")])
    with pytest.raises(UserError, match="value is adapted by lora and by prefix"):
        adapters.make_plan(params, [LORA, AdapterConfig("prefix")])
    linen, plan, variables = made("lora+prelayer")
    for merge in (adapters.merge, adapters.unmerge, lambda v, p: ready(linen, v["params"], p, v)):
        with pytest.raises(UserError, match="prelayer at layers cannot be merged: no weight computes it"):
            merge(variables, plan)
    linen, plan, variables = made("prelayer")
    attached = adapters.attach(linen, plan)
    with pytest.raises(UserError, match="the model has read no token ids"):
        attached(variables, jnp.zeros((1, 4, 32)), method=_layers_alone)


def _layers_alone(model, x):
    return model.layers((x, None), llama.rotation_of(SHAPE, jnp.arange(x.shape[1])), None, {})[0][0]


def test_labels_know_the_methods_and_their_default():
    """They are read without the package's dataclasses."""
    assert (PREFIX_METHODS, PrefixConfig().tokens) == (tuple(labels.PREFIX_METHODS), labels.PREFIX_TOKENS)
    plain = {"adapter": {"method": "lora", "rank": 8}, "adapters": [{"method": "preembed", "prefix": {"infix": 4}}]}
    assert labels.derive(plain) == {"method": "lora+pe", "rank": 8, "stage": "full", "variant": "p8i4"}
    assert PrefixConfig().init == labels.FAMILYS_START
    for start, more in ((None, ""), ("family", ""), ("states", " states")):
        prefix = {"tokens": 2, "infix": 2, **({"init": start} if start else {})}
        alone = labels.derive({"adapter": {"method": "prelayer", "rank": 8, "prefix": prefix}})
        assert alone == {"method": "prelayer", "rank": None, "stage": "full", "variant": f"p2i2{more}"}


@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_prelayer_can_start_as_the_words_that_the_base_reads(model):
    """From `states`, a row behind the prefix has the logits of the same row behind the words that were drawn."""
    shape, params = weights(model)
    linen = (llama.Llama if model == "llama" else GPT2)(shape)
    plan = adapters.make_plan(params, [LORA, AdapterConfig("prelayer", prefix=PrefixConfig(3, 2, init="states"))])
    created = jax.jit(functools.partial(adapters.create, plan, model=linen))(jax.random.key(0), params)
    (vectors,) = [leaf for path, leaf in flatten(created["adapters"]).items() if path.endswith("layers/vectors")]
    first = np.asarray(vectors[0]) - (params["position"]["embedding"][:5] if model == "gpt2" else 0)  # positions
    table = np.asarray(params["embed"]["embedding"])
    words = [int(np.abs(table - row).sum(1).argmin()) for row in first]
    np.testing.assert_allclose(table[words], first, atol=1e-6)
    assert len(set(words)) == 5
    tokens = [40, 41, 42]
    found = jax.jit(adapters.attach(linen, plan))({"params": params, **created}, jnp.asarray([[*PREFIX, *tokens]]))
    wanted = jax.jit(linen.apply)({"params": params}, jnp.asarray([[*words[:3], *tokens]]))
    close(found, wanted, 1e-5)
    with pytest.raises(UserError, match=r"give it: create\(plan, key, params, model\)"):
        adapters.create(plan, jax.random.key(0), params)


class Half(nn.Module):
    """A block's attention, as far as its path goes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="key")(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + Half(name="attention")(x), None


class Scanned(nn.Module):
    """A causal model by its paths, whose scan hands its layers no adapters."""

    @nn.compact
    def __call__(self, tokens):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers(name="layers")(nn.Embed(16, 8, name="embed")(tokens), None)[0]


def test_a_scan_that_hands_its_layers_no_vectors_is_refused():
    """Taken for a call of the whole stack, every layer would run without them."""
    model, tokens = Scanned(), jnp.asarray([[16, 17, 3]])
    params = model.init(jax.random.key(0), tokens)["params"]
    plan = adapters.make_plan(params, AdapterConfig("prelayer", prefix=PrefixConfig(2)))
    variables = {"params": params, **adapters.create(plan, jax.random.key(1), params)}
    with pytest.raises(UserError, match=r"list 'adapters' in variable_axes of the nn\.scan around it"):
        adapters.attach(model, plan)(variables, tokens)
