"""Tiny exams in their official forms, for tests that must not need the real files."""

import csv
import json

SUBJECTS = ("anatomy", "high_school_physics")  # two of lm-eval's own
TOPICS = ("a bone", "the heart", "an eye", "a force", "the sun")


def _choice(text, options, right, **more):
    return {"input": text, "options": list(options), "gold_index": right, **more}


ROLES = ("Background", "Objective", "Methods", "Results", "Conclusions")
TONES = ("negative", "neutral", "positive")
ROLE, HEADLINE = "What part of an abstract is this: ", 'Headline: "gold {}" Now answer: is it about the past?'
# Rows as AdaptLLM publishes them: in "input" the examples and the question, which nothing follows.
ADAPTED = {
    "medicine-tasks/RCT": [
        _choice(f'{ROLE}"We asked 40." Methods\n\n{ROLE}"Pain fell in {at}."', ROLES, right)
        for at, right in enumerate((3, 3, 2, 4, 0))
    ],
    "finance-tasks/FiQA_SA": [
        _choice(f"$ABC up {at} %\nHow does it sound?", TONES, right) for at, right in enumerate((2, 2, 1, 0))
    ],
    "finance-tasks/FPB": [_choice(f"Sales fell by {at}.\nTone?", TONES, right) for at, right in enumerate((0, 0, 1))],
    "finance-tasks/Headline": [
        _choice(
            f"{HEADLINE.format('fell')} Yes\n\n{HEADLINE.format(at)}", ("No", "Yes"), at * at % 3 % 2, class_id=at % 9
        )
        for at in range(27)
    ],
    "finance-tasks/NER": [
        {
            "input": "Ann of Bank lent.\nNames: Ann (PER), Bank (ORG)\n\nLee and Co.\nNames:",
            "label": "Lee (PER), Co (ORG)",
        },
        {"input": "Rome is far.\nNames:", "label": ["Rome (LOC)"]},
        {"input": "The Fund pays Kim.\nNames:", "label": "Fund (ORG), Kim (PER)"},
    ],
    "finance-tasks/ConviFinQA": [
        {"input": "Sales: 8 and 10.\nBy what share did they rise?", "label": "25.0%"},
        {"input": "Sales: 8 and 10.\nHow much more?", "label": "2"},
        {"input": "Costs: 5.\nCosts?", "label": "5"},
    ],
}


def write_exams(folder):
    """Writes mmlu (10 rows, 2 examples a subject), gsm8k (10 and 2), pubmedqa, medqa, math, phrasebank, AdaptLLM."""
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
    for name, rows in ADAPTED.items():
        _whole(folder / name / "test.json", json.dumps([{"id": at, **row} for at, row in enumerate(rows)]))
    return folder


def _table(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows(rows)


def _lines(file, rows):
    _whole(file, "".join(json.dumps(row) + "\n" for row in rows))


def _whole(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8", newline="")
