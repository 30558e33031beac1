"""`experiments.evaluate`: our model, lm-eval's Hugging Face backend and a run's own evaluations answer alike."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from exam_files import write_exams
from toys import drawn

from experiments.records.run_record import read_result
from lowrank_jax.bases.base import export_params
from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.answers.verify import Verdicts
from lowrank_jax.models.llama import Llama
from lowrank_jax.models.registry import get_model
from lowrank_jax.tasks.exams.task import ChoiceExam
from lowrank_jax.tasks.framing import PLAIN
from lowrank_jax.text.tokenizers import ByteTokenizer

EXAMS = ("mmlu", "gsm8k", "pubmedqa")
NEW = 12
LONG = "this is long " * 45  # more than the toy reads


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A toy Llama of bytes in a folder, whose answers differ."""
    shape, folder = get_model("toy-llama"), tmp_path_factory.mktemp("evaluate") / "base"
    params = jax.tree.map(lambda leaf: 6 * leaf, drawn(Llama(shape), jnp.zeros((1, 8), jnp.int32))["params"])
    return export_params(params, shape, folder, tokenizer=ByteTokenizer())


@pytest.fixture(scope="module")
def exams(tmp_path_factory):
    """Tiny exams; one question of MMLU and one of GSM8K are longer than the toy reads."""
    folder = write_exams(tmp_path_factory.mktemp("exams"))
    for file in ("mmlu/test.csv", "gsm8k/test.jsonl"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(" and 5 is", f" and {LONG} is").replace("the sun", LONG, 1))
    return folder


def answers(file):
    """({prompt: log-likelihoods}, {prompt: text}) of lm-eval's samples."""
    choices, texts = {}, {}
    for row in map(json.loads, file.read_text().splitlines()):
        prompt, said = row["arguments"][0][0], [one[0] for one in row["resps"]]
        if row["task"] == "gsm8k":
            texts[prompt] = said[0]
        else:
            choices[prompt] = [float(value) for value, _ in said]
    return choices, texts


def picks(choices):
    return {prompt: max(range(len(values)), key=values.__getitem__) for prompt, values in choices.items()}


def same_choices(ours, theirs):
    assert ours.keys() == theirs.keys()
    for prompt, values in theirs.items():
        assert ours[prompt] == pytest.approx(values, abs=1e-3)
    assert picks(ours) == picks(theirs)


def judged(golds, said):
    """Stands in for math-verify, which takes seconds to start; tests/metrics has it."""
    return Verdicts([gold in text for gold, text in zip(golds, said, strict=True)], 0)


def test_a_run_lm_eval_and_the_hugging_face_backend_answer_alike(program, run, base, exams, tmp_path, monkeypatch):
    """Choices, log-likelihoods and texts of a run: by `config.evals`, by this program, by lm-eval's own backend.

    With an example each; a question and a problem are too long and lose their beginnings. Rolling log-likelihoods are
    compared too, of a text that needs two windows. The backend reads the run's merged model.
    """
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from experiments.evaluation import harness
    from experiments.evaluation.language_model import LanguageModel
    from experiments.evaluation.local_tasks import write_tasks
    from experiments.generation.model import of_run

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("lowrank_jax.tasks.exams.scores.verify_all", judged)
    outputs, score = {}, ChoiceExam.score

    def seen(exam, found):
        outputs.update(zip(exam.prompts, found[""].tolist(), strict=True))
        return score(exam, found)

    monkeypatch.setattr(ChoiceExam, "score", seen)
    entry = {"data_dir": str(exams), "shots": 1, "truncate": True}
    evals = {
        "mmlu": {"type": "choice", "task": "mmlu", "batch": 4, **entry},
        "gsm8k": {"type": "generation", "task": "gsm8k", "max_new_tokens": NEW, "batch": 5, "write": True, **entry},
    }
    ended = run(
        f"--config.evals={json.dumps(evals)}", base__name=base, base__random_init=False, train__steps=2,
        train__eval_steps="()", optimizer__learning_rate=0.02, export__merged="float32",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    found = read_result(ended.folder / "result.json")["evaluations"][-1]
    data = json.loads((ended.folder / "config.json").read_text())["data"]
    assert [Path(name).name for name, *_ in data["evals.mmlu"]["files"]] == ["test.csv", "dev.csv"]
    written = [json.loads(line) for line in (ended.folder / "decoded.jsonl").read_text().splitlines()]
    monkeypatch.setattr("lowrank_jax.tasks.exams.scores.verify_all", lambda golds, _: Verdicts([True] * len(golds), 0))
    assert program("score", f"--runs={ended.folder}").status == 0
    again = read_result(ended.folder / "result.json")["evaluations"][-1]
    assert again == {**found, "gsm8k/math_verify": 1, "gsm8k/math_verify_correct": 10} != found

    ended = program(
        "evaluate", ended.folder, f"--tasks={','.join(EXAMS)}", *(f"--data={name}={exams}" for name in EXAMS),
        f"--gen_kwargs=max_gen_toks={NEW}", "--num_fewshot=1", "--batch_size=5",
        f"--output={tmp_path / 'results.json'}", f"--samples={tmp_path / 'ours.jsonl'}",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    choices, texts = answers(tmp_path / "ours.jsonl")
    same_choices(outputs, {prompt: values for prompt, values in choices.items() if prompt in outputs})
    assert texts == {row["prompt"]: row["continuation"] for row in written}
    assert (len(outputs), len(choices), len(texts)) == (10, 14, 10)
    assert len({*picks(choices).values()}) > 1, "one option is always picked: the test sees nothing"
    assert len({*texts.values()}) > 1
    record = json.loads((tmp_path / "results.json").read_text())
    results = {(row["task"], row["filter"]): row for row in record["results"]}
    for name, row in (
        ("mmlu/", results["mmlu", "none"]),
        ("gsm8k/strict_", results["gsm8k", "strict-match"]),
        ("gsm8k/flexible_", results["gsm8k", "flexible-extract"]),
    ):
        assert (
            (found[f"{name}correct"], found[f"{name.split('/')[0]}/n"])
            == (row["correct"], row["n"])
            == (row["correct"], 10)
        )
    assert record["cut"] == 5  # the long question, once for each of its options, and the long problem
    assert "5 prompts were longer than the model reads" in ended.out
    read, whole = record["tokens"]["read"], record["tokens"]["whole"]
    assert f"{read:,} tokens were read; without shared beginnings they would be {whole:,}" in ended.out
    assert read < whole

    merged = tmp_path / "run" / "model"
    theirs = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(merged),
        tokenizer=transformers.AutoTokenizer.from_pretrained(merged),
        batch_size=5,
        device="cpu",
    )
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", [f"{name}={exams}" for name in EXAMS])
    tasks = harness.load_tasks(EXAMS, [tmp_path / "tasks"])
    harness.set_up(tasks, 1, f"max_gen_toks={NEW}", 1234)
    with open(tmp_path / "theirs.jsonl", "w") as out:
        harness.ask(theirs, tasks, None, False, out)
    their_choices, their_texts = answers(tmp_path / "theirs.jsonl")
    same_choices(choices, their_choices)
    assert texts == their_texts
    rolled = [Instance("loglikelihood_rolling", {}, ((LONG * 2)[:1024],), 0)]  # two windows of one shape
    wrapped = LanguageModel(of_run(str(tmp_path / "run"), None))
    assert wrapped.loglikelihood_rolling(rolled) == pytest.approx(theirs.loglikelihood_rolling(rolled), rel=1e-5)


def test_texts_beside_shared_examples_are_those_of_whole_prompts(base):
    """In batches of four with a last smaller one; prompts of other beginnings, too few for a batch, are read whole."""
    from lm_eval.api.instance import Instance

    from experiments.evaluation.language_model import LanguageModel
    from experiments.generation.model import of_base

    examples = "2 and 2 is 4. 3 and 4 is 7. 5 and 1 is 6. "
    prompts = [f"{examples}{number} and {number} is" for number in range(9, 15)] + [
        "the sun " * 6 + end for end in "ab"
    ]
    models = [LanguageModel(of_base(str(base), None, "float32"), batch_size=4, share=share) for share in (False, True)]
    for settings, shares in (({}, True), ({"repetition_penalty": 1.3}, False)):
        given = {"until": ["\n"], "max_gen_toks": NEW, **settings}
        asked = [Instance("generate_until", {}, (prompt, given), 0) for prompt in prompts]
        before = models[1].count.read
        wanted, found = (model.generate_until(asked) for model in models)
        assert found == wanted
        assert len({*wanted}) > 4
        read = models[1].count.read - before
        assert read == sum(map(len, prompts)) - shares * 5 * len(examples)
    assert models[0].count.read == models[0].count.whole == models[1].count.whole == 2 * sum(map(len, prompts))


def test_a_bos_that_the_tokenizer_lacks_is_refused(monkeypatch):
    """By evaluate and by generate alike, asked for by --bos or by a run's config, where it was left out before."""
    from experiments.evaluation import language_model
    from experiments.generation import framing

    class Bare(ByteTokenizer):
        name, bos_id = "bare", None

    model = SimpleNamespace(base=None, task=None, virtual=PLAIN)
    for module, call in (
        (language_model, lambda: language_model.LanguageModel(model, add_bos=True)),
        (framing, lambda: framing.make_framing(model, "", True, "", False)),
    ):
        monkeypatch.setattr(module, "framed_tokenizer", lambda base: Bare())
        with pytest.raises(UserError, match="tokenizer 'bare' has no BOS token; leave --bos out"):
            call()
    model.task = SimpleNamespace(add_bos=True)
    with pytest.raises(UserError, match="tokenizer 'bare' has no BOS token; set add_bos=False"):
        language_model.LanguageModel(model)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one run or base, e.g. python -m experiments.evaluate runs/NAME; there are 0"),
        (("a", "b", "--tasks=mmlu"), "there are 2"),
        (("BASE",), "give --tasks, e.g. --tasks=mmlu,gsm8k"),
        (("BASE", "--tasks=mmlu", "--include_path=/nowhere"), "--include_path=/nowhere: no such folder"),
        (("BASE", "--tasks=mmlu", "--output=/nowhere/a"), "--output=/nowhere/a: its folder does not exist"),
        (("BASE", "--tasks=,", "--data=mmlu=EXAMS"), "give --tasks"),
        (("BASE", "--tasks=mmlu", "--output=EXAMS"), "is a folder; name a file in it"),
        (("BASE", "--tasks=mmlu", "--samples=EXAMS"), "is a folder; name a file in it"),
        (
            ("BASE", "--tasks=mmlu", "--chat_template=chatml"),
            "is read with --apply_chat_template alone",
        ),
        (("BASE", "--tasks=mmlu", "--data=mmlu=EXAMS", "--gen_kwargs=temperature=1"), "none of the tasks writes text"),
        (("BASE", "--tasks=mmlu", "--data=mmul=EXAMS"), "unknown exam of --data 'mmul'; did you mean mmlu"),
        (("BASE", "--tasks=mmlu", "--data=mmlu"), "give the folder of its files, --data=mmlu=FOLDER"),
        (("BASE", "--tasks=mmlu", "--data=mmlu=/nowhere"), "/nowhere: no such folder; data_dir"),
        (("BASE", "--tasks=mmul", "--data=mmlu=EXAMS"), "unknown task 'mmul'; did you mean mmlu"),
        (("BASE", "--tasks=broken", "--include_path=TASKS"), "the tasks broken cannot be loaded (FileNotFoundError: "),
        (
            ("BASE", "--tasks=gsm8k", "--data=gsm8k=EXAMS"),
            "gsm8k: 5 examples are asked for, and its data have 2; set a smaller --num_fewshot",
        ),
        (
            ("/nowhere", "--tasks=gsm8k", "--data=gsm8k=EXAMS", "--num_fewshot=0"),
            "no base model at /nowhere; check the path",
        ),
        (
            ("BASE", "--tasks=gsm8k", "--data=gsm8k=EXAMS", "--gen_kwargs=num_beams=4", "--num_fewshot=0"),
            "a task sets 'num_beams'",
        ),
        (
            ("BASE", "--tasks=gsm8k", "--data=gsm8k=EXAMS", "--gen_kwargs=max_gen_toks=600", "--num_fewshot=0"),
            "asks for 600 new tokens",
        ),
    ],
)
def test_mistakes_end_in_a_line(program, base, exams, tmp_path, monkeypatch, words, said):
    from lm_eval.tasks import TaskManager

    from experiments.evaluation import harness

    def of_files(include_path, include_defaults=True):
        """lm-eval's own tasks take seconds to list."""
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(harness, "TaskManager", of_files)
    broken = {"task": "broken", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "/nowhere.jsonl"}},
              "test_split": "test", "doc_to_text": "{{a}}", "doc_to_target": "{{b}}"}  # fmt: skip
    (tmp_path / "broken.yaml").write_text(json.dumps(broken))
    named = {"BASE": str(base), "EXAMS": str(exams), "TASKS": str(tmp_path)}
    for name, folder in named.items():
        words = [word.replace(name, folder) for word in words]
    ended = program("evaluate", *words)
    assert ended.status == 2, ended.err
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last


def test_without_lm_eval_the_remedy_is_named(program, base, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    ended = program("evaluate", base, "--tasks=mmlu")
    assert (ended.status, ended.err.strip()) == (
        2,
        "error: this program needs lm-eval; pip install 'lowrank_jax[eval]'",
    )
