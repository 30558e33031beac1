"""What `texts.score` says of rows that cannot be scored, and of metrics that cannot be computed."""

import sys
import threading

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.texts import bleu, chrf, forms, meteor, rouge, score, ter
from lowrank_jax.metrics.texts.rows import Texts

JAVA = {"meteor", "rouge_l", "cider"}
SIX = "A pub of six words."


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "predictions", "references", "said"),
    [
        ("e2e", [], [], "no predictions"),
        ("e2e", ["a", "b"], [["a"]], "row 2 has no references"),
        ("e2e", ["a"], [["a"], ["b"], ["c"]], "row 2 has no prediction"),
        ("e2e", ["a", "b"], [["a"], []], "row 2 of 2 has no reference;"),
        ("e2e", ["a", "b"], [["a"], ["b", "\n "]], "row 2 of 2: reference 2 is empty"),
        ("samsum", ["a"], [["", "a"]], "row 1 of 1: reference 1 is empty"),
        ("dart", ["a", "b"], [["a", ""], ["", " "]], "row 2 of 2 has no reference but empty ones"),
        ("webnlg", ["a"], ["abc"], "row 1 of 1: its references are of type str"),
        ("webnlg", ["a"], [None], "row 1 of 1: its references are of type NoneType"),
        ("webnlg", ["a"], [[""] * 6 + ["a"]], "row 1 of 1 has no reference but empty ones"),
        ("webnlg", ["a", None], [["a"], ["b"]], "row 2 of 2: the prediction is of type NoneType"),
        ("webnlg", ["a"], [["a", 3]], "row 1 of 1: reference 2 is of type int"),
        ("e2e-clean", ["a"], [["a"]], "one of e2e, webnlg, dart, samsum"),
    ],
)
def test_rows_that_cannot_be_scored(kind, predictions, references, said):
    with pytest.raises(UserError, match=said) as error:
        score(kind, predictions, references)
    assert "\n" not in str(error.value)


def test_without_java(no_java):
    found = score("e2e", [SIX], [[SIX]])
    assert found.missing == dict.fromkeys(JAVA, "not computed: needs Java")
    assert found.values.keys() == {"bleu", "bleu_python", "nist", "nist_python"}
    found = score("dart", [SIX], [[SIX]])
    assert found.missing == {"meteor": "not computed: needs Java"}
    assert found.values == {"ter": 0, "bleu": pytest.approx(100), "chrf": pytest.approx(1)}


def test_where_java_fails(no_java, tmp_path):
    """As macOS' own `java` does on a machine without one."""
    (tmp_path / "java").write_text("#!/bin/sh\necho unable to locate a runtime >&2\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    said = "ended with status 3: unable to locate a runtime"
    found = score("e2e", [SIX] * 3, [[SIX]] * 3)
    assert found.missing == dict.fromkeys(JAVA, f"not computed: Stanford's tokenizer {said}")
    assert score("webnlg", ["A pub."] * 3, [["A pub."]] * 3).missing == {"meteor": f"not computed: METEOR {said}"}


@pytest.mark.parametrize(
    ("library", "kind", "metrics"),
    [
        ("sacrebleu", "e2e", {"bleu", "bleu_python", "nist", "nist_python"}),
        ("nltk", "webnlg", {"meteor", "ter"}),
        ("pyter", "dart", {"ter"}),
        ("rouge_score", "samsum", {"rouge1", "rouge2", "rouge_l"}),
    ],
)
def test_without_a_library(library, kind, metrics, no_java, monkeypatch):
    for name in [library, *sys.modules]:
        if name.split(".")[0] == library:
            monkeypatch.setitem(sys.modules, name, None)
    found = score(kind, ["A pub."], [["A pub."]])
    said = f"not computed: needs {library}: install the extra [nlg]"
    assert {name: text for name, text in found.missing.items() if "Java" not in text} == dict.fromkeys(metrics, said)


def test_a_metric_that_breaks_stops_nothing(no_java, monkeypatch):
    def broken(texts):
        raise ZeroDivisionError

    monkeypatch.setattr(rouge, "rouge", broken)
    found = score("samsum", ["a"], [["a"]])
    assert not found.values
    assert set(found.missing.values()) == {"not computed: ZeroDivisionError"}


def test_what_is_not_a_number_is_missing(no_java):
    """measure_scores.py -p divides by a count of n-grams that is not positive where predictions are short."""
    found = score("e2e", ["", "a"], [["a pub"], ["a"]])
    assert {"bleu_python", "nist_python"} <= found.missing.keys()
    assert "not a number" in found.missing["nist_python"]
    assert found.values["nist"] > 0


def test_python_is_left_in_one_thread(no_java, monkeypatch):
    """Two threads that import parts of sacrebleu at once can lock each other out: then one has no score."""
    threads = []

    def recorded(function):
        def record(texts):
            threads.append(threading.current_thread())
            return function(texts)

        return record

    for module, name in ((bleu, "multi_bleu"), (chrf, "chrf"), (forms, "nltk_words")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name)))
    score("webnlg", ["A pub."], [["A pub."]])
    assert threads == [threading.current_thread()] * 3


def test_ter_in_processes(monkeypatch):
    """Three processes give what one computes, with the caller's sys.path; an empty reference counts as 1."""
    rows = [(" ".join("abcdefg"[: i % 7 + 1]), [" ".join("gabcde"[: i % 5 + 1]), "x", ""]) for i in range(27)]
    alone = [ter.least(*row) for row in rows]
    assert max(alone) == 1  # otherwise "x", of one word, would be 7
    assert 0 < min(alone) < 1
    monkeypatch.setattr(ter, "processors", lambda: 3)
    texts = Texts([text for text, _ in rows], [references for _, references in rows])
    assert ter.ter(texts) == pytest.approx(sum(alone) / len(alone), rel=1e-12)


def test_a_row_that_two_calls_share_has_its_ter_computed_once(no_java, monkeypatch):
    asked = []

    def in_process(rows):
        asked.extend(rows)
        return [ter.least(*row) for row in rows]

    monkeypatch.setattr(ter, "_in_process", in_process)
    texts, references = [SIX, "a b", "a b", ""], [[SIX], ["a b c"], ["a b c"], ["a"]]
    known = {}
    part = score("webnlg", texts[:2], references[:2], known).values["ter"]
    whole = score("webnlg", texts, references, known).values["ter"]
    assert len(asked) == len(set(asked)) == 3
    assert part == pytest.approx(score("webnlg", texts[:2], references[:2]).values["ter"], rel=1e-12)
    assert whole == pytest.approx(sum(ter.least(*row) for row in zip(texts, references, strict=True)) / 4, rel=1e-12)
    assert score("webnlg", texts, references, known).values["ter"] == whole


def test_meteor_in_processes(monkeypatch):
    """Each row goes to one of the processes, and one of them scores all rows' counts."""

    class Program:
        def __enter__(self):
            self.seen = started.append(self) or []
            return self

        def __exit__(self, *exception):
            pass

        def statistics(self, rows):
            self.seen = [text for text, _ in rows]
            return self.seen

        def total(self, statistics):
            return float(sum(map(int, statistics)))

    started = []
    monkeypatch.setattr(meteor, "Program", Program)
    monkeypatch.setattr(meteor, "processors", lambda: 3)
    texts = Texts([str(i) for i in range(11)], [["a"]] * 11)
    assert meteor.meteor(texts) == sum(range(11))
    assert len(started) == 1  # too few rows for a second
    monkeypatch.setattr(meteor, "TEXTS", 2)
    assert meteor.meteor(texts) == sum(range(11))
    assert sorted(len(program.seen) for program in started[1:]) == [3, 4, 4]


def test_where_ter_fails(no_java, monkeypatch, tmp_path):
    """What the process said last is the reason."""
    (tmp_path / "broken").write_text("raise SystemExit('no memory')")
    monkeypatch.setattr(ter, "__file__", str(tmp_path / "broken"))
    assert score("dart", [SIX], [[SIX]]).missing["ter"] == "not computed: TER ended with status 1: no memory"
