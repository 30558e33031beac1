"""`experiments.evaluate`: our model, lm-eval's Hugging Face backend and a run's own evaluations answer alike."""

import json
from types import SimpleNamespace

import jax
import pytest
from exam_files import write_exams

from experiments.records.run_folder import read_result
from lowrank_jax.bases.base import export_params, random_params
from lowrank_jax.models.registry import get_model
from lowrank_jax.tasks.exams.task import ChoiceExam
from lowrank_jax.text.tokenizers import ByteTokenizer

EXAMS = ("mmlu", "gsm8k", "pubmedqa")
NEW = 12
SETTINGS = (f"--tasks={','.join(EXAMS)}", f"--gen_kwargs=max_gen_toks={NEW}", "--num_fewshot=1", "--batch_size=4")
LONG = "this is long " * 45  # more than the toy reads


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A toy Llama of bytes in a folder, whose answers differ."""
    shape, folder = get_model("toy-llama"), tmp_path_factory.mktemp("evaluate") / "base"
    params = jax.tree.map(lambda leaf: 6 * leaf, random_params(shape, jax.random.key(0), "float32"))
    return export_params(params, shape, folder, tokenizer=ByteTokenizer())


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """Tiny exams; one question of MMLU and one of GSM8K are longer than the toy reads."""
    folder = write_exams(tmp_path_factory.mktemp("exams"))
    for file in ("mmlu/test.csv", "gsm8k/test.jsonl"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(" and 5 is", f" and {LONG} is").replace("the sun", LONG, 1))
    return folder


@pytest.fixture
def evaluate(program, exams, tmp_path, monkeypatch):
    """evaluate(model, word, ...) -> (the record, {task: {prompt: answers}}) of lm-eval's tasks over the tiny exams."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*words):
        data = [f"--data={name}={exams}" for name in EXAMS]
        files = [f"--output={tmp_path / 'results.json'}", f"--samples={tmp_path / 'samples.jsonl'}"]
        ended = program("evaluate", *words, *SETTINGS, *data, *files)
        assert ended.status == 0, ended.err
        rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        return SimpleNamespace(**json.loads((tmp_path / "results.json").read_text()), **answers(rows), out=ended.out)

    return call


def answers(rows):
    """{"choices": {prompt: log-likelihoods}, "texts": {prompt: text}} of lm-eval's samples."""
    choices, texts = {}, {}
    for row in rows:
        said = [one[0] for one in row["resps"]]
        prompt = (
            next(iter(row["arguments"].values()))["arg_0"]
            if isinstance(row["arguments"], dict)
            else row["arguments"][0][0]
        )
        if row["task"] == "gsm8k":
            texts[prompt] = said[0]
        else:
            choices[prompt] = [float(one[0]) for one in said]
    return {"choices": choices, "texts": texts}


def picks(choices):
    return {prompt: max(range(len(values)), key=values.__getitem__) for prompt, values in choices.items()}


def test_the_hugging_face_backend_answers_alike(evaluate, base, exams, tmp_path):
    """Choices, log-likelihoods, texts and rolling log-likelihoods, prompts that are too long among them."""
    transformers = pytest.importorskip("transformers")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from experiments.evaluation import harness
    from experiments.evaluation.language_model import LanguageModel
    from experiments.evaluation.local_tasks import write_tasks
    from experiments.generation.model import of_base

    ours = evaluate(base)
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(base),
        tokenizer=transformers.AutoTokenizer.from_pretrained(base),
        batch_size=4,
        device="cpu",
    )
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", [f"{name}={exams}" for name in EXAMS])
    tasks = harness.load_tasks(EXAMS, [tmp_path / "tasks"])
    harness.set_up(tasks, 1, f"max_gen_toks={NEW}", 1234)
    with open(tmp_path / "theirs.jsonl", "w") as out:
        harness.ask(theirs, tasks, None, False, out)
    found = answers([json.loads(line) for line in (tmp_path / "theirs.jsonl").read_text().splitlines()])
    assert found["choices"].keys() == ours.choices.keys()
    assert len(found["choices"]) == 14
    assert len(found["texts"]) == 10
    for prompt, values in found["choices"].items():
        assert ours.choices[prompt] == pytest.approx(values, abs=1e-3)
    assert picks(ours.choices) == picks(found["choices"])
    assert ours.texts == found["texts"]
    assert len({*picks(ours.choices).values()}) > 1, "one option is always picked: the test sees nothing"
    assert len({*ours.texts.values()}) > 1
    assert ours.cut == 5  # the long question once, for all of its options, and the long problem
    rolled = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in ("the sun", LONG * 2)]
    wrapped = LanguageModel(of_base(str(base), None, "float32"))
    assert wrapped.loglikelihood_rolling(rolled) == pytest.approx(theirs.loglikelihood_rolling(rolled), rel=1e-5)


def test_a_run_s_own_evaluations_answer_alike(evaluate, run, base, exams, monkeypatch):
    """`config.evals` and this program over the same run: all log-likelihoods, picks and texts, and the counts."""
    outputs, score = {}, ChoiceExam.score

    def seen(self, found):
        outputs.update(zip(self.prompts, found[""].tolist(), strict=True))
        return score(self, found)

    monkeypatch.setattr(ChoiceExam, "score", seen)
    entry = {"data_dir": str(exams), "shots": 1, "truncate": True}
    evals = {
        "mmlu": {"type": "choice", "task": "mmlu", "batch": 4, **entry},
        "pubmed": {"type": "choice", "task": "pubmedqa", **entry},
        "gsm8k": {"type": "generation", "task": "gsm8k", "max_new_tokens": NEW, "write": True, **entry},
    }
    ended = run(
        f"--config.evals={json.dumps(evals)}", base__name=base, base__random_init=False, train__steps=2,
        train__eval_steps="()", optimizer__learning_rate=0.02,
    )  # fmt: skip
    assert ended.status == 0, ended.err
    found, theirs = read_result(ended.folder / "result.json")["evaluations"][-1], evaluate(ended.folder)
    assert outputs.keys() == theirs.choices.keys()
    for prompt, values in theirs.choices.items():
        assert outputs[prompt] == pytest.approx(values, abs=1e-3)
    assert picks(outputs) == picks(theirs.choices)
    written = [json.loads(line) for line in (ended.folder / "decoded.jsonl").read_text().splitlines()]
    assert {row["prompt"]: row["continuation"] for row in written} == theirs.texts
    results = {(row["task"], row["filter"]): row for row in theirs.results}
    for name, row in (
        ("mmlu/", results["mmlu", "none"]),
        ("pubmed/", results["pubmedqa", "none"]),
        ("gsm8k/strict_", results["gsm8k", "strict-match"]),
        ("gsm8k/flexible_", results["gsm8k", "flexible-extract"]),
    ):
        assert (found[f"{name}correct"], found[f"{name.split('/')[0]}/n"]) == (row["correct"], row["n"])
    assert found["mmlu/n"] == 10
    assert found["gsm8k/given_up"] == 0
