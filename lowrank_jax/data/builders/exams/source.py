"""The exams by name: their files, which split is scored and which one gives the examples; reads a split."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.exams import adapted, readers
from lowrank_jax.data.builders.exams.rows import ExamRow
from lowrank_jax.data.builders.nlg.files import check_unicode, find_file

FOLDER_VARIABLE = "LOWRANK_JAX_EXAMS_DIR"
TEST, TRAIN, DEV, VAL, ALL = "test", "train", "dev", "val", "all"


@dataclasses.dataclass(frozen=True)
class ExamSpec:
    """The files of an exam.

    Attributes:
      title, source: its name, and where the official files come from.
      folders: names that its folder may have within a folder of several exams.
      files: split -> the file's name (which may also end with .gz or .xz).
      read: (file, split) -> rows.
      beside: further files that reading needs.
      scored, shots: the split whose rows are asked, and the one that examples come from; where they are the same one,
        the rows that are shown are not asked. shots "": the rows are whole prompts, which take no further examples.
    """

    title: str
    source: str
    folders: tuple[str, ...]
    files: Mapping[str, str]
    read: Callable[[Path, str], Iterator[ExamRow]]
    beside: tuple[str, ...] = ()
    scored: str = TEST
    shots: str = TRAIN


def _adapted(title: str, package: str, folder: str, read: adapted.Reader) -> ExamSpec:
    """An exam of AdaptLLM's, whose folder may lie by itself or within the published package."""
    folders = (folder, f"{package}/{folder}", title.lower().replace(" ", "_"))
    source = f"AdaptLLM/{package}, {folder}/test.json"
    return ExamSpec(title, source, folders, {TEST: "test.json"}, read, shots="")


HEADLINES = 9  # questions about each headline: does it talk about the price, the past, another asset, ...
EXAMS = {
    "mmlu": ExamSpec(
        "MMLU",
        "hendrycks/test, its CSV files of a split joined, with the columns subject, question, A, B, C, D, answer",
        ("mmlu",),
        {TEST: "test.csv", DEV: "dev.csv", VAL: "val.csv"},
        readers.read_mmlu,
        shots=DEV,
    ),
    "gsm8k": ExamSpec(
        "GSM8K",
        "openai/grade-school-math, grade_school_math/data",
        ("gsm8k",),
        {TEST: "test.jsonl", TRAIN: "train.jsonl"},
        readers.read_gsm8k,
    ),
    "math": ExamSpec(
        "MATH",
        "hendrycks/math, a row a line",
        ("math", "math-test"),
        {TEST: "test.jsonl", TRAIN: "train.jsonl"},
        readers.read_math,
    ),
    "pubmedqa": ExamSpec(
        "PubMedQA",
        "pubmedqa/pubmedqa, data/",
        ("pubmedqa",),
        {TEST: "ori_pqal.json", TRAIN: "ori_pqal.json"},
        readers.read_pubmedqa,
        (readers.TRUTH,),
    ),
    "medqa": ExamSpec(
        "MedQA (USMLE)",
        "jind11/MedQA, data_clean/questions/US",
        ("medqa", "medqa-usmle", "medqa-usmle-test"),
        {TEST: "test.jsonl", DEV: "dev.jsonl", TRAIN: "train.jsonl"},
        readers.read_medqa,
    ),
    "phrasebank": ExamSpec(
        "Financial PhraseBank",
        "FinancialPhraseBank-v1.0, saved as UTF-8",
        ("phrasebank", "financial-phrasebank"),
        {ALL: "Sentences_50Agree.txt"},
        readers.read_phrasebank,
        scored=ALL,
        shots=ALL,
    ),
    "rct": _adapted("RCT", "medicine-tasks", "RCT", adapted.choices(5)),
    "convfinqa": _adapted("ConvFinQA", "finance-tasks", "ConviFinQA", adapted.read_labels),  # their spelling
    "fiqa_sa": _adapted("FiQA SA", "finance-tasks", "FiQA_SA", adapted.choices(3)),
    "fpb": _adapted("FPB", "finance-tasks", "FPB", adapted.choices(3)),
    "headline": _adapted("Headline", "finance-tasks", "Headline", adapted.choices(2, HEADLINES)),
    "ner": _adapted("NER", "finance-tasks", "NER", adapted.read_labels),
}


def exam_spec(name: str) -> ExamSpec:
    """The files of an exam.

    Raises:
      UserError: no such exam.
    """
    if name not in EXAMS:
        raise unknown_name("exam", name, EXAMS)
    return EXAMS[name]


def exam_file(name: str, split: str = "", data_dir: str | os.PathLike | None = None) -> Path:
    """The file of a split.

    Args: as `load_exam`.

    Raises:
      UserError: no such exam, split, folder or file.
    """
    path, folder, wanted = _sought(name, split, data_dir)
    if path is None:
        spec = exam_spec(name)
        if other := _other_owner(name, folder, wanted):
            raise UserError(f"{folder} is the folder of {other}, not of {spec.title}; name the one above as data_dir")
        raise UserError(f"{folder} has no {wanted} (or .gz, .xz); put {spec.title}'s own there ({spec.source})")
    return path


def has_exam(name: str, split: str = "", data_dir: str | os.PathLike | None = None) -> bool:
    """Whether the file of a split is there.

    Args: as `load_exam`.

    Raises:
      UserError: no such exam, split or folder.
    """
    return _sought(name, split, data_dir)[0] is not None


def _sought(name: str, split: str, data_dir: str | os.PathLike | None) -> tuple[Path | None, Path, str]:
    """(the file of a split if it is there, its folder, its name)."""
    spec = exam_spec(name)
    split = split or spec.scored
    if split not in spec.files:
        raise unknown_name(f"split of {name}", split, spec.files)
    given = data_dir or os.environ.get(FOLDER_VARIABLE)
    if not given:
        raise UserError(f"{name}: set data_dir (or {FOLDER_VARIABLE}) to a folder of its files ({spec.source})")
    root = Path(given).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; data_dir (or {FOLDER_VARIABLE}) names one of {spec.title}'s files")
    folder = next((root / each for each in spec.folders if (root / each).is_dir()), root)
    wanted = spec.files[split]
    path = None if _other_owner(name, folder, wanted) else find_file(folder, (wanted,))
    return path, folder, wanted


def _other_owner(name: str, folder: Path, wanted: str) -> str | None:
    """Title of another exam that a folder is by its name, and whose file has the same name; None if there is none."""
    called = folder.resolve().name
    if called in _names(EXAMS[name]):
        return None
    return next((s.title for s in EXAMS.values() if called in _names(s) and wanted in s.files.values()), None)


def _names(spec: ExamSpec) -> set[str]:
    return {each.rpartition("/")[2] for each in spec.folders}


def exam_files(name: str, split: str = "", data_dir: str | os.PathLike | None = None) -> list[Path]:
    """All files that `load_exam` reads for a split; none where they do not exist."""
    try:
        path = exam_file(name, split, data_dir)
    except UserError:  # who reads them says what is wrong
        return []
    return [path, *(file for each in exam_spec(name).beside if (file := find_file(path.parent, (each,))))]


def load_exam(name: str, split: str = "", data_dir: str | os.PathLike | None = None) -> list[ExamRow]:
    """The rows of a split in the order of its file.

    Args:
      name: of EXAMS.
      split: "" is the one that is scored.
      data_dir: the exam's folder, or one of several exams' folders; default $LOWRANK_JAX_EXAMS_DIR.

    Raises:
      UserError: no such exam, split, folder or file; or a row is damaged.
    """
    path = exam_file(name, split, data_dir)
    split = split or exam_spec(name).scored
    rows = list(exam_spec(name).read(path, split))
    if not rows:
        raise UserError(f"{path}: has no rows of the split {split}; use the official file")
    for row in rows:
        check_unicode(row.place, "".join((row.question, row.context, row.worked, *row.options)))
    return rows


def exam_digest(name: str, splits: Sequence[str], data_dir: str | os.PathLike | None = None) -> str:
    """sha256 of the rows of some splits, whatever files they come from.

    Raises:
      UserError: as `load_exam`.
    """
    found = hashlib.sha256()
    for split in splits:
        for row in load_exam(name, split, data_dir):
            found.update(json.dumps({**dataclasses.asdict(row), "place": ""}).encode() + b"\n")
    return found.hexdigest()
