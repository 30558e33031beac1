"""experiments.score of many runs: those that cannot be scored are named at the end, and stop none of the others."""

import copy
import json

import pytest

from experiments.records.lines import read_lines
from experiments.records.run_record import read_result
from lowrank_jax.data.builders.nlg.source import load_nlg
from lowrank_jax.tasks.nlg.task import NlgConfig, inputs_of


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """METEOR, ROUGE-L and CIDEr are then missing, whatever this machine has: they take seconds."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.fixture
def write(tmp_path):
    """write(name, record, texts) -> the run's folder; texts: rows, or bytes."""

    def make(name, record, texts):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({**record, "name": name}))
        lines = texts if isinstance(texts, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in texts)
        (folder / "decoded.jsonl").write_bytes(lines)
        return folder

    return make


@pytest.fixture(scope="module")
def e2e(tiny_nlg):
    """(record, texts) of a run that has decoded E2E's test inputs."""
    config = NlgConfig("e2e", str(tiny_nlg / "e2e"), allow_partial=True)
    rows = inputs_of(config, load_nlg("e2e", "test", config.data_dir, allow_partial=True)[0])
    task = {"name": "nlg", "task": "e2e", "data_dir": config.data_dir, "allow_partial": True}
    return record(task, {"type": "generation", "write": True}), [
        text(row.context, row.references[0], row.references) for row in rows
    ]


EXAM = {"type": "generation", "task": "ner", "write": True}


def record(task, entry):
    return {
        "status": "finished",
        "labels": {},
        "config": {"task": task, "evals": {"decode": entry}},
        "evaluations": [{"step": 2, "loss": 1.0}, {"step": 4, "decode/n": 2.0, "decode/nonfinite": None}],
        "losses": [],
    }


def text(prompt="Who?", continuation="Ann (PER)", references=("Ann (PER)",)):
    return {"step": 4, "name": "decode", "prompt": prompt, "continuation": continuation, "references": [*references]}


def test_a_run_that_cannot_be_scored_stops_no_other(program, write, e2e, tmp_path):
    run, texts = e2e
    exam = record({"name": "exams"}, EXAM)
    lines = [json.dumps(row).encode() + b"\n" for row in texts]
    bad = {
        "a-damaged": (write("a-damaged", run, b"".join((lines[0], lines[1][:-3] + b"\n", *lines[2:]))), "line 2 of"),
        "b-short": (write("b-short", run, texts[1:]), f"it decoded {len(texts) - 1} inputs and the data have"),
        "c-torn": (write("c-torn", exam, json.dumps(text()).encode() + b"\n" + b'{"step": 4, '), "has 1 answers of"),
        "d-empty": (write("d-empty", run, b""), "has no texts"),
        "e-running": (write("e-running", {**run, "status": "interrupted"}, texts), "no finished run"),
    }
    before = {name: (folder / "result.json").read_bytes() for name, (folder, _) in bad.items()}
    good = [write("f-e2e", run, texts), write("g-exam", exam, [text(), text(continuation="Bob (LOC)")])]
    again = good[0]
    ended = program("score", f"--runs={tmp_path}/runs/*,{again}", f"--results={tmp_path / 'scored'}")
    said = ended.err.splitlines()
    assert (ended.status, len(said)) == (2, len(bad)), ended.err
    for line, (name, (folder, message)) in zip(said, bad.items(), strict=True):
        assert line.startswith("error: ")
        assert name in line
        assert message in line
        assert (folder / "result.json").read_bytes() == before[name]
    assert ended.out.count("f-e2e: decode/n 2, decode/nonfinite none, decode/bleu") == 1
    found = [read_result(folder / "result.json") or {} for folder in good]
    assert found[0]["evaluations"][-1]["decode/bleu"] == pytest.approx(100)
    assert found[0]["missing"]["cider"] == "not computed: needs Java"
    assert found[1]["evaluations"][-1]["decode/entity_f1"] == 0.5
    assert [*read_lines(tmp_path / "scored.jsonl").values()] == found


def test_results_that_no_record_may_join_are_refused_before_anything_is_scored(program, write, e2e, tmp_path):
    folder = write("run", *e2e)
    before = (folder / "result.json").read_bytes()
    (tmp_path / "mine.jsonl").write_text('{"text": "a row"}\n')
    ended = program("score", f"--runs={folder}", f"--results={tmp_path / 'mine'}")
    assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", 1)
    assert "is no record of a run" in ended.err
    assert (folder / "result.json").read_bytes() == before


# Parts of a record, and of a text, that are not what a run writes: each was a traceback.
RECORDS = {
    "config": (None, {}),
    "evaluations": (None, []),
    "config.evals": ("decode", 3),
    "config.evals.decode.task": ("nerd", ["ner"], 7),
    "config.task.task": (["e2e"], 3, "e3e"),
    "config.task.data_dir": (5, ["a"]),
    "config.task.seen": (3.5, ["code"]),
    "config.task.max_prompts": ("2", -1),
}
TEXTS = {
    "name": (None, ["decode"], 3),
    "continuation": (None, ["a"], 3),
    "prompt": (None, 3),
    "references": (None, "a", 3, [], [3], {}),
}


def test_odd_parts_of_a_run_are_a_line_each(program, write, e2e, tmp_path):
    run, texts = e2e
    count = 0
    for path, values in {**RECORDS, **{f"text.{key}": values for key, values in TEXTS.items()}}.items():
        for value in values:
            both = copy.deepcopy({**run, "text": texts[0]})
            holder, parts = both, path.split(".")
            for part in parts[:-1]:
                holder = holder[part]
            holder[parts[-1]] = value
            if value is None:
                del holder[parts[-1]]
            changed = both.pop("text")
            write(f"run{count:02}", both, [changed, *texts[1:]])
            count += 1
    ended = program("score", f"--runs={tmp_path}/runs/*")
    assert (ended.status, ended.out, len(ended.err.splitlines())) == (2, "", count), ended.err
    for number, line in enumerate(ended.err.splitlines()):
        assert f"run{number:02}" in line
