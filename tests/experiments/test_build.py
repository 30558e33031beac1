"""From config to run on shapes: what is loaded is what was planned, and 7B is planned without weights."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.cli import complete_file
from experiments.config.plain import to_plain
from experiments.config.schema import unpack_run
from experiments.session.build import build
from experiments.session.trial_group import TrialGroup
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import flatten
from lowrank_jax.core.trees import combine, nbytes
from lowrank_jax.interop import partial
from lowrank_jax.layouts import base as layouts
from lowrank_jax.layouts import unstacked
from lowrank_jax.sharding.collectives import collectives


def config_of(toy, name="configs/mora_uuid.py", **changes):
    """The unpacked config of a toy run, with adapters at all sites."""
    config = complete_file(name)
    for word in toy("unused", **{"adapter__targets": None, **changes}):
        key, _, value = word.removeprefix("--").partition("=")
        if key.startswith("config."):
            path, _, last = key.removeprefix("config.").rpartition(".")
            node = config
            for section in filter(None, path.split(".")):
                node = node[section]
            with config.unlocked():
                node[last] = () if value == "()" else type(node[last])(value) if node[last] is not None else int(value)
    return unpack_run(to_plain(config))


# ---- shapes and weights ----


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("argument", "unroll"), [("method=lora", 1), ("method=mora", 1), ("method=fft", 1), ("method=lora", 2)]
)
def test_what_is_loaded_is_what_was_planned(toy, argument, unroll):
    """Shapes, dtypes and shardings of every leaf, with weights split over fsdp and tensor; the step takes them."""
    mesh = dict.fromkeys(("mesh__data", "mesh__fsdp", "mesh__tensor"), 2)
    config = config_of(
        toy, f"configs/mora_uuid.py:{argument}", base__dtype="bfloat16", base__scan_unroll=unroll, **mesh
    )
    experiment = build(config)
    state, frozen, _ = experiment.load()

    def looks(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

    assert looks(state) == looks(experiment.abstract_state)
    assert looks(frozen) == looks(experiment.abstract_frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state.trainable)} == {"float32"}
    kernel = combine(state.trainable, frozen)["params"]["layers"]["mlp"]["gate"]["kernel"]
    if unroll == 1:
        assert kernel.sharding.shard_shape((2, 32, 48)) == (2, 16, 24)
    else:  # an array a layer
        assert [layer.sharding.shard_shape((32, 48)) for layer in kernel.each] == [(16, 24)] * 2
    assert {name: x.shape for name, x in experiment.abstract_batch.items()} == {"tokens": (8, 74), "weights": (8, 74)}


def loop_config(toy, **layout):
    return config_of(toy, "configs/mora_uuid.py:method=lora,rank=3", optimizer__learning_rate=1e-2, **layout)


def three_steps(config):
    """(losses, scores, variables, bytes of the frozen leaves, fingerprint) of a run's first steps on one device."""
    experiment = build(config, devices=jax.devices()[:1])
    state, frozen, fingerprint = experiment.load()
    size, batches, losses = nbytes(frozen), experiment.batches(), []
    for _ in range(3):
        state, metrics = experiment.step(state, frozen, experiment.place(next(batches)))
        losses.append(float(metrics["loss"]))
    scores = experiment.evaluators()[0].evaluate(state, frozen)[0]
    return losses, scores, experiment.variables(state, frozen), size, fingerprint


@pytest.fixture(scope="module")
def loop(toy):
    """`three_steps` of a run whose layers are a loop."""
    return three_steps(loop_config(toy))


@pytest.mark.parametrize("fused", [True, False])
def test_layers_apart_are_the_run_of_a_loop(toy, fused, loop):
    """The same losses, scores, adapters and exports: the layout of the frozen kernels changes nothing else."""
    apart = three_steps(loop_config(toy, base__scan_unroll=2, base__fused=fused))
    assert apart[0] == pytest.approx(loop[0], rel=1e-5)
    assert apart[1] == loop[1]
    assert apart[3:] == loop[3:]
    ours, theirs = flatten(apart[2]), flatten(loop[2])
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[path], atol=1e-5, err_msg=path)


def test_trials_share_layers_apart(toy, loop):
    """Two rates in one program, layers unrolled: the second as its own run with a loop has it."""
    config = loop_config(toy, base__scan_unroll=2, base__fused=True)
    optimizers = [dataclasses.replace(config.optimizer, learning_rate=rate) for rate in (1e-3, 1e-2)]
    group = TrialGroup([dataclasses.replace(config, optimizer=one) for one in optimizers], seq_len=None)
    step = group.step_function(group.compile())
    state, frozen, _ = group.load()
    batches, got = group.batches(), []
    for _ in range(3):
        state, metrics = step(state, frozen, group.place(next(batches)))
        got.append(np.asarray(metrics["loss"]))
    np.testing.assert_allclose([row[1] for row in got], loop[0], rtol=1e-5)
    assert not np.allclose([row[0] for row in got], loop[0], rtol=1e-5)


@pytest.mark.parametrize("ahead", [True, False])
def test_what_load_runs_is_compiled_beside_the_step(toy, caplog, ahead):
    config = config_of(
        toy, "configs/mora_uuid.py:method=lora,rank=3", base__name="toy-llama", base__random_init=True,
        base__scan_unroll=2,
    )  # fmt: skip
    experiment = build(config)
    partial._draw_program.cache_clear()  # toy bases of other tests
    unstacked._split.cache_clear()
    layouts.placed.cache_clear()
    experiment.compile(ahead=ahead)
    with jax.log_compiles():
        experiment.load()
    for name in ("jit(draw)", "jit(create)", "jit(init)", "jit(split)"):
        assert (f"Finished XLA compilation of {name}" in caplog.text) is not ahead


def test_methods_share_the_base_and_seeds_do_not(toy):
    prints = {}
    for argument, seed in (("method=lora", 0), ("method=mora", 0), ("method=mora", 1)):
        experiment = build(config_of(toy, f"configs/mora_uuid.py:{argument}", seed=seed))
        prints[argument, seed] = experiment.load()[2]
    assert prints["method=lora", 0] == prints["method=mora", 0] != prints["method=mora", 1]


def test_the_stream_is_the_same_for_every_method_and_cut_into_shares(toy, monkeypatch):
    streams = [build(config_of(toy, f"configs/mora_uuid.py:method={method}")).batches() for method in ("lora", "mora")]
    lora, mora = (next(stream)["tokens"] for stream in streams)
    np.testing.assert_array_equal(lora, mora)
    second = {"process_index": 1, "process_count": 2}
    monkeypatch.setattr("experiments.session.experiment.batch_share", lambda _mesh: second)
    share = next(build(config_of(toy)).batches())["tokens"]
    np.testing.assert_array_equal(share, lora[4:])


@pytest.mark.usefixtures("eight_devices")
def test_held_out_loss_equals_a_plain_sum(toy, tmp_path):
    """Over a mesh of 8 and a held-out file that fills no batch, against one pass of the model over the rows."""
    import jax.numpy as jnp

    rows = [{"text": "the cat sat on the mat " * n} for n in (1, 2, 3, 4, 5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = dict(task__path=str(tmp_path / "rows.jsonl"), task__seq_len=48, task__pairs=None, task__eval_pairs=None)
    config = config_of(toy, "configs/mora_uuid.py:data=text", train__accumulate=2, train__batch_size=16, **changes)
    config = dataclasses.replace(config, task=dataclasses.replace(config.task, validation_path=config.task.path))
    experiment = build(config)
    state, frozen, _ = experiment.load()
    got = experiment.evaluators()[0].evaluate(state, frozen)[0]

    features = [experiment.task.features(row) for row in experiment.task.validation_source()]
    tokens, weights = (np.stack([f[name] for f in features]) for name in ("tokens", "weights"))
    variables = jax.device_get(combine(state.trainable, frozen))
    logp = jax.nn.log_softmax(experiment.apply_fn(variables, jnp.asarray(tokens)))
    losses = -np.take_along_axis(np.asarray(logp)[:, :-1], tokens[:, 1:, None], -1)[..., 0] * weights[:, 1:]
    assert got["loss"] == pytest.approx(losses.sum() / weights.sum(), rel=1e-5)


def test_a_task_without_held_out_data_has_no_scores(toy, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "abc"}\n')
    changes = dict(task__path=str(tmp_path / "rows.jsonl"), task__pairs=None, task__eval_pairs=None)
    assert build(config_of(toy, "configs/mora_uuid.py:data=text", **changes)).evaluators() == []


# ---- LLaMA-2 7B, without its weights ----


def per_device(tree) -> int:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
    ("argument", "trainable"),
    [
        ("method=lora", 19_988_480),
        ("method=mora", 20_014_592),
        ("method=mora,compression=type6", 20_014_592),  # its squares, 256 and 348, are even already
        ("method=fft", 6_738_415_616),
    ],
)
def test_llama2_7b_on_shapes(argument, trainable):
    """The paper's own setting over 8 devices along fsdp: parameters as in the paper, an eighth of the base on each."""
    config = complete_file(f"configs/mora_uuid.py:scale=paper,{argument}")
    config.base.name, config.base.random_init, config.train.batch_size = "llama2-7b", True, 8
    experiment = build(unpack_run(to_plain(config)), seq_len=96)
    total = 6_738_415_616
    full = argument == "method=fft"
    assert experiment.parameters == {"trainable": trainable, "frozen": 0 if full else total}
    assert f"{trainable:,} trainable parameters" in str(experiment.plan) or full
    if full:
        assert per_device(experiment.abstract_state) == pytest.approx(12 * total / 8, rel=1e-3)
        return
    assert nbytes(experiment.abstract_frozen["params"]) == 2 * total
    assert per_device(experiment.abstract_frozen) == pytest.approx(2 * total / 8, rel=1e-3)
    assert set(flatten(experiment.abstract_state.trainable)) == {
        path for path in flatten(experiment.abstract_state.trainable) if path.startswith("adapters/layers/")
    }


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(("method", "fsdp", "tensor"), [("lora", 8, 1), ("mora", 4, 2), ("fft", 8, 1), ("fft", 4, 2)])
def test_the_compiled_7b_step_holds_an_eighth_of_the_base(method, fsdp, tensor):
    """The compiler's own count, on simulated devices: arguments are the shards, and no gathered base among the rest.

    Nor is a stack of layers gathered, or its gradient: the largest transfer is the embedding's table, or one layer's
    kernel.
    """
    config = complete_file(f"configs/mora_uuid.py:scale=paper,method={method}")
    config.base.name, config.base.random_init, config.train.batch_size = "llama2-7b", True, 8
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, fsdp, tensor
    experiment = build(unpack_run(to_plain(config)), seq_len=32)
    compiled = experiment.compile()
    needed = compiled.memory_analysis()
    arguments = per_device(experiment.abstract_frozen) + per_device(experiment.abstract_state)
    assert needed.argument_size_in_bytes == pytest.approx(arguments, rel=0.01)
    width = 4 if method == "fft" else 2  # trained leaves are float32
    assert needed.temp_size_in_bytes < width * 6_738_415_616 / 2
    assert needed.output_size_in_bytes < per_device(experiment.abstract_state) * 1.01
    moved = collectives(compiled.as_text())
    table, stack = 32_000 * 4_096, 32 * 4_096 * 4_096  # of one matrix, query's for example
    assert max(one.nbytes for one in moved) <= 4 * table < 2 * stack, moved[:3]
    kernel = 2 * 4_096 * 11_008 // tensor  # the CPU's compiler gathers bfloat16 as it is, or as float32
    assert sum(one.times for one in moved if one.kind == "all-gather" and one.nbytes in (kernel, 2 * kernel)) >= 3 * 32


def test_no_tokenizer_no_task(toy):
    config = config_of(toy)
    assert build(config, seq_len=16).task is None
    with pytest.raises(UserError, match=r"config\.seed is -1"):
        build(dataclasses.replace(config, seed=-1))


def test_the_last_two_layers_are_a_segment_of_their_own(toy, tmp_path, four_layers):
    """Trained and saved separately; the exported model has the whole stack."""
    from experiments.session.export import export_run
    from lowrank_jax.bases.base import BaseConfig, load_base
    from lowrank_jax.layouts.segments import Segments

    config = config_of(toy, base__name=four_layers, adapter__method="none", trainable="ft-top2", mesh__fsdp=2)
    base = dataclasses.replace(config.base, random_init=False)
    export = dataclasses.replace(config.export, merged="float32")
    experiment = build(dataclasses.replace(config, base=base, export=export))
    state, frozen, fingerprint = experiment.load()
    (segment,) = state.trainable["params"]
    assert segment == "layers_2_3"
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state.trainable)} == {2}
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, experiment.abstract_state)
    tokens, weights = (experiment.abstract_batch[name] for name in ("tokens", "weights"))
    batch = {"tokens": np.random.default_rng(0).integers(0, 256, tokens.shape).astype(tokens.dtype)}
    batch |= {"weights": np.ones(weights.shape, weights.dtype)}
    before = jax.device_get(combine(state.trainable, frozen)["params"])
    for _ in range(2):  # the first has the warm-up's rate, 0
        state, metrics = experiment.step(state, frozen, experiment.place(batch))
    assert metrics["finite"]
    whole = Segments().undo(jax.device_get(combine(state.trainable, frozen)["params"]))
    kernels = {p: x for p, x in flatten(whole).items() if p.endswith("mlp/up/kernel")}
    for path, leaf in kernels.items():
        moved = np.abs(leaf - flatten(Segments().undo(before))[path]).max((1, 2)) > 0
        np.testing.assert_array_equal(moved, [False, False, True, True])
    export_run(tmp_path, experiment, state, frozen, fingerprint)
    again = load_base(BaseConfig(str(tmp_path / "model"))).params
    for path, leaf in flatten(whole).items():
        np.testing.assert_array_equal(flatten(again)[path], leaf)
    from lowrank_jax.checkpoints.adapters_only import load_adapter
    from lowrank_jax.layouts.segments import overlay

    kept, _, _ = load_adapter(tmp_path / "adapter", fingerprint)
    laid = flatten(overlay(Segments().undo(before), kept["params"]))
    for path, leaf in flatten(whole).items():
        np.testing.assert_array_equal(laid[path], leaf)


def test_a_run_of_several_families(toy):
    """config.adapters are sections like config.adapter; all of their sites are trained."""
    config = complete_file("configs/mora_uuid.py")
    plain = to_plain(config)
    plain |= {"base": {"name": "toy-llama", "random_init": True}, "adapters": [{"method": "houlsby", "rank": 3}]}
    plain["adapter"] = {"method": "lora", "rank": 2, "targets": ["query", "attention/out"]}
    experiment = build(unpack_run(plain))
    assert experiment.plan.methods == "lora and houlsby"
    assert experiment.parameters["trainable"] == experiment.plan.parameters
    assert experiment.compile() is not None


def test_a_fused_base_trains_as_the_plain_one(toy):
    """`base.fused` over two devices, with MoRA (LoRA's is above, unrolled): the same losses and adapters.

    Every kernel is back under its own name.
    """
    file = "configs/mora_uuid.py:method=mora"
    plain, fused = (build(config_of(toy, file, mesh__fsdp=2, base__fused=on)) for on in (False, True))
    runs = {}
    for name, experiment in (("plain", plain), ("fused", fused)):
        state, frozen, fingerprint = experiment.load()
        assert jax.tree.map(lambda x: x.shape, frozen) == jax.tree.map(lambda x: x.shape, experiment.abstract_frozen)
        stream, losses = experiment.batches(), []
        for _ in range(3):
            state, metrics = experiment.step(state, frozen, experiment.place(next(stream)))
            losses.append(float(metrics["loss"]))
        runs[name] = losses, experiment.variables(state, frozen), fingerprint
    assert runs["plain"][2] == runs["fused"][2]
    np.testing.assert_allclose(runs["fused"][0], runs["plain"][0], rtol=1e-5)
    want, got = (flatten(runs[name][1]) for name in ("plain", "fused"))
    assert want.keys() == got.keys()
    assert "params/layers/attention/qkv/kernel" in {f"params/{path}" for path in flatten(frozen["params"])}
    for path, leaf in want.items():
        np.testing.assert_allclose(got[path], leaf, atol=2e-5, err_msg=path)
