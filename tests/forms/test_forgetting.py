"""Forgetting: the loss of fixed rows of other text against a plain forward pass, its record, and what it refuses."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from toys import drawn

from experiments.records.forgetting import rises
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import combine, partition
from lowrank_jax.forms.forgetting import ForgettingOptions, name_of, text_loss
from lowrank_jax.forms.next_token import likelihood, next_token_objective
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from lowrank_jax.tasks.base import LikelihoodTask
from lowrank_jax.text.tokenizers import ByteTokenizer
from lowrank_jax.train import trials

CONFIG, BYTES = get_model("toy-llama"), ByteTokenizer()


@pytest.fixture
def setting():
    mesh = make_mesh(MeshConfig())

    def place(batch):
        return {name: jax.device_put(rows, batch_sharding(mesh)) for name, rows in batch.items()}

    return SimpleNamespace(tokenizer=BYTES, model=CONFIG, mesh=mesh, place=place, options=None)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.mark.parametrize("add_bos", [False, True])
def test_the_loss_is_that_of_the_first_tokens_of_the_file(setting, tmp_path, add_bos):
    """Three rows of 16: documents joined by EOS, cut one after another, whatever follows."""
    texts = ["the cat sat on a mat", "and ate a fig", "then it slept till noon", "never read"]
    model, each = Llama(CONFIG), 16 - add_bos
    variables = drawn(model, np.zeros((1, 8), np.int32))
    stream = [i for text in texts for i in (*text.encode(), BYTES.eos_id)][: 3 * each]
    rows = np.array(stream).reshape(3, each)
    rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=BYTES.bos_id) if add_bos else rows
    logits = np.asarray(model.apply(variables, rows), np.float64)
    shifted = logits[:, :-1] - logits[:, :-1].max(-1, keepdims=True)
    chosen = np.take_along_axis(shifted, rows[:, 1:, None], -1)[..., 0] - np.log(np.exp(shifted).sum(-1))

    options = ForgettingOptions(write(tmp_path / "old.jsonl", texts), rows=3, tokens=16, add_bos=add_bos)
    evaluation = text_loss(setting, SimpleNamespace(), options, next_token_objective(model.apply))
    assert evaluation.one(variables) == {"old/text_loss": pytest.approx(-chosen.mean(), rel=1e-5)}
    assert chosen.size == options.targets


@pytest.fixture
def held(setting):
    """A task with three held-out rows, in batches of two, the last of which is filled up; and its model's variables."""
    setting.apply_fn, setting.chunk_tokens, setting.unroll, setting.batch_size = Llama(CONFIG).apply, 0, 1, 2
    setting.mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    setting.place = jax.device_put
    rng = np.random.default_rng(0)
    rows = [{"tokens": rng.integers(0, 256, 8).astype(np.int32), "weights": np.ones(8, np.float32)} for _ in range(3)]

    class Held(LikelihoodTask):
        features, validation_source = staticmethod(dict), lambda self: rows

        def validation_metrics(self, loss_sum, weight_sum):
            return {"loss": loss_sum / weight_sum, "weight": weight_sum}

    return Held(), drawn(Llama(CONFIG), np.zeros((1, 8), np.int32))


def test_trials_are_scored_together_as_each_would_be_alone(setting, held, tmp_path):
    """Held-out loss and forgetting of two trials in one program, two devices; one differs in its last norm."""
    task, variables = held
    options = ForgettingOptions(write(tmp_path / "old.jsonl", ["the cat sat on a mat, and more"]), rows=3, tokens=8)
    evaluations = (
        likelihood(setting, task),
        text_loss(setting, task, options, next_token_objective(setting.apply_fn)),
    )
    trainable, frozen = partition(variables, [("params/final_norm/.*", True), (".*", False)])
    other = jax.tree.map(lambda x: 1.5 * x, trainable)
    mesh = trials.trial_mesh(2, jax.devices()[:2])
    stacked = trials.place(trials.stack([trainable, other]), mesh)
    shared = jax.device_put(frozen, replicated(mesh))
    for evaluation in evaluations:
        alone = [evaluation.one(combine(one, frozen)) for one in (trainable, other)]
        together = evaluation.many(trials.frozen_axes(frozen), mesh)(stacked, shared)
        assert together == [pytest.approx(one, rel=1e-5) for one in alone]
        assert alone[0] != pytest.approx(alone[1], rel=1e-4)
    assert together[0].keys() == {"old/text_loss"}


def test_losses_are_compiled_with_the_steps_options(setting, tmp_path):
    """Otherwise XLA times products for the evaluation that it does not time for the step."""
    setting.options, setting.apply_fn = {"xla_gpu_gone": 0}, Llama(CONFIG).apply
    setting.chunk_tokens, setting.unroll, setting.batch_size = 0, 1, setting.mesh.size
    rows = [{"tokens": np.arange(8, dtype=np.int32), "weights": np.ones(8, np.float32)}] * setting.mesh.size
    task = type("Held", (LikelihoodTask,), {"validation_source": lambda self: rows, "features": dict})()
    variables = drawn(Llama(CONFIG), np.zeros((1, 8), np.int32))
    options = ForgettingOptions(write(tmp_path / "old.jsonl", ["never read to its end"]), rows=1, tokens=16)
    for one in (likelihood(setting, task), text_loss(setting, task, options, next_token_objective(setting.apply_fn))):
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
            one.one(variables)
        with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
            one.many(None, mesh)(jax.tree.map(lambda leaf: leaf[None], variables), {})


def test_what_is_refused(setting, tmp_path):
    def refused(words, options):
        with pytest.raises(UserError, match=words) as error:
            text_loss(setting, SimpleNamespace(), options, None)
        assert "\n" not in str(error.value)

    short = write(tmp_path / "short.jsonl", ["abc" * 11])
    refused(
        r"short.jsonl: its texts make 3 rows of 10 tokens, and 4 are asked for; .*set rows to 3",
        ForgettingOptions(short, 4, 10),
    )
    refused(
        r"short.jsonl: its texts make 0 rows of 40 tokens, .*; give a longer file, or lower tokens in",
        ForgettingOptions(short, 1, 40),
    )
    refused("no such file", ForgettingOptions(str(tmp_path / "absent.jsonl"), 4, 10))
    refused(r"513 tokens a row exceeds the model's 512 positions", ForgettingOptions(short, 4, 513))
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "a", "completion": "b"}\n')
    refused("reads rows of \"text\", not of kind 'completion'", ForgettingOptions(str(asked), 4, 10))
    with pytest.raises(UserError, match="has no path; give it a file"):
        ForgettingOptions()
    with pytest.raises(UserError, match=r"has a\.jsonl twice; leave one out"):
        ForgettingOptions(("a.jsonl", "a.jsonl"))
    assert [name_of(one) for one in ("a/novels_validation.jsonl.xz", "hub:owner/a name:test")] == [
        "novels_validation",
        "a_name_test",
    ]


def test_a_record_has_the_rise_from_the_first_step_to_the_last():
    plain = {
        "evals": {
            "forgetting": {"type": "forgetting", "path": ["old.jsonl"], "rows": 3, "tokens": 16},
            "start": {"type": "likelihood"},
        }
    }

    def at(step, loss, name="forgetting/old"):
        return {"step": step, f"{name}/text_loss": loss}

    found = rises(plain, [at(0, 2.0), at(5, 1.0), at(9, 2.5)])
    assert found == {"forgetting": {"old": {"start": 2.0, "end": 2.5, "rise": 0.5, "tokens": 45}}}
    assert rises(plain, [at(0, 2.0)]) == rises(plain, [at(5, 2.0), at(9, 2.5)]) == {}  # no end, no start
    assert rises(plain, [at(0, 2.0), at(9, None)]) == {}  # the end was no finite number
    assert rises(plain, [at(0, 2.0, "other/old"), at(9, 3.0, "other/old")]) == rises({}, [at(0, 1.0), at(9, 2.0)]) == {}


def test_entries_that_measure_files_of_one_name_have_a_rise_each():
    entry = {"type": "forgetting", "rows": 3, "tokens": 16}
    plain = {"evals": {"a": {**entry, "path": ["one/old.jsonl", "new.jsonl"]}, "b": {**entry, "path": "two/old.jsonl"}}}
    names = ("a/old", "a/new", "b/old")
    first, last = ({f"{name}/text_loss": scale * n for n, name in enumerate(names, 1)} for scale in (1.0, 3.0))
    found = rises(plain, [{"step": 0, **first}, {"step": 9, **last}])["forgetting"]
    assert {name: one["rise"] for name, one in found.items()} == {"a/old": 2.0, "new": 4.0, "b/old": 6.0}
