"""The real loop at toy size: what a run leaves behind, how it resumes, how it stops, and a user's own data."""

import dataclasses
import functools
import json
import os
import re
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.session import experiment
from lowrank_jax.core.errors import UserError

# ---- what a finished run leaves ----


def rewind(folder, step):
    """The folder as a kill after the checkpoint of `step` leaves it."""
    (folder / "result.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        if int(path.name) > step:
            shutil.rmtree(path)


def test_a_run_leaves_its_records(straight, records):
    ended = straight()
    written = {path.name for path in ended.folder.iterdir()}
    assert written >= {"config.json", "metrics.jsonl", "result.json", "checkpoints", "adapter", "curves.png"}
    assert not {name for name in written if name.endswith(".tmp")}
    assert {path.name for path in (ended.folder / "checkpoints").iterdir()} == {"2", "4", "6"}

    lines = records(ended.folder)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0].keys() == {"step", "loss", "accuracy", "grad_norm", "learning_rate", "tokens"}
    assert [line["learning_rate"] for line in steps] == pytest.approx([0, 3e-3, 2.4e-3, 1.8e-3, 1.2e-3, 6e-4])
    assert all(line["tokens"] == 8 * 36 for line in steps)
    assert steps[-1]["loss"] < steps[1]["loss"]
    raw = [json.loads(line) for line in (ended.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["tokens_per_second"] > 0 for line in raw if "loss" in line)
    assert [line["step"] for line in lines if "eval/char_accuracy" in line] == [2, 6]

    result = json.loads((ended.folder / "result.json").read_text())
    config = json.loads((ended.folder / "config.json").read_text())
    assert result["status"] == "finished"
    assert config.pop("place") == "."  # of its checkpoints; no part of the config
    assert (result["name"], result["config"], result["labels"]) == ("run", config, config["labels"])
    assert config["adapter"]["rank"] == 4
    assert result["parameters"]["frozen"] == 23_808
    assert f"{result['parameters']['trainable']:,} trainable" in ended.out
    assert result["losses"] == [[line["step"], round(line["loss"], 6)] for line in steps]
    assert [evaluation["step"] for evaluation in result["evaluations"]] == [2, 6]
    assert {"char_accuracy", "exact_match"} < result["evaluations"][0].keys()
    assert 0 < result["train_seconds"] < result["wall_seconds"]
    assert result["compile_seconds"] > 0
    assert result["environment"]["hardware"]["devices"] == {"cpu": 2}
    assert result["base"]["name"] == "toy-llama"
    kind, whole, sampled = result["base"]["fingerprint"].split(":")
    assert (kind, len(whole), len(sampled)) == ("2", 64, 64)
    assert "run: finished; training loss" in ended.out
    assert re.findall("^(compiling the step|step needs) ", ended.out, re.M) == ["compiling the step", "step needs"]


def test_the_figure_of_a_run(straight, curves, tmp_path):
    from PIL import Image

    from experiments.tables import figures

    result = json.loads((straight().folder / "result.json").read_text())
    drawn = Image.open(figures.draw_run(result, tmp_path / "drawn.png"))
    assert min(drawn.size) > 100
    assert len(drawn.getcolors()) > 3  # ground, axes, the loss and the scores


def test_the_exported_adapter_and_the_merged_model_answer_as_the_trained_state(run, monkeypatch):
    """The adapter, read from its file, on a base that is loaded again; the merged model, through its files."""
    from experiments.session import export
    from lowrank_jax import adapters
    from lowrank_jax.bases.base import BaseConfig, load_base
    from lowrank_jax.checkpoints.adapters_only import load_adapter
    from lowrank_jax.core.trees import combine

    kept = {}

    def spy(folder, experiment, state, frozen, fingerprint):
        kept.update(experiment=experiment, variables=combine(state.trainable, frozen), fingerprint=fingerprint)
        return real(folder, experiment, state, frozen, fingerprint)

    real = export.export_run
    monkeypatch.setattr(export, "export_run", spy)
    ended = run(adapter__targets=None, export__merged="float32", optimizer__learning_rate=0.1)
    assert ended.status == 0, ended.err
    tokens = jax.random.randint(jax.random.key(0), (2, 24), 0, 259)
    experiment = kept["experiment"]
    variables = jax.device_get(kept["variables"])
    wanted = np.asarray(jax.jit(experiment.apply_fn)(variables, tokens))
    plain = np.asarray(jax.jit(experiment.base.model.apply)({"params": variables["params"]}, tokens))
    assert np.abs(wanted - plain).max() > 0.1, "the adapter must have learnt something"

    key = jax.random.split(jax.random.PRNGKey(0))[0]  # as the run drew its base
    base = load_base(BaseConfig("toy-llama", random_init=True), key=key)
    trainable, scales, description = load_adapter(ended.folder / "adapter", base.fingerprint)
    config = adapters.AdapterConfig(
        **description["config"] | {"mora": adapters.MoraConfig(**description["config"]["mora"])}
    )
    apply_fn = adapters.attach(base.model, adapters.make_plan(base.params, config))
    got = jax.jit(apply_fn)({"params": base.params, **trainable, "scales": scales}, tokens)
    np.testing.assert_allclose(got, wanted, atol=1e-4)

    merged = load_base(BaseConfig(str(ended.folder / "model")))
    np.testing.assert_allclose(jax.jit(merged.model.apply)({"params": merged.params}, tokens), wanted, atol=1e-4)
    assert merged.tokenizer.encode("ab") == [97, 98]
    with pytest.raises(UserError, match="trained on toy-llama"):
        load_adapter(ended.folder / "adapter", merged.fingerprint)


def test_full_fine_tuning_keeps_a_model_and_no_adapter(run):
    ended = run(config="configs/mora_uuid.py:method=fft", export__merged="bfloat16", adapter__rank=None)
    assert ended.status == 0, ended.err
    assert (ended.folder / "model" / "config.json").is_file()
    assert not (ended.folder / "adapter").exists()
    result = json.loads((ended.folder / "result.json").read_text())
    assert result["parameters"] == {"trainable": 23_808, "frozen": 0}


def test_an_offline_wandb_run_holds_the_config(run, monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    ended = run(tracking__wandb="auto", tracking__group="a-group-of-its-own", tracking__tags="('my-tag',)")
    assert ended.status == 0, ended.err
    (folder,) = (ended.folder / "wandb").glob("offline-run-*")  # what README.md tells `wandb sync` to take
    (written,) = folder.glob("*.wandb")
    # wandb's own process writes the file, on a loaded machine also after the run has ended.
    last = time.monotonic() + 60
    while b"finished" not in (content := written.read_bytes()) and time.monotonic() < last:
        time.sleep(0.05)
    for words in (b"a-group-of-its-own", b"toy-llama", b"tokens_per_second", b"eval/char_accuracy", b"finished"):
        assert words in content, (words, ended.err)
    for tag in (b"my-tag", b"rank 4"):  # the user's own and the run's
        assert tag in content, tag


# ---- going on ----


def test_stop_and_resume_is_bit_equal(run, saved, records):
    """A SIGTERM between two checkpoints saves one, from which the run goes on; test_glue_run stops by train.stop_at.

    With dropout and accumulation: keys and micro-batches must go on too. A resume without them is bit-equal after a
    damaged checkpoint and after a full disk, below.
    """
    changes = dict(adapter__dropout=0.2, train__accumulate=2, train__batch_size=16, train__eval_steps="()")
    straight = run(name="straight", **changes)
    assert straight.status == 0, straight.err
    place, batches = experiment.Experiment.place, []

    def stopping(self, batch):
        batches.append(batch["tokens"].tobytes())
        if len(batches) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return place(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Experiment, "place", stopping)
        told = run(**changes)
        assert told.status == 130
        assert told.out.endswith("run: interrupted; stopped by a signal after step 3; run it again to resume\n")
        assert "Traceback" not in told.err
        assert json.loads((told.folder / "result.json").read_text())["status"] == "interrupted"
        rest = run(**changes)
        assert rest.status == 0, rest.err
    assert "\nresuming after step 3 of 6\n" in rest.out
    assert len(batches) == len(set(batches)) == 6  # else a resume that repeated or skipped one could be equal too
    assert saved(rest.folder, 6) == saved(straight.folder, 6)
    assert [line for line in records(rest.folder) if "loss" in line] == [
        line for line in records(straight.folder) if "loss" in line
    ]
    results = [json.loads((folder / "result.json").read_text()) for folder in (rest.folder, straight.folder)]
    assert results[0]["losses"] == results[1]["losses"]
    assert results[0]["evaluations"][-1] == results[1]["evaluations"][-1]


def test_a_signal_ends_an_evaluation_which_is_made_when_the_run_goes_on(run, straight, saved, records):
    """Of one in the middle and of the last one: the state is saved at once, and in the end nothing differs."""
    whole, evaluators, begun, ended = straight("whole"), experiment.Experiment.evaluators, [], []

    def interrupted(self):
        def wrapped(evaluate, *arguments):
            begun.append(1)
            if len(begun) in (1, 3):
                os.kill(os.getpid(), signal.SIGTERM)
            ended.append(evaluate(*arguments))
            return ended[-1]

        return [dataclasses.replace(one, evaluate=functools.partial(wrapped, one.evaluate)) for one in evaluators(self)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Experiment, "evaluators", interrupted)
        for step in (2, 6):
            told = run(checkpoint__every=4)
            assert told.status == 130, told.err
            assert f"stopped by a signal after step {step}; run it again to resume" in told.out
        rest = run(checkpoint__every=4)
    assert rest.status == 0, rest.err
    assert (len(begun), len(ended)) == (4, 2)
    assert saved(rest.folder, 6) == saved(whole.folder, 6)
    assert records(rest.folder) == records(whole.folder)


def test_resume_on_another_mesh(run, straight, records, monkeypatch, eight_devices):
    """Begun by rows on two devices, ended with weights split over four."""
    whole, half = straight("whole"), straight()
    rewind(half.folder, 4)
    for name in ("devices", "local_devices"):
        every = getattr(jax, name)()[:4]
        monkeypatch.setattr(jax, name, lambda *_, every=every: every)
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda: 4)
    moved = run(mesh__data=1, mesh__fsdp=2, mesh__tensor=2)
    assert moved.status == 0, moved.err
    assert "on 4 cpu device(s)" in moved.out
    ours, theirs = ([line["loss"] for line in records(r.folder) if "loss" in line] for r in (moved, whole))
    assert ours[:4] == theirs[:4]
    np.testing.assert_allclose(ours[4:], theirs[4:], rtol=1e-5)
    assert len(ours) == 6


def test_a_kill_between_the_last_checkpoint_and_the_record(run, straight, records):
    ended = straight()
    before = json.loads((ended.folder / "result.json").read_text())
    (ended.folder / "result.json").unlink()
    again = run()
    assert again.status == 0, again.err
    after = json.loads((ended.folder / "result.json").read_text())
    for key in ("status", "losses", "evaluations", "train_seconds"):
        assert after[key] == before[key], key
    assert len(records(ended.folder)) == 8


# ---- names ----


def test_a_finished_run_says_so(run, straight):
    ended = straight()
    stamp = (ended.folder / "metrics.jsonl").stat().st_mtime_ns
    again = run(tracking__project="another", checkpoint__keep=3)  # bookkeeping: still the same run
    assert (again.status, again.err) == (0, "")
    assert again.out.startswith("run: finished already; training loss ")
    assert again.out.count("\n") == 1
    assert (ended.folder / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_another_config_is_refused_and_fresh_starts_again(run, straight):
    first = straight()
    refused = run(optimizer__learning_rate=0.5, seed=3)
    assert refused.status == 2
    assert "has a run of another config (optimizer.learning_rate: 0.003 -> 0.5; seed: 0 -> 3)" in refused.err
    assert "--fresh" in refused.err
    assert json.loads((first.folder / "config.json").read_text())["seed"] == 0
    fresh = run("--fresh", optimizer__learning_rate=0.5, seed=3)
    assert fresh.status == 0, fresh.err
    assert {path.name for path in (fresh.folder / "checkpoints").iterdir()} == {"6"}
    assert json.loads((fresh.folder / "result.json").read_text())["config"]["seed"] == 3


def test_a_fresh_run_that_cannot_start_costs_no_earlier_run(run, straight):
    first = straight()
    broken = run("--fresh", train__batch_size=9)
    assert broken.status == 2
    assert json.loads((first.folder / "result.json").read_text())["status"] == "finished"


def test_a_run_that_cannot_start_leaves_no_folder(run):
    ended = run(train__batch_size=9)
    assert ended.status == 2
    assert not ended.folder.exists()


def test_half_written_folders(run, tmp_path):
    """Left by a kill during the first write: reused. Another program's, or unreadable: refused; --fresh helps."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.123.tmp").write_text('{"adap')
    assert run().status == 0
    (tmp_path / "run" / "config.json").write_text('{"adap')
    torn = run()
    assert torn.status == 2
    assert "--fresh" in torn.err
    assert run("--fresh").status == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for words in ([], ["--fresh"]):
        other = run(*words, name="other")
        assert other.status == 2
        assert "is no run" in other.err
    assert (tmp_path / "other" / "thesis.tex").exists()


def test_the_default_name_tells_the_setting_and_not_the_traced_steps(program, toy, tmp_path):
    words = [word for word in toy(tmp_path) if not word.startswith("--name")]
    ended = program("run", *words, "--profile_steps=2:3")
    assert ended.status == 0, ended.err
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("mora_uuid-laptop-mora-r4-lr0.003-seed0-")
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert program("run", *words).out.startswith(f"{folder.name}: finished already")


# ---- runs that fail on the way ----


def error_line(ended) -> str:
    """The one line of a mendable error, after the progress bar if there was one."""
    assert ended.status == 2, ended
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_diverging_run_says_where_it_was_good(run, saved):
    changes = dict(optimizer__learning_rate=1e30, adapter__targets=None)
    ended = run(checkpoint__every=2, **changes)
    line = error_line(ended)
    assert "loss nan, gradient norm nan at step 3; the last good checkpoint is step 2;" in line
    assert "lower optimizer.learning_rate" in line
    result = json.loads((ended.folder / "result.json").read_text())
    assert (result["status"], result["message"]) == ("diverged", line.removeprefix("error: "))
    for dtype, shape, content in saved(ended.folder, 2).values():
        assert np.isfinite(np.frombuffer(content, dtype)).all(), shape
    assert not (ended.folder / "adapter").exists()
    again = run(**changes)
    assert again.out.startswith("run: diverged already; training loss ")


def test_a_poisoned_base_stops_at_the_first_step(run, monkeypatch):
    load = experiment.Experiment.load

    def poisoned(self):
        state, frozen, fingerprint = load(self)
        return state, jax.tree.map(lambda x: x * jnp.nan, frozen), fingerprint

    monkeypatch.setattr(experiment.Experiment, "load", poisoned)
    assert "at step 1; no checkpoint was saved before it" in error_line(run())


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(run, straight, saved, records):
    whole = straight("whole")
    broken = straight()
    (broken.folder / "result.json").unlink()
    last = broken.folder / "checkpoints" / "6"
    for path in [path for path in last.rglob("*") if path.is_file() and "d/" in str(path)]:
        path.write_bytes(path.read_bytes()[:-7] + bytes(7))
    ended = run()
    assert ended.status == 0, ended.err
    assert f"step 4 before it is used; the damaged one is now {last}.damaged" in ended.err
    assert saved(broken.folder, 6) == saved(whole.folder, 6)
    assert records(broken.folder) == records(whole.folder)


def test_a_full_disk_leaves_the_earlier_checkpoint(run, straight, saved):
    """A limit on the size of files, from step 3 on, stands in for the full disk."""
    whole = straight("whole")
    rewind(straight().folder, 2)
    place, free = experiment.Experiment.place, resource.getrlimit(resource.RLIMIT_FSIZE)

    def filling(self, batch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, free[1]))
        return place(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.Experiment, "place", filling)
        try:
            full = run(checkpoint__every=2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, free)
    line = error_line(full)
    assert "the checkpoint of step 4 could not be written" in line
    assert "untouched: [2]" in line
    again = run()
    assert again.status == 0, again.err
    assert saved(again.folder, 6) == saved(whole.folder, 6)
