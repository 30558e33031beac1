"""Runs with restarts from their command line: resumed bit-equal, compiled once, exported, loaded, or refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments.generation.model import of_run
from experiments.session import experiment
from lowrank_jax.bases.base import BaseConfig, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.train import loop

# LoRA at one kernel and MoRA at another, merged after steps 2 and 4 of 6; the loss of held-out rows, of other bytes,
# rises.
RESTARTS = {
    "config": "configs/mora_uuid.py:data=text,method=lora", "task__pairs": None, "task__eval_pairs": None,
    "task__seq_len": 24, "task__packed": True, "train__eval_steps": "()", "train__eval_every": 1,
    "adapter__targets": '("query",)', "adapter__dropout": 0.2, "optimizer__learning_rate": 0.02,
    "adapters": '[{"method":"mora","rank":4,"targets":["down"],"mora":{"compression":"type1"}}]',
    "evals": '{"best":{"type":"likelihood","weights":"best"}}',
    "trainable": '[["adapters/.*",true],["params/(embed|final_norm)/.*",true],[".*",false]]',
    "restart__every": 2, "restart__warmup_steps": 1, "restart__schedule": "restart", "restart__reset": "random",
    "restart__prune": 0.5, "restart__groups": "code", "checkpoint__every": 1,
}  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    paths = {"task__path": tmp_path / "rows.jsonl", "task__validation_path": tmp_path / "held.jsonl"}
    for path, text in zip(paths.values(), ("{} times {} is {}", "QUITE OTHER BYTES"), strict=True):
        path.write_text("".join(json.dumps({"text": text.format(n, n, n * n)}) + "\n" for n in range(40)))
    return paths


def rewound(folder, to, name):
    """A copy of a finished run as one that was killed after step `to` leaves it."""
    copy = folder.with_name(name)
    shutil.copytree(folder, copy)
    for step in (copy / "checkpoints").iterdir():
        if step.name.isdigit() and int(step.name) > to:
            shutil.rmtree(step)
    (copy / "result.json").unlink()


def test_resumed_at_a_merge_after_a_merge(run, saved, records, rows, monkeypatch):
    """Ends bit-equal to one that never stopped; no merge compiles anything; best weights keep their own base."""
    place, compiled, seen = experiment.Experiment.place, [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    monkeypatch.setattr(
        experiment.Experiment, "place", lambda self, batch: (seen.append(len(compiled)), place(self, batch))[1]
    )
    fit, around = loop.fit, []

    def watched(job):  # the held-out loss right before and right after each merge
        def merge(state, frozen):
            (before,) = job.evaluators[0].evaluate(state, frozen)
            state, frozen = compiled_merge(state, frozen)
            (after,) = job.evaluators[0].evaluate(state, frozen)
            around.append((before["loss"], after["loss"]))
            return state, frozen

        compiled_merge, job.merge = job.merge, merge
        return fit(job)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "fit", watched)
        whole = run(**RESTARTS, **rows, export__merged="float32", export__spectrum=True)
    assert whole.status == 0, whole.err
    assert seen[0] > 0
    assert len(set(seen[2:6])) == 1, seen  # from step 3 on, which the first merge precedes
    assert len(around) == 2
    for before, after in around:
        assert after == pytest.approx(before, rel=1e-5)
    assert around[0][0] != around[1][0]
    assert f"{whole.folder / 'model'} is the whole model" in whole.out
    assert not (whole.folder / "adapter").exists()

    result = json.loads((whole.folder / "result.json").read_text())
    losses = {one["step"]: one["loss"] for one in result["evaluations"] if "loss" in one}
    best = result["best"]["step"]
    assert best <= 2, losses  # before a merge
    assert result["evaluations"][-1]["best/loss"] == pytest.approx(losses[best], rel=1e-6)
    assert result["labels"]["method"] == "relora"
    counts = result["update_spectrum"]["counts"]
    assert counts.keys() == {"query", "key", "value", "out", "gate", "up", "down"}

    merged = load_base(BaseConfig(str(whole.folder / "model")))
    shutil.rmtree(whole.folder / "model")
    rewound(whole.folder, 4, "again")  # after the first merge, and right at the second one
    seen.clear()
    again = run(**RESTARTS, **rows, name="again")
    assert again.status == 0, again.err
    assert len(seen) == 2
    assert saved(again.folder, 6) == saved(whole.folder, 6)
    assert records(again.folder) == records(whole.folder)

    with pytest.raises(UserError, match=r"only a checkpoint, .*; leave it out, or train with export.merged=float32"):
        of_run(str(whole.folder), None, "merged")
    loaded = of_run(str(whole.folder), None)  # of the checkpoint, as there is neither an adapter nor a model
    assert loaded.made_of["step"] == best
    halved = of_run(str(whole.folder), "bfloat16").variables["params"]["layers"]["attention"]["query"]["kernel"]
    assert halved.dtype == "bfloat16"  # the checkpoint's base, which merges have changed, is float32
    query = {name: loaded.variables[name]["layers"]["attention"]["query"] for name in ("params", "adapters")}
    update = 4.0 * np.einsum("ldr,lrn->ldn", *(query["adapters"][name] for name in "ab"))  # alpha 16, r 4
    whole_kernel = merged.params["layers"]["attention"]["query"]["kernel"]
    np.testing.assert_allclose(query["params"]["kernel"] + update, whole_kernel, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base__quantize": "int8"}, "base.quantize holds layers/attention/query as codes"),
        ({"adapter__method": "prefix"}, "restart.every merges, and prefix at layers/attention/key"),
        ({"trainable": "full", "adapter__method": "none"}, "restart.every is set and there are no adapters to merge"),
        ({"restart__every": 6}, "restart.every is 6 and the run has 6 steps"),
        ({"adapter__mora__compression": "decoupling"}, "adapter.mora.compression is 'decoupling'"),
    ],
)
def test_what_cannot_restart_is_refused_before_any_work(run, changes, words):
    settings = {"restart__every": 2, "restart__warmup_steps": 0, "restart__schedule": "none", **changes}
    ended = run(**settings)
    assert ended.status == 2
    assert words in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not ended.folder.exists()


def test_trials_share_a_base_that_no_merge_may_change(program, toy, tmp_path):
    words = [word for word in toy(tmp_path, restart__every=2, restart__warmup_steps=0) if "--name" not in word]
    for more in (["--seeds=0,1"], ["--seeds=0"]):
        ended = program("trials", *words, *more, "--config.base.random_init=false", "--config.base.name=pico-llama")
        assert ended.status == 2
        assert len(ended.err.strip().splitlines()) == 1
    assert "restart.every merges adapters into the base, which the trials of a program share" in ended.err
