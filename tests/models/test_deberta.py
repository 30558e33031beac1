"""DeBERTa-v2 against transformers' DebertaV2Model: hidden states, gradients, buckets; counts and errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import drawn, jitted, unlike

from lowrank_jax import adapters
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten, unflatten
from lowrank_jax.core.trees import cast, count
from lowrank_jax.models.deberta import SHAPES, Deberta, DebertaConfig, by_distance, rows, with_head

TOY = DebertaConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    position_buckets=8,
    conv_kernel_size=3,
    conv_act="gelu",
)
LAYER = {
    "attention/query": "attention.self.query_proj",
    "attention/key": "attention.self.key_proj",
    "attention/value": "attention.self.value_proj",
    "attention/position_key": "attention.self.pos_key_proj",
    "attention/position_query": "attention.self.pos_query_proj",
    "attention/out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def from_torch(config, state):
    """A DebertaV2Model's state dict as our parameters, written independently of interop's table."""
    state = {name.removeprefix("deberta."): tensor.detach().float().numpy() for name, tensor in state.items()}

    def stack(name):
        return np.stack([state[f"encoder.layer.{i}.{name}"] for i in range(config.num_hidden_layers)])

    flat = {"embed/embedding": state["embeddings.word_embeddings.weight"]}
    flat["relative/embedding"] = state["encoder.rel_embeddings.weight"]
    for ours, theirs in LAYER.items():
        if f"encoder.layer.0.{theirs}.weight" in state:
            norm = ours.endswith("norm")
            weight = stack(f"{theirs}.weight")
            flat[f"layers/{ours}/{'scale' if norm else 'kernel'}"] = weight if norm else weight.swapaxes(1, 2)
            flat[f"layers/{ours}/bias"] = stack(f"{theirs}.bias")
    norms = {"embed_norm": "embeddings.LayerNorm", "relative_norm": "encoder.LayerNorm"}
    for ours, theirs in {**norms, "conv_norm": "encoder.conv.LayerNorm"}.items():
        if f"{theirs}.weight" in state:
            flat[f"{ours}/scale"], flat[f"{ours}/bias"] = state[f"{theirs}.weight"], state[f"{theirs}.bias"]
    if config.conv_kernel_size:
        flat["conv/filters"] = np.einsum("oik->kio", state["encoder.conv.conv.weight"])
        flat["conv/bias"] = state["encoder.conv.conv.bias"]
    if config.head == "masked-lm":
        place = "cls.predictions"
        flat["head/dense/kernel"] = state[f"{place}.transform.dense.weight"].T
        flat["head/dense/bias"] = state[f"{place}.transform.dense.bias"]
        flat["head/norm/scale"] = state[f"{place}.transform.LayerNorm.weight"]
        flat["head/norm/bias"] = state[f"{place}.transform.LayerNorm.bias"]
        flat["head/bias"] = state[f"{place}.bias"]
    elif config.head != "none":
        flat["pooler/kernel"], flat["pooler/bias"] = state["pooler.dense.weight"].T, state["pooler.dense.bias"]
        flat["head/out/kernel"], flat["head/out/bias"] = state["classifier.weight"].T, state["classifier.bias"]
    return {"params": unflatten({path: jnp.asarray(leaf) for path, leaf in flat.items()})}


def torch_deberta(config, seed=0):
    """The original with no weight at its start: zero biases and norms of one would hide a mix-up."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    own = ("head", "num_labels", "classifier_dropout")
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    fields |= {"relative_attention": True, "position_biased_input": False, "type_vocab_size": 0}
    fields["pos_att_type"] = list(config.pos_att_type)
    kinds = {"none": transformers.DebertaV2Model, "masked-lm": transformers.DebertaV2ForMaskedLM}
    kind = kinds.get(config.head, transformers.DebertaV2ForSequenceClassification)
    model = kind(transformers.DebertaV2Config(**fields, num_labels=config.num_labels)).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name and name.endswith("weight"):
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0, 0.3)
    return model


@functools.cache
def variables_of(config, seed=0):
    return drawn(Deberta(config), jnp.zeros((1, 4), jnp.int32), seed=seed)


def batch(padding, length=21, seed=1):
    tokens = np.random.default_rng(seed).integers(1, TOY.vocab_size, (3, length))
    lengths = np.array([length, 9, 2]) if padding else np.array([length] * 3)
    return tokens, np.arange(length) < lengths[:, None]


LAYOUTS = {
    "xxl-like": {},
    "v3-like with one head": {"conv_kernel_size": 0, "num_attention_heads": 1},
    "own-position-products with late buckets": {
        "share_att_key": False, "norm_rel_ebd": "none", "position_buckets": 16, "max_relative_positions": 200
    },
    "no-buckets": {"position_buckets": -1, "max_relative_positions": 7, "conv_kernel_size": 0},
    "wide-grouped-conv": {"conv_kernel_size": 5, "conv_groups": 4, "conv_act": "tanh"},
    "c2p": {"pos_att_type": ("c2p",), "conv_kernel_size": 0},
    "p2c": {"pos_att_type": ("p2c",), "share_att_key": False, "layer_norm_eps": 1e-3},
}  # fmt: skip


@pytest.mark.parametrize(("layout", "padding"), [("xxl-like", False), *((layout, True) for layout in LAYOUTS)])
def test_hidden_states_equal_transformers(layout, padding):
    torch = pytest.importorskip("torch")
    config = dataclasses.replace(TOY, max_relative_positions=-1)
    config = dataclasses.replace(config, **LAYOUTS[layout])
    original = torch_deberta(config)
    tokens, mask = batch(padding)
    with torch.no_grad():
        theirs = original(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long())
        theirs = theirs.last_hidden_state.numpy()
    given = mask if padding else None
    variables = from_torch(config, original.state_dict())
    ours, pooled = jitted(Deberta(config))(variables, tokens, mask=given)
    assert pooled is None
    ours = np.asarray(ours)
    assert np.isfinite(ours).all()
    assert np.abs(ours - theirs)[mask].max() / np.abs(theirs[mask]).max() < 1e-5


@pytest.mark.parametrize("length", [1, 2])
def test_the_shortest_sequences(length):
    torch = pytest.importorskip("torch")
    original = torch_deberta(TOY)
    tokens, _ = batch(False, length)
    with torch.no_grad():
        theirs = original(input_ids=torch.tensor(tokens)).last_hidden_state.numpy()
    ours = jitted(Deberta(TOY), method="hidden")(from_torch(TOY, original.state_dict()), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("head", ["classification", "regression", "masked-lm"])
def test_heads_equal_transformers(head):
    torch = pytest.importorskip("torch")
    config = with_head(TOY, head, 3)
    original = torch_deberta(config)
    tokens, mask = batch(True)
    with torch.no_grad():
        theirs = original(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits.numpy()
    ours = np.asarray(jitted(Deberta(config))(from_torch(config, original.state_dict()), tokens, mask))
    theirs = theirs[:, 0] if head == "regression" else theirs
    assert ours.dtype == jnp.float32
    if head == "masked-lm":
        ours, theirs = ours[mask], theirs[mask]
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_gradients_equal_transformers():
    torch = pytest.importorskip("torch")
    original = torch_deberta(TOY)
    tokens, mask = batch(True, 9)
    weight = np.random.default_rng(5).normal(size=(3, 9, 32)).astype(np.float32) * mask[..., None]
    hidden = original(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).last_hidden_state
    (hidden * torch.tensor(weight)).mean().backward()
    theirs = flatten(from_torch(TOY, {name: p.grad for name, p in original.named_parameters()})["params"])

    def loss(params):
        model = Deberta(TOY, remat="projections")
        return (model.apply({"params": params}, jnp.asarray(tokens), jnp.asarray(mask))[0] * weight).mean()

    ours = flatten(jax.jit(jax.grad(loss))(from_torch(TOY, original.state_dict())["params"]))
    for path, leaf in theirs.items():
        np.testing.assert_allclose(ours[path], leaf, atol=1e-4 * np.abs(leaf).max(), err_msg=path)


@pytest.mark.parametrize(("buckets", "furthest"), [(256, 512), (8, 64), (32, 128), (320, 512), (-1, 20)])
def test_buckets_equal_transformers(buckets, furthest):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    config = dataclasses.replace(TOY, position_buckets=buckets, max_relative_positions=furthest)
    distance = np.arange(-700, 701)
    theirs = torch.tensor(distance)
    if buckets > 0:
        theirs = module.make_log_bucket_position(theirs, buckets, furthest).long()
    theirs = torch.clamp(theirs + config.span, 0, 2 * config.span - 1).numpy()
    np.testing.assert_array_equal(rows(distance, config), theirs)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_by_distance_reads_the_diagonals(length):
    scores = jnp.arange(2 * length * 2 * length, dtype=jnp.float32).reshape(2, length, 2 * length)
    i, j = np.indices((length, length))
    np.testing.assert_array_equal(by_distance(scores), scores[:, i, j - i + length - 1])


def test_padding_changes_nothing():
    variables = variables_of(TOY)
    tokens, mask = batch(True)
    padded = jitted(Deberta(TOY))(variables, tokens, mask)[0]
    alone = jitted(Deberta(TOY))(variables, tokens[1:2, :9])[0]
    np.testing.assert_allclose(padded[1, :9], alone[0], atol=1e-5)


@functools.cache
def shapes_of(name):
    return jax.eval_shape(Deberta(SHAPES[name]).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]


@pytest.mark.parametrize("name", unlike(SHAPES))
def test_parameters_of_the_known_shapes(name):
    torch = pytest.importorskip("torch")
    config = SHAPES[name]
    with torch.device("meta"):
        original = torch_deberta(config)
    assert count(shapes_of(name)) == sum(p.numel() for p in original.parameters())


def test_xxl_has_the_papers_1500_million_parameters():
    assert count(shapes_of("deberta-v2-xxlarge")) == 1_564_549_632


# Hu et al. print 4.7M, which is rank 16, beside a rank of 8.
@pytest.mark.parametrize(("rank", "want"), [(8, 2_359_296), (16, 4_718_592)])
def test_lora_counts_of_the_paper(rank, want):
    config = adapters.AdapterConfig("lora", rank=rank, targets=("query", "value"))
    plan = adapters.make_plan(shapes_of("deberta-v2-xxlarge"), config)
    assert [site.path for site in plan.sites] == ["layers/attention/query", "layers/attention/value"]
    assert plan.parameters == want


@pytest.mark.parametrize("share", [True, False])
def test_adapters_are_read_at_every_kernel(share):
    config = dataclasses.replace(with_head(TOY, "classification"), share_att_key=share)
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    variables = jax.eval_shape(Deberta(config).init, jax.random.key(0), tokens)
    plan = adapters.make_plan(variables["params"], adapters.AdapterConfig("lora", rank=2, targets=("all-linear",)))
    paths = {site.path for site in plan.sites}
    assert {f"layers/attention/{name}" for name in ("query", "key", "value", "out")} < paths
    assert ("layers/attention/position_key" in paths) != share
    assert not {"conv", "head/out"} & paths
    fresh = jax.eval_shape(lambda key: adapters.create(plan, key), jax.random.key(1))
    adapters.check(Deberta(config, remat="projections"), plan, {**variables, **fresh}, tokens)


def test_adapters_of_shared_products_see_positions_too():
    variables, (tokens, mask) = variables_of(TOY), batch(True)
    plan = adapters.make_plan(variables["params"], adapters.AdapterConfig("lora", rank=2, targets=("query", "key")))
    fresh = adapters.create(plan, jax.random.key(1))
    model, inputs = Deberta(TOY, remat="projections"), (jnp.asarray(tokens), jnp.asarray(mask))
    moved = {**fresh, "adapters": jax.tree.map(lambda x: x + 0.1, fresh["adapters"])}
    plain = jax.jit(lambda *args: Deberta(TOY).apply(*args, method="hidden"))
    branch = jax.jit(functools.partial(adapters.attach(model, plan), method="hidden"))({**variables, **moved}, *inputs)
    assert np.abs(branch - plain(variables, *inputs)).max() > 1e-2
    # The merged kernel serves content and positions alike, so the branch must have run for both.
    kernels = dict(flatten(variables["params"]))
    for site in plan.sites:
        leaf = {k: v for k, v in flatten(moved["adapters"]).items() if k.startswith(f"{site.path}/")}
        a, b = leaf[f"{site.path}/a"], leaf[f"{site.path}/b"]
        scale = flatten(moved["scales"])[f"{site.path}/scale"]
        kernels[f"{site.path}/kernel"] += (a @ b) * scale[..., None, None]
    merged = plain({"params": unflatten(kernels)}, *inputs)
    np.testing.assert_allclose(branch, merged, atol=1e-4 * np.abs(merged).max())


def test_dropout_acts_only_with_a_key():
    variables, (tokens, mask) = variables_of(TOY), batch(True)
    plain = jitted(Deberta(TOY))(variables, tokens, mask)[0]
    keys = [{"dropout": jax.random.key(i)} for i in (1, 2)]
    one, two = (np.asarray(jitted(Deberta(TOY))(variables, tokens, mask, rngs=key)[0]) for key in keys)
    assert np.abs(one - two)[mask].max() > 1e-2
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 1e-9}  # the branch with dropout, dropping none
    kept = jitted(Deberta(dataclasses.replace(TOY, **rates)))(variables, tokens, mask, rngs=keys[0])[0]
    np.testing.assert_allclose(np.asarray(kept)[mask], np.asarray(plain)[mask], atol=1e-5)


def test_types_never_promote_by_themselves(monkeypatch):
    library = jax.numpy_dtype_promotion("standard")(jax.nn.dot_product_attention)  # it promotes bfloat16 by itself
    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    variables, tokens = cast(variables_of(TOY), jnp.bfloat16), jnp.ones((2, 5), jnp.int32)
    with jax.numpy_dtype_promotion("strict"):
        model = Deberta(TOY, dtype=jnp.bfloat16, remat="projections")
        hidden, _ = jax.eval_shape(model.apply, variables, tokens, jnp.ones((2, 5), bool))
    assert hidden.dtype == jnp.bfloat16


def test_bfloat16_runs_close_to_float32():
    variables, (tokens, mask) = variables_of(TOY), batch(True)
    half = jitted(Deberta(TOY, dtype=jnp.bfloat16))(cast(variables, jnp.bfloat16), tokens, mask)[0]
    full = np.asarray(jitted(Deberta(TOY))(variables, tokens, mask)[0])
    assert np.abs(np.asarray(half, np.float32) - full)[mask].max() < 0.05 * np.abs(full[mask]).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "hidden_size 32 does not divide by num_attention_heads 3"),
        ({"conv_groups": 5}, "hidden_size 32 does not divide by conv_groups 5"),
        ({"conv_kernel_size": 4}, "conv_kernel_size is 4; it must be odd"),
        ({"position_buckets": 200}, "position_buckets 200 does not fit max_relative_positions 64"),
        ({"pos_att_type": ("c2c",)}, "did you mean"),
        ({"norm_rel_ebd": "layernorm"}, "did you mean layer_norm"),
        ({"hidden_act": "gelu2"}, "did you mean gelu"),
        ({"head": "masked"}, "did you mean masked-lm"),
        ({"head": "regression"}, "set it to 1"),
        ({"hidden_dropout_prob": 1.0}, "below 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TOY, **change)


def test_cudnn_is_refused_and_misspelt_kernels_too():
    for name, message in (("cudnn", "adds scores of positions"), ("xl", "did you mean xla")):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(Deberta(TOY, attention=name).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
