"""The form `choice`: likelihoods and picks are transformers' own, on any mesh; the loss is that of next tokens."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.bases.base import BaseConfig, export_params, load_base
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.trees import partition
from lowrank_jax.forms.base import Setting
from lowrank_jax.forms.chooser import LIKELIHOODS, choices, make_chooser
from lowrank_jax.forms.next_token import next_token_objective
from lowrank_jax.forms.registry import form_of
from lowrank_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh, replicated
from lowrank_jax.sharding.rules import shard_tree
from lowrank_jax.tasks.base import ChoiceTask
from lowrank_jax.tasks.choice_rows import Question, candidate_arrays, encode_questions
from lowrank_jax.text.tokenizers import ByteTokenizer
from lowrank_jax.train import trials

BYTES = ByteTokenizer()
# Unequal prompts, completions of unequal length (of non-ASCII bytes too), and rows of two, three and four of them.
QUESTIONS = [
    Question(
        f"{'so ' * (3 * number % 7)}question {number}:", (" yes", " no, not", " peut-être", " x")[: 2 + number % 3], 0
    )
    for number in range(11)
]
MOST, PAD = 4, BYTES.pad_id


@functools.cache
def base():
    return load_base(BaseConfig("toy-llama", random_init=True), key=jax.random.key(5))


@functools.cache
def rows():
    return encode_questions(BYTES, QUESTIONS, 64, name="rows", place=lambda at: f"row {at + 1}").rows


class Task:
    """What the form asks of a task, over QUESTIONS."""

    name, evaluation, seq_len, buckets, pad = "questions", "choices", 64, (24, 40, 64), {"tokens": PAD}
    partial, notes = False, ()

    def __init__(self, likelihood="sum"):
        self.likelihood = likelihood

    def train_source(self):
        return rows()

    def features(self, example):
        right = example[0]
        return {"tokens": right.tokens, "weights": (np.arange(len(right.tokens)) >= right.start).astype(np.float32)}

    def candidates(self, example):
        return candidate_arrays(example, MOST, rows().most, PAD)

    def lengths(self, source):
        return source.lengths

    def validation_sources(self):
        return {"": rows()}

    def score(self, outputs):
        self.outputs = outputs[""]
        return {"accuracy": float(np.mean(np.argmax(outputs[""], axis=1) == rows().answers))}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """{likelihood: [rows, MOST]} by transformers, one text at a time, without padding."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("base") / "toy"
    export_params(base().params, base().config, folder, "float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {name: np.full((len(QUESTIONS), MOST), -np.inf) for name in LIKELIHOODS}
    for at, row in enumerate(QUESTIONS):
        for place, text in enumerate(row.candidates):
            prompt, completion = list(row.prompt.encode()), list(text.encode())
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].double()
            each = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion)]
            found["sum"][at, place] = each.sum()
            found["per_token"][at, place] = each.sum() / len(completion)
            found["per_byte"][at, place] = each.sum() / len(text.strip().encode())
    return found


def setting(mesh):
    def place(batch):
        return {name: jax.device_put(value, batch_sharding(mesh)) for name, value in batch.items()}

    return Setting(base().model.apply, base().config, mesh, jnp.float32, BYTES, place, batch_size=8)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_likelihoods_and_picks_are_those_of_transformers(likelihood, theirs):
    task, mesh = Task(likelihood), make_mesh(MeshConfig(), jax.devices()[:1])
    protocol = ChoiceTask
    assert isinstance(task, protocol)
    found = choices(setting(mesh), task).one({"params": base().params})
    wanted = theirs[likelihood]
    assert (np.isfinite(task.outputs) == np.isfinite(wanted)).all()
    np.testing.assert_allclose(task.outputs, wanted, rtol=2e-5)
    assert found["accuracy"] == np.mean(wanted.argmax(1) == 0)
    assert len({*theirs["sum"].argmax(1)}) > 1, "the model picks one place alone: the test sees nothing"
    assert (theirs["sum"].argmax(1) != theirs["per_token"].argmax(1)).any(), "the two likelihoods pick alike"


def test_a_mesh_and_trials_change_nothing(theirs):
    config = MeshConfig(data=2, fsdp=2, tensor=2)
    mesh, task = make_mesh(config), Task()
    choices(setting(mesh), task).one(shard_tree({"params": base().params}, mesh))
    np.testing.assert_allclose(task.outputs, theirs["sum"], rtol=2e-5)

    one = make_mesh(MeshConfig(), jax.devices()[:1])
    trainable, frozen = partition({"params": base().params}, [("params/final_norm/.*", True), (".*", False)])
    other = jax.tree.map(lambda x: 1.5 * x, trainable)
    evaluation = choices(setting(one), task)
    alone = []
    for tree in (trainable, other):
        evaluation.one({"params": {**frozen["params"], **tree["params"]}})
        alone.append(task.outputs)
    of_trials = trials.trial_mesh(2, jax.devices()[:2])
    outputs = []
    task.score = lambda found: outputs.append(found[""]) or {}
    run = evaluation.many(trials.frozen_axes(frozen), of_trials)
    run(trials.place(trials.stack([trainable, other]), of_trials), jax.device_put(frozen, replicated(of_trials)))
    np.testing.assert_allclose(outputs, alone, rtol=2e-5)
    real = np.isfinite(alone[0])
    assert np.abs(alone[0][real] - alone[1][real]).max() > 0.1


def test_the_loss_is_that_of_the_next_tokens_of_the_right_completion(theirs):
    """Over every row once; the padding's ids change nothing, and speed counts the tokens read."""
    task, form, count = Task(), form_of(SimpleNamespace(form="choice")), len(QUESTIONS)
    batch = form.stream(task, count, 0, 0, 1).batch(0)
    shapes = form.batch_shapes(count, batch["tokens"].shape[1])
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == shapes
    variables, mesh = {"params": base().params}, make_mesh(MeshConfig(), jax.devices()[:1])
    both = (form.objective(setting(mesh)), next_token_objective(base().model.apply))
    (loss, sums), (plain, of_tokens) = (jax.jit(f)(variables, batch, None) for f in both)
    assert float(loss) == float(plain)
    assert loss == pytest.approx(-theirs["sum"][:, 0].sum(), rel=1e-5)
    assert float(sums["weight"]) == float(of_tokens["weight"]) == count * len(" yes")
    assert float(sums["tokens"]) == batch["mask"].sum() < batch["mask"].size
    other = {**batch, "tokens": np.where(batch["mask"], batch["tokens"], 7)}
    assert float(jax.jit(both[0])(variables, other, None)[0]) == float(loss)


def test_an_unknown_likelihood_is_named():
    with pytest.raises(UserError, match=r"unknown task\.likelihood 'per_tokens'; did you mean per_token"):
        make_chooser(base().model.apply, "per_tokens")


def test_completions_of_one_token_may_share_their_prompt():
    """One row of tokens for all completions gives what a row for each gives."""
    prompts, letters = ("a question:", "another, longer one:"), "xyz"
    size, most = max(map(len, prompts)), len(letters)
    batch = {
        "tokens": np.full((2, size + 1, most), PAD, np.int32),
        "starts": np.array([[len(prompt)] * most for prompt in prompts]),
        "counts": np.array([[1, 1, 1], [1, 1, 0]]),
        "sizes": np.ones((2, most), np.int32),
        "targets": np.array([[[ord(letter)] for letter in letters]] * 2),
    }
    for row, prompt in enumerate(prompts):
        for place, letter in enumerate(letters):
            batch["tokens"][row, : len(prompt) + 1, place] = list(f"{prompt}{letter}".encode())
    shared = {**batch, "tokens": batch["tokens"][:, :-1, :1]}
    choose, variables = jax.jit(make_chooser(base().model.apply, "sum")), {"params": base().params}
    np.testing.assert_allclose(choose(variables, shared), choose(variables, batch), rtol=1e-6)
