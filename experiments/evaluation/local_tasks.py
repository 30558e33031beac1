"""Writes lm-eval's own tasks over official files that are on this machine: its prompts and metrics, no network.

A task keeps its name in lm-eval and includes lm-eval's own file; only where the data come from is replaced, and worked
examples are the first of their split. Financial PhraseBank, which lm-eval lacks, and MedQA, of which it has another
file with four options, are written out with the prompts of `tasks.exams.prompts`.
"""

import collections
import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.exams.rows import ExamRow
from lowrank_jax.data.builders.exams.source import DEV, TEST, TRAIN, exam_file, load_exam
from lowrank_jax.data.builders.nlg.files import read_objects, take
from lowrank_jax.tasks.exams.prompts import STYLES, completions, prompt

# MATH's subjects -> the names of lm-eval's tasks
MATH_TASKS = {
    "Algebra": "algebra",
    "Counting & Probability": "counting_and_prob",
    "Geometry": "geometry",
    "Intermediate Algebra": "intermediate_algebra",
    "Number Theory": "num_theory",
    "Prealgebra": "prealgebra",
    "Precalculus": "precalc",
}


def write_tasks(folder: Path, given: Iterable[str]) -> None:
    """Writes the tasks of some exams into a folder, for lm-eval's include_path.

    Args:
      folder: empty; also keeps what `datasets` makes of the rows.
      given: "exam=FOLDER of its files", of each exam.

    Raises:
      UserError: no such exam, or a file is missing or damaged.
    """
    for word in given:
        name, _, data_dir = word.partition("=")
        if name not in WRITERS:
            raise unknown_name("exam of --data", name, WRITERS)
        if not data_dir:
            raise UserError(f"--data={word}: give the folder of its files, --data={name}=FOLDER")
        WRITERS[name](folder, data_dir)


def _write_mmlu(folder: Path, data_dir: str) -> None:
    rows: dict[str, dict[str, list[dict]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for split in (TEST, DEV):
        for row in load_exam("mmlu", split, data_dir):
            own = {"question": row.question, "choices": list(row.options), "answer": row.right}
            rows[row.subject][split].append(own)
    tested = [subject for subject, splits in rows.items() if TEST in splits]
    for subject in tested:
        _write(folder, f"mmlu_{subject}", rows[subject], f"mmlu/default/mmlu_{subject}.yaml")
    mean = {"metric": "acc", "weight_by_size": True}
    group = {"group": "mmlu", "task": [f"mmlu_{subject}" for subject in tested], "aggregate_metric_list": [mean]}
    _yaml(folder / "mmlu.yaml", group)


def _write_gsm8k(folder: Path, data_dir: str) -> None:
    rows = {
        split: [{"question": row.question, "answer": row.worked} for row in found]
        for split, found in _splits("gsm8k", data_dir).items()
    }
    changes = {} if TRAIN in rows else {"training_split": None, "fewshot_split": None}
    _write(folder, "gsm8k", rows, "gsm8k/gsm8k.yaml", fewshot_config={"sampler": "first_n"}, **changes)


def _write_math(folder: Path, data_dir: str) -> None:
    load_exam("math", TEST, data_dir)  # checks each row
    rows: dict[str, list[Any]] = collections.defaultdict(list)
    for where, row in read_objects(exam_file("math", TEST, data_dir)):
        kind = take(where, row, "type", str)
        if kind not in MATH_TASKS:
            raise unknown_name(f"type of {where}", kind, MATH_TASKS)
        rows[MATH_TASKS[kind]].append({name: take(where, row, name, str) for name in ("problem", "solution")})
    for name, own in rows.items():
        source = f"hendrycks_math/hendrycks_math_{name}.yaml"
        _write(folder, f"hendrycks_math_{name}", {TEST: own}, source, training_split=None)


def _write_pubmedqa(folder: Path, data_dir: str) -> None:
    rows = {
        split: [
            {"QUESTION": row.question, "CONTEXTS": [row.context], "final_decision": row.options[row.right]}
            for row in found
        ]
        for split, found in _splits("pubmedqa", data_dir).items()
    }
    source = "pubmedqa/pubmedqa.yaml"
    _write(folder, "pubmedqa", rows, source, validation_split=None, fewshot_config={"sampler": "first_n"})


def _write_own(name: str) -> Any:
    """A writer of an exam that lm-eval does not have."""

    def write(folder: Path, data_dir: str) -> None:
        style = STYLES[name]
        made = [
            {"text": prompt(style, row), "options": [text[1:] for text in completions(style, row)], "right": row.right}
            for row in load_exam(name, "", data_dir)
        ]
        task = {
            "output_type": "multiple_choice",
            "test_split": TEST,
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{options}}",
            "doc_to_target": "{{right}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        _write(folder, name, {TEST: made}, "", **task)

    return write


WRITERS = {
    "mmlu": _write_mmlu,
    "gsm8k": _write_gsm8k,
    "math": _write_math,
    "pubmedqa": _write_pubmedqa,
    "medqa": _write_own("medqa"),
    "phrasebank": _write_own("phrasebank"),
}


def _splits(name: str, data_dir: str) -> dict[str, list[ExamRow]]:
    """The test rows, and the training rows where they are there."""
    found = {TEST: load_exam(name, TEST, data_dir)}
    with contextlib.suppress(UserError):  # there is no such file; a damaged one is refused below
        exam_file(name, TRAIN, data_dir)
        found[TRAIN] = []
    return {split: rows or load_exam(name, split, data_dir) for split, rows in found.items()}


def _write(folder: Path, name: str, rows: Mapping[str, list[dict]], source: str, **more: Any) -> None:
    """A task's rows as JSON lines, and its file, which includes lm-eval's own where `source` names one."""
    import lm_eval.tasks

    files = {}
    for split, own in rows.items():
        file = folder / f"{name}.{split}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
        files[split] = str(file)
    included = {"include": str(Path(lm_eval.tasks.__file__).parent / source)} if source else {}
    kept = {"data_files": files, "cache_dir": str(folder / "cache")}
    data = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kept}
    _yaml(folder / f"{name}.yaml", {**included, "task": name, **data, **more})


def _yaml(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")  # YAML reads JSON
