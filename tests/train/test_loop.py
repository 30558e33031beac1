"""The loop by itself, around a step that only counts: when it records, evaluates, saves, traces and ends."""

import math

import jax
import jax.numpy as jnp
import pytest
from loop_parts import Recorder, job, score

from lowrank_jax.core.errors import UserError
from lowrank_jax.train import meter
from lowrank_jax.train.evaluations import EvalConfig, Evaluator
from lowrank_jax.train.loop import fit
from lowrank_jax.train.rhythm import LoopConfig

pytestmark = pytest.mark.usefixtures("clock")


def test_every_step_is_recorded_once_in_order():
    recorder = Recorder()
    outcome = fit(job(recorder, LoopConfig(steps=11)))
    assert (outcome.statuses, outcome.messages) == (("finished",), ("",))
    assert int(outcome.state.step) == 11
    assert recorder.of("log") == list(range(1, 12))
    assert [event[2]["loss"] for event in recorder.events if event[0] == "log"] == pytest.approx(
        [1 / n for n in range(1, 12)]
    )
    assert recorder.of("eval") == recorder.of("save") == [11]


def test_rhythm():
    """log_every, eval_every with eval_steps, checkpoint_every; the last step has all three."""
    recorder = Recorder()
    config = LoopConfig(steps=14, log_every=5, eval_every=6, eval_steps=(1, 9))
    fit(job(recorder, config, checkpoint_every=4))
    assert recorder.of("log") == [5, 10, 14]
    assert recorder.of("eval") == [1, 6, 9, 12, 14]
    assert recorder.of("save") == [4, 8, 12, 14]


def test_an_evaluation_before_the_first_step_is_made_once():
    """Of a run that begins, not of one that is resumed; only entries that ask for it are due at step 0."""
    entry = {"type": "", "every": 4, "at_start": True}
    for start, expected in ((0, [0, 4, 8, 9, 9]), (4, [8, 9, 9])):
        recorder = Recorder()
        evaluators = [Evaluator("early", EvalConfig(**entry).due, score), Evaluator("", LoopConfig.evaluates_at, score)]
        fit(job(recorder, LoopConfig(steps=9), start, evaluators=evaluators))
        assert recorder.of("eval") == expected
    EvalConfig(at_end=False, at_start=True).check_due("evals.early", LoopConfig(steps=9))


def test_an_evaluation_and_a_save_follow_all_records_before_them():
    recorder = Recorder()
    fit(job(recorder, LoopConfig(steps=9, eval_steps=(6,)), checkpoint_every=6))
    kinds = [event[:2] for event in recorder.events]
    assert kinds.index(("log", 6)) < kinds.index(("eval", 6)) < kinds.index(("save", 6)) < kinds.index(("log", 7))


def test_a_save_holds_the_state_the_cursor_and_the_time_of_its_step(clock):
    recorder = Recorder(clock=clock, seconds=0.25)
    outcome = fit(job(recorder, LoopConfig(steps=6), checkpoint_every=2, train_seconds=100.0))
    assert [(step, value, counter) for step, value, counter, _ in recorder.saved] == [
        (2, 20, 2),
        (4, 40, 4),
        (6, 60, 6),
    ]
    assert [cursor["batches"] for *_, cursor in recorder.saved] == [{"batches": 2}, {"batches": 4}, {"batches": 6}]
    times = [cursor["train_seconds"] for *_, cursor in recorder.saved]
    assert times == [100.5, 101, 101.5]
    assert outcome.train_seconds == 101.5


def test_resumes_at_the_state_it_is_given():
    recorder = Recorder()
    outcome = fit(job(recorder, LoopConfig(steps=8, eval_steps=(2, 6)), start=5, checkpoint_every=3))
    assert recorder.of("log") == [6, 7, 8]
    assert recorder.of("eval") == [6, 8]
    assert recorder.of("save") == [6, 8]
    assert int(outcome.state.trainable) == 80
    done = Recorder()
    assert fit(job(done, LoopConfig(steps=8), start=8)).statuses == ("finished",)
    assert done.of("log") == done.of("save") == []


def test_stop_at_ends_early_as_if_it_were_the_end():
    recorder = Recorder()
    assert fit(job(recorder, LoopConfig(steps=100, stop_at=3))).statuses == ("finished",)
    assert (recorder.of("log"), recorder.of("eval"), recorder.of("save")) == ([1, 2, 3], [3], [3])


def test_evaluations_and_saves_are_no_training_time(clock):
    recorder = Recorder(clock=clock, seconds=0.25)

    def slow(state, frozen):
        clock.move(30)
        return score(state, frozen)

    more = {"evaluators": [Evaluator("", LoopConfig.evaluates_at, slow)]}
    outcome = fit(job(recorder, LoopConfig(steps=6, eval_every=2), checkpoint_every=2, **more))
    assert outcome.train_seconds == 1.5
    rates = [event[2]["tokens_per_second"] for event in recorder.events if event[0] == "log"]
    assert rates == [400] * 6  # 100 tokens in 0.25 s


def test_steps_read_together_share_their_time(clock):
    """Five steps are in flight when the run ends: none may look as if it had taken no time."""
    recorder = Recorder(clock=clock, seconds=0.5)
    fit(job(recorder, LoopConfig(steps=5)))
    rates = [event[2]["tokens_per_second"] for event in recorder.events if event[0] == "log"]
    assert rates == [200] * 5


def test_named_evaluations_have_rhythms_of_their_own():
    """`config.evals`: each under its name, at its own steps; so is the short way, with its steps."""
    recorder, config = Recorder(), LoopConfig(steps=9, eval_every=4)
    rhythms = {"quick": EvalConfig(every=2, at_end=False), "late": EvalConfig(steps=(5,))}
    evaluators = [Evaluator("", LoopConfig.evaluates_at, score)]
    evaluators += [Evaluator(name, rhythm.due, score) for name, rhythm in rhythms.items()]
    fit(job(recorder, config, evaluators=evaluators))
    found = {}
    for kind, step, values in (event for event in recorder.events if event[0] == "eval"):
        assert kind == "eval"
        (name,) = values
        found.setdefault(name, []).append(step)
    assert found == {"eval/score": [4, 8, 9], "eval/quick/score": [2, 4, 6, 8], "eval/late/score": [5, 9]}


def test_trials_end_each_at_its_own_step_and_one_that_diverges_leaves_the_others():
    """Three trials of one program: 6 steps, 3 steps, and one whose loss is not finite at step 2."""
    recorders = [Recorder() for _ in range(3)]
    lead = recorders[0]

    def step(state, frozen, batch):
        number = int(state.step[0]) + 1
        loss = jnp.array([1.0, 2.0, math.nan if number >= 2 else 3.0])
        metrics = {"loss": loss, "grad_norm": loss, "tokens": jnp.full(3, 100.0), "finite": jnp.isfinite(loss)}
        return state._replace(step=state.step + 1), metrics

    one = job(lead, LoopConfig(steps=6, eval_every=3), checkpoint_every=2)
    one.state = one.state._replace(step=jnp.zeros(3, jnp.int32))
    one.step, one.trackers = step, recorders
    one.configs = [LoopConfig(steps=6, eval_every=3), LoopConfig(steps=6, stop_at=3), LoopConfig(steps=6)]
    one.evaluators = [Evaluator("", LoopConfig.evaluates_at, lambda state, frozen: [{"score": i} for i in range(3)])]
    one.save = lambda done, *_: lead.events.append(("save", done))
    outcome = fit(one)
    assert outcome.statuses == ("finished", "finished", "diverged")
    assert outcome.messages[:2] == ("", "")
    assert "loss nan, gradient norm nan at step 2" in outcome.messages[2]
    assert [recorder.of("log") for recorder in recorders] == [[1, 2, 3, 4, 5, 6], [1, 2, 3], [1]]
    assert [recorder.of("eval") for recorder in recorders] == [[3, 6], [3], []]
    assert lead.of("save") == [2, 4, 6]


@pytest.mark.parametrize(("every", "good"), [(3, "the last good checkpoint is step 6"), (0, "no checkpoint was saved")])
def test_a_loss_that_is_not_finite_stops_the_run(every, good):
    """The step is named although the device was ahead of the records, and nothing is saved from it on."""
    recorder = Recorder(bad_step=8)
    outcome = fit(job(recorder, LoopConfig(steps=50), checkpoint_every=every))
    assert outcome.statuses == ("diverged",)
    assert outcome.messages[0].startswith("loss nan, gradient norm 1 at step 8; ")
    assert good in outcome.messages[0]
    assert recorder.of("save") == ([3, 6] if every else [])
    assert recorder.of("log") == list(range(1, 8))
    assert recorder.served <= 8 + meter.PIPELINE_DEPTH


def test_divergence_at_a_checkpoint_does_not_save_it():
    recorder = Recorder(bad_step=6)
    assert fit(job(recorder, LoopConfig(steps=50, eval_steps=(6,)), checkpoint_every=3)).statuses == ("diverged",)
    assert recorder.of("save") == [3]
    assert recorder.of("eval") == []


def test_saves_under_way_are_waited_for():
    for recorder in (Recorder(), Recorder(bad_step=2)):
        fit(job(recorder, LoopConfig(steps=3)))
        assert recorder.events[-1][0] == "wait"


@pytest.fixture
def traces(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


@pytest.mark.parametrize(
    ("start", "steps", "kept"),
    [(0, 9, [3, 4, 5]), (3, 9, [4, 5]), (5, 9, None), (0, 4, [3, 4])],
    ids=["inside", "resumed within", "resumed after", "ends within"],
)
def test_trace(traces, start, steps, kept):
    """It is closed wherever the run ends, and a run resumed beyond it has none."""
    within = []
    marks = {n: lambda n=n: within.append(n) for n in range(1, 10)}
    recorder = Recorder(at={n: lambda n=n: traces[-1:] == ["start"] and marks[n]() for n in marks})
    fit(job(recorder, LoopConfig(steps=steps, profile_steps="3:5"), start=start))
    assert traces == ([] if kept is None else ["start", "stop"])
    assert within == (kept or [])


def test_a_trace_is_closed_when_the_run_diverges(traces):
    fit(job(Recorder(bad_step=4), LoopConfig(steps=50, profile_steps="2:40")))
    assert traces == ["start", "stop"]


def test_what_is_left_to_the_data():
    """(batch, steps) of 0: all rows, up to 64; three passes, and at least 100 steps; what is set stays."""

    def found(config, *of):
        return config.over(*of).batch_size, config.over(*of).steps

    left = LoopConfig(steps=0, batch_size=0)
    assert found(left, 50) == (50, 100)
    assert found(left, 64) == (64, 100)
    assert found(left, 10_000) == (64, 469)
    assert found(left, 50, 8) == (48, 100)  # what 8 shares divide
    assert found(left, 3, 8) == (8, 100)  # a row several times
    assert found(LoopConfig(steps=0, batch_size=16), 10_000) == (16, 1875)
    assert found(LoopConfig(steps=7, batch_size=0), 10) == (10, 7)
    assert found(LoopConfig(epochs=2, batch_size=0, steps=0), 30) == (30, 2)
    assert found(LoopConfig(steps=7, batch_size=16), 10) == (16, 7)
    with pytest.raises(UserError, match=r"eval_steps \[101\] lie beyond train.steps 100"):
        LoopConfig(steps=0, eval_steps=(101,)).over(50)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": -1}, r"train\.steps is -1"),
        ({"batch_size": -1}, r"train\.batch_size is -1"),
        ({"accumulate": -1}, r"train\.accumulate is -1"),
        ({"log_every": 0}, r"train\.log_every is 0"),
        ({"eval_every": -5}, r"train\.eval_every is -5"),
        ({"chunk_tokens": -1}, r"train\.chunk_tokens is -1"),
        ({"stop_at": 101}, r"train\.stop_at is 101"),
        ({"stop_at": -1}, r"train\.stop_at is -1"),
        ({"eval_steps": (50, 101, 200)}, r"eval_steps \[101, 200\] lie beyond"),
        ({"eval_steps": (0,)}, r"eval_steps\[0\] is 0; it must be at least 1"),
        ({"profile_steps": "10"}, r"'10'; write it as 10:15"),
        ({"profile_steps": "15:10"}, "'15:10'"),
        ({"profile_steps": "0:3"}, "'0:3'"),
        ({"profile_steps": "a:b"}, "'a:b'"),
        ({"profile_steps": "101:110"}, "beyond the last step, 100"),
        ({"profile_steps": "30:40", "stop_at": 20}, "beyond the last step, 20"),
    ],
)
def test_bad_rhythms(values, words):
    with pytest.raises(UserError, match=words):
        LoopConfig(**values)


def test_steps_and_epochs_are_not_both_the_length():
    """An explicit number of steps was ignored beside epochs; the default is none."""
    with pytest.raises(UserError, match=r"train.steps=12 and train.epochs=3 both give the length; set one of them to"):
        LoopConfig(steps=12, epochs=3)
    for config in (LoopConfig(epochs=3), LoopConfig(steps=0, epochs=3)):
        assert config.over(64).steps == 3
    assert LoopConfig(steps=12).over(64).steps == 12
