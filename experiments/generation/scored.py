"""The record of an ended run with the metrics of its decoded texts: of generation data sets, and of written exams."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.schema import unpack
from experiments.records import run_folder, run_record
from lowrank_jax.core.errors import UserError
from lowrank_jax.core.files import kind_of
from lowrank_jax.data.builders.nlg.source import load_nlg
from lowrank_jax.data.builders.nlg.specs import SEEN
from lowrank_jax.forms.generation import GENERATION
from lowrank_jax.tasks.exams.scores import WRITTEN, score_texts
from lowrank_jax.tasks.nlg.scores import score_by
from lowrank_jax.tasks.nlg.task import NlgConfig, decoded_split, inputs_of
from lowrank_jax.train.tracking import read_decoded

AGAIN = "copy the file again, or train the run again"


def score_run(folder: Path, data_dir: str | None) -> dict:
    """The record of a run with the metrics of its decoded texts.

    Raises:
      UserError: the folder has no finished run, or one that wrote neither texts of the task `nlg` nor answers to an
        exam; or its files are damaged, or the data are not those of the run.
    """
    record = run_record.read_result(folder / run_folder.RESULT)
    if record is None or record.get("status") != "finished":
        raise UserError(f"{folder}: no finished run; give a run folder with {run_folder.RESULT}")
    if missing := [key for key in ("name", "config", "evaluations") if not record.get(key)]:
        raise UserError(f"{folder / run_folder.RESULT} has no {missing[0]}: it is no record of a whole run")
    exams, section = _exams(folder, record["config"]), dict(record["config"].get("task") or {})
    nlg = section.pop("name", None) == "nlg"
    if not nlg and not exams:
        raise UserError(
            f"{folder}: its task is not nlg, and no entry of its evals writes an exam; other texts have no metrics"
        )
    if kind_of(folder / run_folder.DECODED) is None:
        raise UserError(
            f'{folder} has no {run_folder.DECODED}: no entry of its evals wrote its texts; train with "write": true'
        )
    texts = _texts(folder)
    if nlg:
        _score_nlg(folder, record, section, [text for text in texts if text["name"] not in exams], data_dir)
    for step, name in _written(text for text in texts if text["name"] in exams):
        own = [text for text in texts if (text["step"], text["name"]) == (step, name)]
        entry = _entry(folder, record, step, name)
        if (asked := entry.get(f"{name}/n")) is not None and asked != len(own):
            raise UserError(
                f"{folder / run_folder.DECODED} has {len(own)} answers of {name!r} at step {step}, and the run wrote "
                f"{asked:g}; {AGAIN}"
            )
        golds = [text["references"][0] for text in own]
        found = score_texts(exams[name], [text["continuation"] for text in own], golds)
        entry.update({f"{name}/{metric}": value for metric, value in found.items()})
    return record


def _texts(folder: Path) -> list[dict[str, Any]]:
    """The texts of decoded.jsonl, of which there are some."""
    path, texts = folder / run_folder.DECODED, read_decoded(folder)
    if not texts:
        raise UserError(f"{path} has no texts; {AGAIN}")
    for number, text in enumerate(texts, 1):
        references = text.get("references")
        parts = [text.get(key) for key in ("name", "prompt", "continuation")]
        parts += references if isinstance(references, list) and references else [None]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"line {number} of {path} is damaged; {AGAIN}")
    return texts


def _exams(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> exam of the evaluations that write an exam's answers."""
    evals = {name: one for name, one in (config.get("evals") or {}).items() if isinstance(one, Mapping)}
    found = {name: one["task"] for name, one in evals.items() if one.get("type") == GENERATION and one.get("task")}
    for name, exam in found.items():
        if exam not in WRITTEN:
            where = f"{folder / run_folder.RESULT}: config.evals.{name}.task"
            raise UserError(f"{where} is {exam!r}; answers are written to {', '.join(WRITTEN)} alone")
    return found


def _written(texts: Iterable[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """(step, name) of each evaluation that wrote texts."""
    return list(dict.fromkeys((text["step"], text["name"]) for text in texts))


def _score_nlg(folder: Path, record: dict, section: dict, texts: Sequence[dict], data_dir: str | None) -> None:
    """Puts the scores of a generation data set's texts into the record."""
    known = {field.name for field in dataclasses.fields(NlgConfig)}
    section = {key: value for key, value in section.items() if key in known}
    config = unpack(section, NlgConfig, f"{folder / run_folder.RESULT}: config.task")
    loaded, _ = load_nlg(config.task, decoded_split(config), data_dir or config.data_dir, config.allow_partial)
    rows = inputs_of(config, loaded)
    evals = record["config"].get("evals") or {}
    left_out = {name: why for name, why in (record.get("missing") or {}).items() if name in evals}  # optional exams
    for step, name in _written(texts):
        own = [text for text in texts if (text["step"], text["name"]) == (step, name)]
        _check_same(folder, own, rows)
        scored = score_by(config.task, [text["continuation"] for text in own], rows, SEEN[config.seen])
        entry = _entry(folder, record, step, name)
        entry |= {f"{name}/{metric}": value for metric, value in scored.values.items()}
        record["missing"] = {**left_out, **scored.missing}
    if not record.get("missing", True):
        del record["missing"]


def _check_same(folder: Path, texts: Sequence[dict], rows: Sequence) -> None:
    """Raises UserError where the texts are of other inputs or references than `rows`."""
    if len(texts) != len(rows):
        raise UserError(f"{folder}: it decoded {len(texts)} inputs and the data have {len(rows)}; give its data_dir")
    for number, (text, row) in enumerate(zip(texts, rows, strict=True), 1):
        if text.get("prompt") != row.context or tuple(text.get("references") or ()) != row.references:
            raise UserError(f"{folder}: decoded text {number} is of another input than {row.place}; give its data_dir")


def _entry(folder: Path, record: dict, step: int, name: str) -> dict:
    """The evaluation of the record that has the scores of `name` at `step`."""
    for entry in record.get("evaluations") or []:
        if entry.get("step") == step and any(key.startswith(f"{name}/") for key in entry):
            return entry
    raise UserError(f"{folder}: its record has no evaluation {name!r} at step {step}; its decoded.jsonl is of another")
