"""Exams: lm-eval's prompts, shared prompts, cuts and virtual tokens, scores, and files that are refused by row."""

import json
import re

import numpy as np
import pytest
from exam_files import ADAPTED, write_exams

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.exams.readers import last_box
from lowrank_jax.data.builders.exams.source import EXAMS, load_exam
from lowrank_jax.metrics import resampling
from lowrank_jax.metrics.answers import convfinqa
from lowrank_jax.metrics.answers.verify import Verdicts
from lowrank_jax.metrics.classification import weighted_f1
from lowrank_jax.metrics.interval import wilson
from lowrank_jax.metrics.resampling import mean_interval, weighted_f1_interval
from lowrank_jax.tasks.exams import scores
from lowrank_jax.tasks.exams import task as tasks
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.rows import read_questions
from lowrank_jax.tasks.exams.task import ChoiceExam, Examinee, WrittenExam
from lowrank_jax.tasks.framing import Framing
from lowrank_jax.text.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


class Words:
    """A tokenizer whose tokens are words with the space before them."""

    name, pad_id, bos_id, eos_id, vocab_size = "words", 0, 1, 2, 1000

    def __init__(self):
        self.known = ["<pad>", "<bos>", "<eos>"]

    def encode(self, text):
        pieces = re.findall(r" ?\w+|[^\w]", text)
        self.known += [piece for piece in dict.fromkeys(pieces) if piece not in self.known]
        return [self.known.index(piece) for piece in pieces]

    def decode(self, ids):
        return "".join(self.known[number] for number in ids)


@pytest.fixture
def exams(tmp_path):
    return write_exams(tmp_path)


def options(folder, task, **more):
    return ExamOptions(task=task, data_dir=str(folder), **more)


def test_prompts_and_answers_are_those_of_lm_eval(exams, tmp_path, monkeypatch):
    """Every request of lm-eval's own tasks, with no example and with two, where these come from files."""
    from experiments.evaluation.harness import load_tasks, set_up
    from experiments.evaluation.local_tasks import WRITERS, write_tasks

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", [f"{name}={exams}" for name in WRITERS])
    names = {"mmlu": "mmlu", "gsm8k": "gsm8k", "pubmedqa": "pubmedqa", "hendrycks_math_algebra": "math",
             "hendrycks_math_geometry": "math", "medqa": "medqa", "phrasebank": "phrasebank"}  # fmt: skip
    for shots in (0, 2):
        loaded = load_tasks(list(names)[: 7 if shots == 0 else 3], [tmp_path / "tasks"])
        set_up(loaded, shots, "", 0)
        asked = {}
        for name, each in loaded["tasks"].items():
            each.build_all_requests(limit=None, rank=0, world_size=1)
            exam = names.get(name) or "mmlu"
            for one in each.instances:
                asked.setdefault(exam, {}).setdefault(one.args[0], []).append(one.args[1])
        for exam, prompts in asked.items():
            ours = {one.prompt: one.row for one in read_questions(options(exams, exam, shots=shots))}
            assert ours.keys() == prompts.keys(), exam
            style = tasks.STYLES[exam]
            for prompt, said in prompts.items():
                if style.stops:
                    assert said[0]["until"] == list(style.stops)
                else:
                    assert tuple(said) == tasks.completions(style, ours[prompt])
    assert {"mmlu", "gsm8k", "pubmedqa"} == asked.keys()


def test_options_of_one_token_share_their_prompt(exams):
    """A question's prompt is then one row, and its last token predicts every option."""
    words = Words()
    exam = ChoiceExam(options(exams, "mmlu", shots=1), Examinee(words, 200, opening=(1,)))
    (source,) = exam.validation_sources().values()
    made = exam.candidates(source[3])
    prompt = [1, *words.encode(exam.prompts[3])]
    assert made["tokens"].tolist() == [[token] for token in prompt]
    assert made["starts"].tolist() == [len(prompt)] * 4
    assert words.decode(made["targets"][:, 0]) == " A B C D"
    assert exam.lengths(source)[3] == len(prompt)
    several = ChoiceExam(options(exams, "mmlu"), Examinee(BYTES, 200))
    assert several.candidates(several.validation_sources()[""][0])["tokens"].shape[1] == 4


def test_long_prompts_are_refused_or_lose_their_beginnings(exams, monkeypatch, caplog):
    """Virtual tokens stay; the last target is predicted, not read; a line and the scores say how many are cut."""
    framing = Framing(prefix_ids=(900, 901), infix_ids=(902,))
    with pytest.raises(
        UserError, match=r"test\.csv, row 1: has \d+ tokens with its completion, and the model reads 20;"
    ):
        ChoiceExam(options(exams, "mmlu"), Examinee(Words(), 20, framing=framing))
    words = Words()
    exam = ChoiceExam(options(exams, "mmlu", truncate=True), Examinee(words, 20, framing=framing))
    made = exam.candidates(exam.validation_sources()[""][0])["tokens"][:, 0].tolist()
    assert made == [900, 901, *words.encode(exam.prompts[0])[-17:], 902]
    written = WrittenExam(options(exams, "gsm8k", truncate=True), Examinee(words, 20, framing=framing), 4)
    asked = written.prompts()[:2]
    ids = [written.prompt_tokens(prompt) for prompt, _ in asked]
    assert written.fitted(ids, 10) == [[900, 901, *words.encode(prompt)[-7:], 902] for prompt, _ in asked]
    monkeypatch.setattr(scores, "verify_all", lambda golds, said: Verdicts([True] * len(said), 0))
    assert written.score(["#### 2"] * 2, ["2"] * 2)["cut"] == 2
    assert exam.score({"": np.zeros((10, 4))})["cut"] == 10
    assert "mmlu: the beginnings of 10 of 10 prompts are cut" in caplog.text
    assert "gsm8k: the beginnings of 2 of 2 prompts are cut" in caplog.text
    assert written.fitted(ids, 100) == ids
    whole = WrittenExam(options(exams, "gsm8k"), Examinee(words, 20, framing=framing), 4)
    assert whole.fitted(ids, 10) == ids


def test_scores(exams, monkeypatch):
    """Counts for an interval; a likelihood that is NaN is a wrong answer; a missing option is never picked."""
    exam = ChoiceExam(options(exams, "pubmedqa"), Examinee(BYTES, 200))
    values = np.array([[0.0, -1, -9], [-1, 0, -9], [0, -1, -2], [-5, np.nan, -1]], np.float32)
    found = exam.score({"": values})  # the answers are yes, no, maybe, yes
    assert {name: found[name] for name in ("accuracy", "correct", "n", "nonfinite")} == {
        "accuracy": 0.5, "correct": 2, "n": 4, "nonfinite": 1,
    }  # fmt: skip
    assert found["macro_f1"] == pytest.approx(np.mean([2 / 4, 2 / 2, 0]))
    assert np.isnan(found["loss"])
    monkeypatch.setattr(scores, "verify_all", lambda golds, said: Verdicts([True] * len(said), 1))
    written = WrittenExam(options(exams, "gsm8k", max_rows=3), Examinee(BYTES, 512))
    _, golds = zip(*written.prompts(), strict=True)
    assert golds == ("2", "8", "14")
    found = written.score([f"so 1 #### {golds[0]}.", f"The answer is {golds[1]}.0", "nothing"], golds)
    assert found == {
        "n": 3, "given_up": 1, "math_verify": 1, "math_verify_correct": 3, "strict": pytest.approx(1 / 3),
        "strict_correct": 1, "flexible": pytest.approx(1 / 3), "flexible_correct": 1, "main": pytest.approx(1 / 3),
        "stated": pytest.approx(2 / 3), "stated_correct": 2,
    }  # fmt: skip


def test_which_questions_are_asked(exams):
    assert len(read_questions(options(exams, "mmlu", subjects=("anatomy",)))) == 5
    asked = read_questions(options(exams, "phrasebank", shots=2))
    assert len(asked) == 4  # those that are shown are not asked
    assert all(one.prompt.count("Answer:") == 3 and one.row.question not in one.prompt[:60] for one in asked)
    assert len(read_questions(options(exams, "math", max_rows=2))) == 2
    assert last_box(r"\boxed{1}, then \fbox{\frac{1}{2}}.") == r"\frac{1}{2}"
    assert last_box(r"so $\boxed 7$ it is") == "7"


def folder_of(name):
    """The folder of an exam of AdaptLLM's, as they spell it."""
    spelt = {"convfinqa": "convifinqa"}.get(name, name)
    return next(folder for folder in ADAPTED if folder.split("/")[1].lower() == spelt)


def test_adapted_prompts_are_the_rows_as_they_are(exams):
    """Options are compared by their mean a token, answers end with the line; JSON lines are read like a JSON list."""
    for name in ("rct", "fiqa_sa", "fpb", "headline", "ner", "convfinqa"):
        rows = ADAPTED[folder_of(name)]
        asked, file = read_questions(options(exams, name)), exams / folder_of(name) / "test.json"
        assert [one.prompt for one in asked] == [row["input"] for row in rows]
        if "options" in rows[0]:
            exam = ChoiceExam(options(exams, name), Examinee(BYTES, 200))
            made = exam.candidates(exam.validation_sources()[""][0])
            ends = [
                BYTES.decode(targets[:count]) for targets, count in zip(made["targets"], made["counts"], strict=True)
            ]
            assert (ends, exam.likelihood) == ([f" {one}" for one in rows[0]["options"]], "per_token")
            assert [one.row.right for one in asked] == [row["gold_index"] for row in rows]
        else:
            exam = WrittenExam(options(exams, name), Examinee(BYTES, 200))
            assert (exam.stops, exam.max_new_tokens) == (("\n",), 100)
            first = [row["label"] if isinstance(row["label"], str) else row["label"][0] for row in rows]
            assert [gold for _, gold in exam.prompts()] == first
        file.write_text("".join(json.dumps(row) + "\n" for row in json.loads(file.read_text())))
        assert [one.prompt for one in read_questions(options(exams, name))] == [one.prompt for one in asked]


# Of the answers in the test below.
GOLD = {"rct": 0.6, "fiqa_sa": 11 / 24, "headline": 2 / 3, "ner": 11 / 18, "convfinqa": 2 / 3}


def test_adapted_scores_are_those_of_their_authors(exams):
    """Values from microsoft/LMOps (adaptllm/src/utils, commit 4f2a9de) with scikit-learn 1.9 and nereval 0.2.5."""

    def picked(name, picks):
        exam = ChoiceExam(options(exams, name), Examinee(BYTES, 200))
        return exam.score({"": np.eye(len(ADAPTED[folder_of(name)][0]["options"]), dtype=np.float32)[picks]})

    def written(name, texts):
        exam = WrittenExam(options(exams, name), Examinee(BYTES, 200))
        return exam.score(texts, [gold for _, gold in exam.prompts()])

    rct = picked("rct", [3, 2, 2, 4, 1])
    assert (rct["main"], rct["correct"], "weighted_f1" in rct) == (pytest.approx(GOLD["rct"]), 3, False)
    fiqa = picked("fiqa_sa", [2, 1, 1, 1])
    head = picked("headline", [at // 2 % 2 for at in range(27)])
    ner = written("ner", [" Lee (ORG), Co (ORG)", "Rome (LOC), Rome (LOC), x (PER)", "The Fund (PER) Kim"])
    for name, found, key in (
        ("fiqa_sa", fiqa, "weighted_f1"),
        ("headline", head, "weighted_f1"),
        ("ner", ner, "entity_f1"),
    ):
        assert found[key] == found["main"] == pytest.approx(GOLD[name], rel=1e-12), name
        assert 0 <= found[f"{key}_low"] < found[key] < found[f"{key}_high"] <= 1
    found = written("convfinqa", [" 0.25 or 1/4", "3 or about 2.01.", "it was\n5"])
    assert (found["exact"], found["main"], found["exact_correct"]) == (GOLD["convfinqa"], GOLD["convfinqa"], 2)
    assert found.keys() == {"n", "exact", "exact_correct", "main"}


@pytest.mark.parametrize(
    ("said", "wanted", "right"),
    [("about 1,250.004 million", "1,250", True), ("25.5", "25.5%", False), ("0.505", ".5", True), ("3", "-3", False),
     ("yes", "yes", False), ("03", "3", False), ("-0.14, 0.1301", "0.14", True), ("1e2 %", "100", True),
     ("7" * 5000, "7", False), ("007", "7", False)],
)  # fmt: skip
def test_numbers_are_read_as_the_authors_do(said, wanted, right):
    assert convfinqa.same(said, wanted) is right


def test_intervals_of_scores():
    """A share's bootstrap interval is about Wilson's; F1 from counts is scikit-learn's."""
    rng = np.random.default_rng(1)
    labels, picks = rng.integers(0, 3, 200), rng.integers(0, 4, 200)
    right = (rng.random(200) < 0.3).astype(float)
    assert mean_interval(right) == pytest.approx(wilson(right.sum(), 200), abs=0.012)
    counts = np.zeros((3, 4))
    np.add.at(counts, (labels, picks), 1)
    assert resampling._weighted_f1(counts[None])[0] == pytest.approx(weighted_f1(picks, labels, 3), rel=1e-12)
    whole = weighted_f1_interval([(picks, labels)], 3)
    halves = weighted_f1_interval([(picks[:100], labels[:100]), (picks[100:], labels[100:])], 3)
    assert whole[0] < weighted_f1(picks, labels, 3) < whole[1]
    assert halves[1] - halves[0] == pytest.approx(whole[1] - whole[0], rel=0.25)


def test_an_optional_exam_without_a_file_is_absent(exams):
    """Its own file alone decides; an exams' folder that does not exist is a mistake, optional or not."""
    assert not options(exams, "ner", optional=True).is_absent
    (exams / folder_of("ner") / "test.json").unlink()
    assert options(exams, "ner", optional=True).is_absent
    assert not options(exams, "ner").is_absent
    with pytest.raises(UserError, match=r"NER has no test\.json .*AdaptLLM/finance-tasks, NER/test\.json"):
        read_questions(options(exams, "ner"))
    with pytest.raises(UserError, match="no such folder"):
        options(exams / "no", "ner", optional=True).is_absent  # noqa: B018


@pytest.mark.parametrize(("task", "other"), [("fiqa_sa", "finance-tasks/FPB"), ("math", "gsm8k")])
def test_the_folder_of_another_exam_has_none_of_this_one(exams, task, other):
    """Though its file has the same name, and rows that could be read."""
    assert options(exams / other, task, optional=True).is_absent
    with pytest.raises(UserError, match=rf"{other} is the folder of \w+, not of .*; name the one above as data_dir"):
        read_questions(options(exams / other, task))
    theirs = other.rpartition("/")[2].lower()
    assert len(load_exam(theirs, "", exams / other)) == len(load_exam(theirs, "", exams))


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("medicine-tasks/RCT/test.json", '"gold_index": 2', '"gold_index": 5', "row 3: 'gold_index' is 5; .* 0 and 4"),
        ("medicine-tasks/RCT/test.json", '"gold_index": 2', '"label": 2', "row 3: lacks 'gold_index', it has"),
        ("medicine-tasks/RCT/test.json", '"Results", ', "", "row 1: 'options' are Background, .*; .* has 5 diff"),
        ("medicine-tasks/RCT/test.json", '"Results", ', '"Methods", ', "this exam has 5 different ones"),
        ("finance-tasks/FPB/test.json", '"neutral"', '" "', "row 1: 'options' is not a list of texts"),
        ("finance-tasks/FPB/test.json", '[{"id"', '[7, {"id"', "row 1: is a JSON int, not an object"),
        ("finance-tasks/Headline/test.json", '"class_id": 8', '"class_id": 9', "row 9: 'class_id' is 9; .* 0 and 8"),
        ("finance-tasks/NER/test.json", '"Lee (PER), Co (ORG)"', '" "', "row 1: 'label' is empty"),
        ("finance-tasks/NER/test.json", '["Rome (LOC)"]', "[]", "row 2: 'label' is empty"),
        ("finance-tasks/NER/test.json", '["Rome (LOC)"]', "[1]", "row 2: 'label' has type int, not text"),
        ("finance-tasks/NER/test.json", "Rome is far.\\nNames:", " ", "row 2: 'input' is empty"),
        ("mmlu/test.csv", "subject,question,A,B,C,D,answer", "subject,question,A,B,D,E,answer",
         r"test\.csv, row 1: the header lacks the column 'C'"),
        ("mmlu/test.csv", "none,A", "none,E", r"test\.csv, row 1: 'answer' is 'E'; it must be one of A, B, C, D"),
        ("gsm8k/test.jsonl", "#### 4", "#### four",
         r"test\.jsonl, line 2: 'answer' must end with '#### number', it has 'four'"),
        ("gsm8k/test.jsonl", "#### 4", "4", r"line 2: 'answer' must end with '#### number', it has no ####"),
        ("math/test.jsonl", r"\\boxed{2}", "2", r"line 2: 'solution' has no answer in a \\boxed"),
        ("medqa/test.jsonl", '"answer_idx": "C"', '"answer_idx": "F"', r"line 3: the answer is 'F'; .* A, B, C, D, E"),
        ("medqa/test.jsonl", '{"A": "a bone", ', "{", r"line 1: 'options' has B, C, D, E; it must have A, B, C"),
        ("pubmedqa/ori_pqal.json", '"final_decision": "maybe"', '"final_decision": "perhaps"',
         r"ori_pqal\.json, row 2: the answer is 'perhaps'; it must be one of yes, no, maybe"),
        ("pubmedqa/test_ground_truth.json", '"0"', '"x"', r"lacks the row 'x' of test_ground_truth\.json"),
        ("phrasebank/Sentences_50Agree.txt", "@negative", "@bad",
         r"line 3: the answer is 'bad'; it must be one of negative, neutral, positive"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_by_row(exams, file, old, new, said):
    text = (exams / file).read_text(encoding="utf-8")
    assert old in text
    (exams / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=said) as raised:
        load_exam(file.split("/")[-2].lower(), "", exams)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("task", "more", "said"),
    [
        ("mmul", {}, "unknown exam 'mmul'; did you mean mmlu"),
        ("mmlu", {"split": "tests"}, "unknown split of mmlu 'tests'; did you mean test"),
        ("mmlu", {"shots": 3}, r"row 1: 3 examples are asked for, and the split dev has 2 about anatomy; set fewer"),
        ("mmlu", {"subjects": ("anatomi",)}, "unknown subject of mmlu 'anatomi'; did you mean anatomy"),
        ("gsm8k", {"subjects": ("anatomy",)}, "subjects are MMLU's; leave them out for gsm8k"),
        ("rct", {"shots": 1}, "the prompts of rct have their examples in them; leave shots out"),
        ("medqa", {"shots": 1}, r"has no train\.jsonl .*; put MedQA \(USMLE\)'s own there"),
        ("", {"shots": 1}, "shots belongs to an exam; name the exam as task, or leave shots out"),
    ],
)
def test_mistakes_in_an_entry_are_named(exams, task, more, said):
    with pytest.raises(UserError, match=said):
        read_questions(options(exams, task, **more) if task else ExamOptions(**more))


def test_the_other_type_and_the_missing_extra_are_named(exams, monkeypatch, caplog):
    with pytest.raises(UserError, match='gsm8k has answers to write; set the entry\'s type to "generation"'):
        ChoiceExam(options(exams, "gsm8k"), Examinee(BYTES, 200))
    with pytest.raises(UserError, match='mmlu has options to choose from; set the entry\'s type to "choice"'):
        WrittenExam(options(exams, "mmlu"), Examinee(BYTES, 200))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need math-verify; pip install 'lowrank_jax\[eval\]'"):
        WrittenExam(options(exams, "math"), Examinee(BYTES, 200))
    written = WrittenExam(options(exams, "gsm8k", max_rows=1), Examinee(BYTES, 200))
    assert "gsm8k: math_verify is not computed; pip install" in caplog.text
    found = written.score(["#### 2"], ["2"])
    assert found == {"n": 1, "main": 1} | dict.fromkeys(
        (name + end for name in ("strict", "flexible", "stated") for end in ("", "_correct")), 1
    )


def test_the_official_files_are_read_whole(data_folder):
    counts = {"mmlu": 14042, "gsm8k": 1319, "math": 5000, "pubmedqa": 500, "medqa": 1273, "phrasebank": 4846}
    assert {name: len(load_exam(name, "", data_folder)) for name in EXAMS if EXAMS[name].shots} == counts


@pytest.mark.parametrize(
    ("more", "remedy"),
    [
        ({"shots": 2}, "; set truncate to cut .* prompts, or set fewer shots, or take a base with more positions$"),
        ({"truncate": True}, "the model reads 1; take a base with more positions$"),
    ],
)
def test_a_question_that_is_too_long_has_remedies_that_are_left(exams, more, remedy):
    with pytest.raises(UserError, match=remedy):
        ChoiceExam(options(exams, "mmlu", **more), Examinee(Words(), 1, framing=Framing((900,))))
