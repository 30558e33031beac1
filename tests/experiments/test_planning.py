"""experiments.plan --topology: names of slices, the bytes and transfers of a step, the smallest slice, LoRA's claim."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies as jax_topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.papers import gpt3
from experiments.planning import cards, claim, slices, topology
from experiments.planning.needs import Needs, needs
from lowrank_jax.core.errors import UserError
from lowrank_jax.models.parts.attend import attend
from lowrank_jax.models.parts.attention_kernel import pick_implementation
from lowrank_jax.ops.flops import product_flops
from lowrank_jax.sharding.collectives import Collective, collectives
from lowrank_jax.sharding.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [("v5e:16x16", "TPU v5 lite", 256), ("v5p:4x4x4", "TPU v5", 64), ("v6e:8x8", "TPU v6 lite", 64),
     ("h200:8", "NVIDIA H200", 8), ("h100:3", "NVIDIA H100 80GB HBM3", 3)],
)  # fmt: skip
def test_names_of_slices(name, kind, count):
    found = topology.parse(name)
    assert (str(found), found.kind.jax, found.count) == (name, kind, count)
    assert [one.count for one in found.others()] == sorted(one.count for one in found.others())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "write KIND:SIZE with one of v5e, v6e, v5p, a100, h100, h200"),
        ("v7:2x2", "write KIND:SIZE"),
        ("v5e:2x2x2", "a slice of v5e is written with 2 sizes, e.g. v5e:4x4"),
        ("v5e:\u00b2x2", "written with 2 sizes"),
        ("v5e:3x3", "v5e is offered as 1x1, 2x2, 2x4"),
        ("h200:0", "written with a number of cards"),
        ("h200:512", "h200 is offered as 1 to 256 cards"),
    ],
)
def test_a_slice_that_there_is_not(name, words):
    with pytest.raises(UserError, match=name[:3]) as told:
        topology.parse(name)
    assert words in str(told.value)


def test_the_memory_claim_is_the_count_on_paper():
    """GPT-3's shape in closed form; 16 bytes a trained scalar (weight, gradient, two moments), 2 a frozen one."""
    width, layers, vocabulary, positions = 12_288, 96, 50_257, 2_048
    scalars = (vocabulary + positions) * width + layers * (12 * width**2 + 13 * width) + 2 * width
    adapter = layers * 2 * (2 * width * gpt3.MEMORY_RANK)
    found = claim.held()
    expected = {"full": 16 * scalars, "lora": 2 * scalars + 16 * adapter, "base": 2 * scalars, "adapter": 2 * adapter}
    assert found == pytest.approx(expected, rel=1e-2)
    # The paper's own figures, where it is clear what they count.
    assert [found["lora"], found["base"]] == pytest.approx([350e9, 350e9], rel=1e-2)
    ours = {name: text for name, _, text in claim.rows(found)}
    assert ours["100 tasks: LoRA"] == "353.0 GB"
    assert ours["training: full fine-tuning"] == "2.79 TB"


def test_the_smallest_slice_is_found_with_few_compilations():
    asked, compiled = topology.parse("v5e:4x4"), []

    def search(needed, arguments=lambda one: 0):
        compiled.clear()

        def needs(one):
            compiled.append(str(one))
            return Needs(needed // one.count)

        found = slices.smallest(asked, needs(asked), arguments, needs)
        return found and str(found[0])

    whole = asked.usable * 16
    assert search(whole) == "v5e:4x4"
    assert search(whole // 8) == "v5e:2x2"  # which has four
    assert len(compiled) <= 3
    assert search(whole * 3) == "v5e:8x8"
    assert search(whole * 100) is None
    # Where the arguments are too large nothing is compiled, nor where the config cannot be divided over the slice.
    assert search(whole // 2, lambda one: whole // 2 // one.count) == "v5e:2x4"
    assert "v5e:2x2" not in compiled
    assert search(whole // 8, lambda one: None if one.count < 8 else 0) == "v5e:2x4"


@pytest.mark.usefixtures("eight_devices")
def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = make_mesh(MeshConfig(1, 8, 1))
    whole, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "fsdp", None))

    def chain(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    shapes = (
        jax.ShapeDtypeStruct((5, 64, 64), np.float32, sharding=parts),
        jax.ShapeDtypeStruct((8, 64), np.float32, sharding=NamedSharding(mesh, P("fsdp", None))),
    )
    text = jax.jit(chain, out_shardings=whole).lower(*shapes).compile().as_text()
    assert Collective("all-gather", 64 * 64 * 4, 5) in collectives(text), text


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(("before", "inside"), [(3, 0), (1, 5)])
def test_transfers_that_a_program_asks_for_count_each(before, inside):
    """jax gives all of them one channel, those before a loop and in it too."""

    def turn(_, x):
        return jnp.tanh(jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]))

    def turned(x):
        for _ in range(before):
            x = turn(None, x)
        return jax.lax.fori_loop(0, inside, turn, x)

    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])
    function = jax.jit(jax.shard_map(turned, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp")))
    text = function.lower(jax.ShapeDtypeStruct((8,), np.float32)).compile().as_text()
    assert collectives(text) == [Collective("collective-permute", 16, before + inside)]


TPU = """
HloModule step

%piece.1 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.1 = bf16[64]{0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
}
%piece.2 (p: bf16[8]) -> bf16[64] {
  ROOT %all-gather.2 = bf16[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}
%limit (s: (s32[], bf16[8])) -> pred[] {
  %n = s32[]{:T(128)} constant(32)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}
%body (s: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %f = bf16[64] fusion(%x), kind=kCustom, calls=%piece.2
  %sum = (f32[16]{0}, f32[16]{0}) all-reduce-start(%y), channel_id=8, to_apply=%add
}
ENTRY %main (a: bf16[8]) -> bf16[8] {
  %g = bf16[64] fusion(%a), kind=kCustom, calls=%piece.1
  %w = (s32[], bf16[8]) while(%t), condition=%limit, body=%body
}
"""


def test_a_transfer_in_pieces_is_one():
    """As libtpu writes them: a channel's pieces begin before a loop and go on in it; the loop's limit is a constant."""
    assert collectives(TPU) == [Collective("all-reduce", 64, 32), Collective("all-gather", 128, 1)]


@pytest.mark.usefixtures("eight_devices")
def test_a_plan_for_eight_cards(program, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "PLUGINS", ())  # with the plugin installed the plan would be no estimate
    words = [word for word in toy(tmp_path, mesh__data=1, mesh__fsdp=-1) if word.startswith("--config")]
    ended = program("plan", *words, "--topology=h200:8")
    assert ended.status == 0, ended.err
    for line in (
        "h200:8: 8 x NVIDIA H200, mesh data=1 fsdp=8 tensor=1; an estimate: no such cards are here",
        "all-gather ",
        " GiB a device: fits",
        "looking for the smallest slice that fits: compiling for h200:1 ...",
        "smallest slice of h200 that fits: h200:1, needs ",
    ):
        assert line in ended.out, ended.out
    ended = program("plan", *words, "--topology=v5e:3x3")
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    ended = program("plan", *words, "--topology=h200:3")  # 8 rows on 3 cards
    assert (ended.status, ended.err.count("\n")) == (2, 1), ended.err
    assert "batch_size 8 does not divide" in ended.err


@pytest.mark.parametrize(("count", "shape"), [(1, "1x1x1"), (8, "1x1x8"), (12, "1x2x6"), (64, "1x8x8"), (9, "1x3x3")])
def test_cards_that_are_not_here_are_compiled_for_by_their_own_compiler(monkeypatch, count, shape):
    """XLA is asked for the card that was named, in hosts of at most eight; its refusal is one line with a remedy."""
    asked = {}

    def described(name, platform, *, target_config, topology):
        asked.update(platform=platform, target_config=target_config, topology=topology)
        return SimpleNamespace(devices=list(range(count)))

    monkeypatch.setattr(cards, "has_compiler", lambda: True)
    monkeypatch.setattr(jax_topologies, "get_topology_desc", described)
    found = topology.target(topology.parse(f"h200:{count}"))
    assert (found.exact, found.absent, len(found.devices)) == (True, True, count)
    assert (asked["platform"], asked["topology"]) == ("cuda", shape)
    assert 'device_description_str: "NVIDIA H200"' in asked["target_config"]
    monkeypatch.setattr(jax_topologies, "get_topology_desc", mock.Mock(side_effect=RuntimeError("no plugin\nof 0.9")))
    with pytest.raises(UserError, match=r"cannot compile for h100:2 \(no plugin\); install the plugin of this jax"):
        topology.target(topology.parse("h100:2"))


def test_a_plan_traces_what_the_cards_would_run():
    """cuDNN's attention inside, though this machine has a CPU alone; afterwards what a CPU runs, again."""
    card = SimpleNamespace(platform="gpu", compute_capability="9.0")
    shapes = [jax.ShapeDtypeStruct((2, 8, heads, 64), jnp.bfloat16) for heads in (4, 2, 2)]

    def chosen():
        traced = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, None, causal=True, kernel=kernel()))(*shapes)
        return "cudnn" if "dot_product_attention_fwd" in str(traced) else "plain"

    kernel = lambda: pick_implementation("auto", jnp.bfloat16, 64, masked=False, cached=False)  # noqa: E731
    asked = topology.parse("h200:1")
    with topology.planning_for(asked, topology.Target([card], True, "", absent=True)):
        assert chosen() == "cudnn"
    with topology.planning_for(asked, topology.Target([card], False, "")):
        assert chosen() == "plain"
    assert chosen() == "plain"


def test_flops_of_a_step_with_options_of_its_compiler():
    """Steps for cards have such options, and a jitted step with options cannot be traced inside another program."""
    step = jax.jit(lambda x: x @ x, compiler_options={"xla_embed_ir_in_executable": False})
    assert product_flops(step, jax.ShapeDtypeStruct((4, 4), jnp.float32)) == 2 * 4**3


@pytest.mark.parametrize(("compiler", "platforms"), [(True, "cuda,cpu"), (False, "cpu")])
def test_a_plan_needs_no_card_where_jax_platforms_names_one(monkeypatch, compiler, platforms):
    monkeypatch.setenv("XLA_FLAGS", topology.SIMULATED + "=8")
    for name in cards.UNCHECKED:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(cards, "has_compiler", lambda: compiler)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cuda")
    try:
        topology.prepare(topology.parse("h200:1"))
        assert jax.config.jax_platforms == platforms
    finally:
        jax.config.update("jax_platforms", before)


@pytest.mark.parametrize("given", ["abc", "nan", "inf", "0", "-1"])
def test_a_share_of_memory_that_is_none_is_named(monkeypatch, given):
    """Before anything is compiled: XLA's plugin does not start with some of them, and says another thing."""
    monkeypatch.setenv(topology.FRACTION, given)
    with pytest.raises(UserError, match=f"{topology.FRACTION}={given} is no share of a card's memory"):
        topology.prepare(topology.parse("h200:1"))
    assert topology.parse("v5e:1x1").usable


@pytest.mark.parametrize(("said", "asked"), [("No supported config found for HLO: %gemm", 2), ("another fault", 1)])
def test_products_that_xla_cannot_tile_are_compiled_without_triton(said, asked):
    """As of rows that are no multiple of 8, where no card is here to time tiles; other errors are our own faults."""
    program, options = jax.jit(jnp.sum).lower(np.ones(3)).compile(), []

    class Lowered:
        def compile(self, given=None):
            options.append(given)
            if not given:
                raise jax.errors.JaxRuntimeError(f"INTERNAL: Failed to get configs: {said}")
            return program

    lowered = Lowered()
    parts = dict.fromkeys(("abstract_state", "abstract_frozen", "abstract_batch"))
    one = SimpleNamespace(compile=lowered.compile, step=SimpleNamespace(lower=lambda *_: lowered), **parts)
    with contextlib.nullcontext() if asked == 2 else pytest.raises(jax.errors.JaxRuntimeError, match=said):
        assert needs(one).needed
    assert options == [None, {"xla_gpu_enable_triton_gemm": False}][:asked]
