"""Ten MMLU questions and ten GSM8K problems: our answers by both ways are those of lm-eval's Hugging Face backend.

The base is pico-llama, whose weights are in the repository; the backend's answers were recorded by `lm_eval_peer`. The
same comparison of SmolLM2-135M on 200 and 100 is a record (experiments/results/interop/lm_eval.json).
"""

import hashlib
import json
from pathlib import Path

import pytest
from by_path import module_at

from lowrank_jax.metrics.answers.verify import Verdicts

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "experiments" / "results" / "interop" / "lm_eval.json"


@pytest.fixture(scope="module")
def peer():
    return module_at(Path(__file__).with_name("lm_eval_peer.py"))


@pytest.fixture(scope="module")
def asked(peer, tmp_path_factory):
    """(folder of the official rows, lm-eval's requests, our model as lm-eval sees it, its answers)."""
    place = tmp_path_factory.mktemp("lm_eval")
    folder, tasks = place / "rows", place / "tasks"
    folder.mkdir()
    tasks.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        peer.write_few(folder)
        requests = peer.requests_of(folder, tasks)
        model = peer.our_model(peer.PICO)
        return folder, requests, model, peer.answers(model, requests, place / "done.json")


def check(peer, found):
    """Of each prompt the same choice, log-likelihoods within TOLERANCE, and the same text."""
    theirs, ours = peer.golden(peer.PICO), peer.digested(found)
    assert {task: answers.keys() for task, answers in ours.items()} == {
        task: answers.keys() for task, answers in theirs.items()
    }, "the prompts are not those that the backend was asked"
    for prompt, values in theirs["mmlu"].items():
        assert ours["mmlu"][prompt] == pytest.approx(values, rel=0, abs=peer.TOLERANCE)
        assert peer.pick(ours["mmlu"][prompt]) == peer.pick(values)
    assert ours["gsm8k"] == theirs["gsm8k"]


def test_the_recorded_answers_can_tell_models_apart(peer):
    """No option is picked by less than the tolerance, several are picked, and no two texts are the same."""
    theirs = peer.golden(peer.PICO)
    gaps = [top - next_best for *_, next_best, top in map(sorted, theirs["mmlu"].values())]
    assert len(gaps) == len({*theirs["gsm8k"].values()}) == peer.FEW
    assert min(gaps) > 100 * peer.TOLERANCE
    assert len({peer.pick(values) for values in theirs["mmlu"].values()}) > 1
    assert all(len(text.encode()) == peer.NEW_TOKENS for text in theirs["gsm8k"].values())


def test_lm_eval_drives_our_model_to_the_backends_answers(peer, asked):
    _, (choices, texts), model, found = asked
    assert (len(choices), len(texts), model.cut) == (4 * peer.FEW, peer.FEW, 0)
    check(peer, found)


def test_exams_inside_training_have_the_backends_answers(peer, asked, monkeypatch):
    # math-verify takes seconds to start, and no text has the right number; tests/metrics has it
    monkeypatch.setattr("lowrank_jax.tasks.exams.scores.verify_all", lambda golds, _: Verdicts([False] * len(golds), 0))
    folder, _, model, _ = asked
    check(peer, peer.forms(folder, model))


def test_the_record_says_the_same_of_smollm2(peer):
    """Against the recorded answers that are here; docs/evaluation.md has its figures."""
    record, kept = json.loads(RECORD.read_text()), peer.GOLDEN[peer.SMOLLM2]
    assert record["golden"] == {"file": kept.name, "sha256": hashlib.sha256(kept.read_bytes()).hexdigest()}
    assert not record["git"]["dirty"]
    theirs = peer.golden(peer.SMOLLM2)
    asked = len(theirs["mmlu"]), len(theirs["gsm8k"])
    assert asked == (record["questions"], record["problems"]) == (peer.QUESTIONS, peer.PROBLEMS)
    docs = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = [line for line in docs.splitlines() if line.endswith(f"{peer.PROBLEMS} of {peer.PROBLEMS} |")]
    assert len(rows) == len(record["agreement"]) == 3
    for row, found in zip(rows, record["agreement"].values(), strict=True):
        assert found["furthest"] < peer.TOLERANCE
        shown = f"{found['furthest']:.1e}".replace("e-0", "e-")
        counts = f"{found['same_choices']} of {asked[0]} | {shown} | {found['same_texts']} of {asked[1]}"
        assert row.endswith(f"| {counts} |")
        assert (found["same_choices"], found["same_texts"]) == asked
