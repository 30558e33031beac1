"""Tiny exams in their official forms, for tests that must not need the real files."""

import csv
import json

SUBJECTS = ("anatomy", "high_school_physics")  # two of lm-eval's own
TOPICS = ("a bone", "the heart", "an eye", "a force", "the sun")


def write_exams(folder):
    """Writes mmlu (10 questions, 2 examples a subject), gsm8k (10 and 2), pubmedqa, medqa, math and phrasebank."""
    mmlu, columns = folder / "mmlu", ("subject", "question", "A", "B", "C", "D", "answer")
    for split, count in (("test", 5), ("dev", 2)):
        rows = [
            (
                subject,
                f" {split}: what is {topic}, no. {at}? ",
                f"{topic} {at}",
                "yes, all",
                "42",
                "none",
                "ABCD"[at % 4],
            )
            for subject in SUBJECTS
            for at, topic in enumerate(TOPICS[:count])
        ]
        _table(mmlu / f"{split}.csv", [columns, *rows])
    for split, count in (("test", 10), ("train", 2)):
        rows = [
            {"question": f"{split}: {a} and {a + 2} is?", "answer": f"It is <<{a}+{a + 2}>>.\n#### {2 * a + 2}"}
            for a in range(count)
        ]
        _lines(folder / "gsm8k" / f"{split}.jsonl", rows)
    kinds = ("Algebra", "Geometry")
    math = [
        {"problem": f"Find ${a}+1$.", "level": "Level 1", "type": kinds[a % 2], "solution": f"So $\\boxed{{{a + 1}}}$."}
        for a in range(4)
    ]
    _lines(folder / "math" / "test.jsonl", math)
    decisions = ("yes", "no", "maybe")
    rows = {
        str(at): {
            "QUESTION": f"Does it {at}?",
            "CONTEXTS": ["One.", f"Two{' more' * 12}."],
            "final_decision": decisions[at % 3],
        }
        for at in range(6)
    }
    _whole(folder / "pubmedqa" / "ori_pqal.json", json.dumps(rows))
    truth = {name: row["final_decision"] for name, row in rows.items() if int(name) < 4}
    _whole(folder / "pubmedqa" / "test_ground_truth.json", json.dumps(truth))
    options = dict(zip("ABCDE", TOPICS, strict=True))
    rows = [{"question": f"Which, {at}?", "options": options, "answer_idx": "ABCDE"[at]} for at in range(5)]
    _lines(folder / "medqa" / "test.jsonl", rows)
    lines = [f"Sales @ home rose {at} % .@{name}" for at, name in enumerate(("positive", "neutral", "negative") * 2)]
    _whole(folder / "phrasebank" / "Sentences_50Agree.txt", "\r\n".join(lines) + "\r\n")
    return folder


def _table(file, rows):
    file.parent.mkdir(exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def _lines(file, rows):
    _whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def _whole(file, text):
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="")
