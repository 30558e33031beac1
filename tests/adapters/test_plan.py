"""The plan: which kernels match, what the table says, and the errors that come before any work."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from lowrank_jax.adapters import AdapterConfig, MoraConfig, make_plan
from lowrank_jax.adapters.registry import FAMILIES, get_family
from lowrank_jax.adapters.targets import matches
from lowrank_jax.core.errors import UserError


def llama(layers=2, width=16, ffn=40, kv=8, vocab=64):
    """The params tree of a small Llama, as shapes."""
    kernel = lambda *shape: {"kernel": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}  # noqa: E731
    scale = {"scale": jax.ShapeDtypeStruct((layers, width), jnp.bfloat16)}
    return {
        "embed": {"embedding": jax.ShapeDtypeStruct((vocab, width), jnp.bfloat16)},
        "layers": {
            "attention_norm": scale,
            "attention": {
                "query": kernel(layers, width, width),
                "key": kernel(layers, width, kv),
                "value": kernel(layers, width, kv),
                "out": kernel(layers, width, width),
            },
            "mlp_norm": scale,
            "mlp": {
                "gate": kernel(layers, width, ffn),
                "up": kernel(layers, width, ffn),
                "down": kernel(layers, ffn, width),
            },
        },
        "head": kernel(width, vocab),
    }


def paths(**options):
    return [site.path.removeprefix("layers/") for site in make_plan(llama(), AdapterConfig(rank=2, **options)).sites]


# --- matching ---


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (("query", "value"), ["attention/query", "attention/value"]),
        (("attention/.*",), ["attention/key", "attention/out", "attention/query", "attention/value"]),
        (("layers/mlp/up",), ["mlp/up"]),
        (("up|down",), ["mlp/down", "mlp/up"]),
        (("(?:gate|up)", "gate"), ["mlp/gate", "mlp/up"]),
        (("head",), ["head"]),
    ],
)
def test_targets_match_whole_names_from_the_end(targets, expected):
    assert paths(targets=targets) == expected


def test_matches_is_of_whole_path_parts():
    assert matches("query", "layers/attention/query")
    assert matches("query", "query")
    assert not matches("query", "layers/attention/query_norm")
    assert not matches("query", "layers/attention/prequery")
    assert not matches("attention", "layers/attention/query")


def test_all_linear_leaves_the_head_and_the_embedding_out():
    sites = paths(targets=("all-linear",))
    assert len(sites) == 7
    assert "head" not in sites


@pytest.mark.parametrize(
    ("path", "adapted"),
    [
        ("lm_head", False),
        ("score", False),
        ("classifier", False),
        ("classifier/out_proj", False),  # RoBERTa's head has two layers
        ("model/lm_head", False),
        ("bert/pooler/dense", True),
        ("layers/attention/head/query", True),
        ("layers/mlp/head_norm", True),
    ],
)
def test_all_linear_leaves_out_what_peft_does(path, adapted):
    assert matches("all-linear", path) == adapted


def test_a_head_that_is_named_is_adapted():
    assert "head" in paths(targets=("all-linear", "head"))


def test_exclude_takes_names_away():
    assert paths(targets=("all-linear",), exclude=("mlp/.*", "out")) == [
        "attention/key",
        "attention/query",
        "attention/value",
    ]


def test_one_name_is_a_target_and_lists_become_tuples():
    assert paths(targets="query") == ["attention/query"]
    assert paths(targets="all-linear", exclude=["down"]) == paths(targets=("all-linear",), exclude=("down",))
    hash(make_plan(llama(), AdapterConfig(rank=2, targets=["query"])))


def test_patterns_override_rank_and_alpha_first_match_wins():
    config = AdapterConfig(
        rank=2,
        alpha=4.0,
        targets=("all-linear",),
        rank_pattern=(("attention/query", 3), ("attention/.*", 4)),
        alpha_pattern=(("down", 10.0),),
    )
    specs = {site.path.split("/")[-1]: site.spec for site in make_plan(llama(), config).sites}
    assert {name: spec.rank for name, spec in specs.items()} == {
        **dict.fromkeys(("gate", "up", "down"), 2), **dict.fromkeys(("key", "value", "out"), 4), "query": 3
    }  # fmt: skip
    scales = {name: FAMILIES["lora"].scale(spec) for name, spec in specs.items()}
    assert (scales["up"], scales["down"], scales["query"], scales["key"]) == (2.0, 5.0, 4 / 3, 1.0)


def test_method_none_has_no_sites():
    plan = make_plan(llama(), AdapterConfig("none", targets=("nothing of the kind",)))
    assert (plan.sites, plan.parameters, str(plan)) == ((), 0, "adapters: none")


# --- what the plan knows ---


def test_plan_reads_shapes_and_is_hashable():
    plan = make_plan(llama(), AdapterConfig(rank=2, targets=("down",)))
    (site,) = plan.sites
    assert (site.spec.d_in, site.spec.d_out, site.spec.stack) == (40, 16, (2,))
    assert plan == make_plan(llama(), AdapterConfig(rank=2, targets=("down",)))
    assert hash(plan) == hash(make_plan(llama(), AdapterConfig(rank=2, targets=("down",))))


def test_the_printed_table():
    config = AdapterConfig(rank=2, targets=("query", "down"), rank_pattern=(("down", 4),))
    lines = str(make_plan(llama(), config)).splitlines()
    assert lines[0].split() == ["kernel", "layers", "d_in", "d_out", "rank", "leaves", "scale", "parameters"]
    assert lines[1].split() == ["layers/attention/query", "2", "16", "16", "2", "a", "16x2", "b", "2x16", "8", "128"]
    assert lines[2].split() == ["layers/mlp/down", "2", "40", "16", "4", "a", "40x4", "b", "4x16", "4", "448"]
    assert lines[3] == "lora: 576 trainable parameters, float32"
    mora = dataclasses.replace(config, method="mora", rank_pattern=(), mora=MoraConfig("rotation"))
    assert str(make_plan(llama(), mora)).splitlines()[-1].startswith("mora (rotation): ")


SEVEN_B = {"layers": 32, "width": 4096, "ffn": 11008, "kv": 4096, "vocab": 32000}


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (AdapterConfig("lora", 8), 19_988_480),
        (AdapterConfig("lora", 256), 639_631_360),
        (AdapterConfig("mora", 8), 20_014_592),
        (AdapterConfig("mora", 32, mora=MoraConfig("rotation")), 79_791_488),
        (AdapterConfig("mora", 256, mora=MoraConfig("type1")), 639_433_088),
    ],
)
def test_parameters_of_llama_7b(config, total):
    plan = make_plan(llama(**SEVEN_B), dataclasses.replace(config, targets=("all-linear",)))
    assert plan.parameters == total
    assert f"{total:,} trainable" in str(plan)


# --- errors: one line that names the thing and the remedy ---


def refuse(match, params=None, **options):
    with pytest.raises(UserError, match=match) as caught:
        make_plan(llama() if params is None else params, AdapterConfig(**{"rank": 2, **options}))
    assert "\n" not in str(caught.value)


def test_unknown_targets_name_the_near_misses():
    refuse(r"adapter.targets entry 'querry' matches no kernel.*did you mean query", targets=("querry",))
    refuse(r"entry 'q_proj' matches no kernel", targets=("query", "q_proj"))
    refuse(r"entry 'zzz' .*kernels: down, gate, .*or 'all-linear'", targets=("zzz",))
    refuse(r"entry 'embde' matches no kernel.*did you mean embed", targets=("embde",))
    for method in ("mora", "dora"):  # which have nothing for a table
        refuse(r"entry 'embed' matches no kernel", targets=("embed",), method=method)


def test_other_patterns_that_match_nothing_are_named():
    refuse(r"adapter.exclude entry 'dwn'.*down", targets=("all-linear",), exclude=("dwn",))
    refuse(r"adapter.rank_pattern entry 'quer'.*query", rank_pattern=(("quer", 4),))
    refuse(r"adapter.alpha_pattern entry 'quer'.*query", alpha_pattern=(("quer", 4.0),))


def test_a_pattern_for_a_kernel_without_adapter_is_named():
    refuse(
        r"adapter.rank_pattern entry 'down' matches none of the adapted", targets=("up",), rank_pattern=(("down", 4),)
    )


@pytest.mark.parametrize("name", ["targets", "exclude"])
def test_a_broken_regular_expression_is_named(name):
    refuse(rf"adapter.{name} entry '\*query' is no regular expression", **{name: ("*query",)})


def test_excluding_everything_is_an_error():
    refuse(r"adapter.exclude \['attention/.\*'\] leaves nothing", targets=("query",), exclude=("attention/.*",))
    refuse("leaves nothing", targets=("all-linear",), exclude=("all-linear",))


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(rank):
    with pytest.raises(UserError, match=f"adapter.rank is {rank}; it must be at least 1"):
        AdapterConfig(rank=rank)
    with pytest.raises(UserError, match="at least 1"):
        AdapterConfig(rank_pattern=(("query", rank),))


def test_a_rank_too_large_names_the_kernel():
    refuse(r"^layers/attention/key: LoRA rank 9 exceeds .* 16 x 8 kernel.*<= 8", targets=("all-linear",), rank=9)
    refuse(r"^layers/attention/query: MoRA rank 8 needs a square of 16, too large", method="mora", rank=8)
    refuse(r"^layers/attention/key: MoRA .*at most 8", method="mora", rank=4, targets=("key",))


def test_smollm2_has_no_room_for_rank_256():
    """r-hat 735 against a width of 576: the table of the paper cannot be copied at this size."""
    params = llama(layers=30, width=576, ffn=1536, kv=192)
    refuse(r"^layers/mlp/up: .* square of 735.* below 576", params, method="mora", rank=256, targets=("up",))
    for rank in (8, 32):
        make_plan(params, AdapterConfig("mora", rank, targets=("all-linear",)))


@pytest.mark.parametrize(
    ("field", "value", "near"),
    [("method", "laro", "lora"), ("scaling", "rs-lora", "rslora"), ("init", "gausian", "gaussian")],
)
def test_a_misspelt_choice_does_not_fall_back(field, value, near):
    with pytest.raises(UserError, match=f"unknown adapter.{field} '{value}'; did you mean .*{near}"):
        AdapterConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("compression", "share"), ("padding", "wrapped"), ("layout", "pair"), ("rounding", "ceil")]
)
def test_a_misspelt_mora_option_does_not_fall_back(field, value):
    with pytest.raises(UserError, match=f"unknown adapter.mora.{field} '{value}'"):
        MoraConfig(**{field: value})


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 2.0])
def test_a_dropout_outside_its_range_is_refused(dropout):
    with pytest.raises(UserError, match=r"adapter\.dropout"):
        AdapterConfig(dropout=dropout)


def test_unknown_family_names_the_nearest():
    with pytest.raises(UserError, match="did you mean lora"):
        get_family("lorra")


def test_every_family_is_a_method():
    for name in FAMILIES:
        assert AdapterConfig(name).method == name
