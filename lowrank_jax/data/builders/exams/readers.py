"""Reads the official files of exams row by row; an error names the file and the row."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.exams.rows import ExamRow
from lowrank_jax.data.builders.nlg.files import check_reference, find_file, read_objects, read_table, read_value, take
from lowrank_jax.data.lines import read_lines

LETTERS = "ABCDE"
DECISIONS = ("yes", "no", "maybe")
SENTIMENTS = ("negative", "neutral", "positive")
NUMBER = re.compile(r"-?\$?\d[\d,]*(\.\d+)?")
FINAL = "####"  # stands before the number that a GSM8K answer comes to
BOXES = ("\\boxed", "\\fbox")
TRUTH = "test_ground_truth.json"  # the ids of PubMedQA's test rows
OPTIONS = LETTERS[:4]


def read_mmlu(path: Path, split: str) -> Iterator[ExamRow]:
    """Rows of a CSV file with the columns subject, question, A, B, C, D and answer, a letter.

    Raises:
      UserError: a column is missing, a text is empty, or the answer is none of A to D.
    """
    del split
    for where, row in read_table(path, ("subject", "question", *OPTIONS, "answer")):
        for name in ("subject", "question"):
            check_reference(where, name, row[name])
        letter = row["answer"].strip()
        if letter not in tuple(OPTIONS):
            raise UserError(f"{where}: 'answer' is {letter[:40]!r}; it must be one of {', '.join(OPTIONS)}")
        options = tuple(row[name] for name in OPTIONS)
        yield ExamRow(where, row["question"], options, OPTIONS.index(letter), subject=row["subject"].strip())


def read_gsm8k(path: Path, split: str) -> Iterator[ExamRow]:
    """Rows of JSON lines with "question" and "answer", which ends with "#### number".

    Raises:
      UserError: a key is missing, or the answer comes to no number.
    """
    del split
    for where, row in read_objects(path):
        question, worked = (take(where, row, name, str, empty=False) for name in ("question", "answer"))
        _, mark, answer = worked.rpartition(FINAL)
        answer = answer.strip()
        if not mark or not NUMBER.fullmatch(answer):
            found = repr(answer[:40]) if mark else f"no {FINAL}"
            raise UserError(f"{where}: 'answer' must end with '{FINAL} number', it has {found}; use the official file")
        yield ExamRow(where, question, worked=worked, answer=answer.replace(",", "").replace("$", ""))


def read_math(path: Path, split: str) -> Iterator[ExamRow]:
    """Rows of JSON lines with "problem" and "solution", whose last box is the answer, or with "problem" and "answer".

    Raises:
      UserError: a key is missing, or a solution has no box.
    """
    del split
    for where, row in read_objects(path):
        problem = take(where, row, "problem", str, empty=False)
        if "solution" not in row and "answer" in row:
            answer = take(where, row, "answer", str, empty=False)
            yield ExamRow(where, problem, worked=answer, answer=answer)
            continue
        solution = take(where, row, "solution", str, empty=False)
        answer = last_box(solution)
        if not answer:
            raise UserError(f"{where}: 'solution' has no answer in a \\boxed{{...}}; use the official file")
        yield ExamRow(where, problem, worked=answer, answer=answer)


def last_box(text: str) -> str:
    """The content of the last \\boxed{...}, \\fbox{...} or "\\boxed x" of a text; "" without one."""
    at, name = max((text.rfind(name), name) for name in BOXES)
    if at < 0:
        return ""
    rest = text[at + len(name) :]
    if not rest.startswith("{"):
        return rest.strip().split("$")[0].split()[0] if rest.strip(" $") else ""
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[1:place].strip()
    return ""


def read_pubmedqa(path: Path, split: str) -> Iterator[ExamRow]:
    """Rows of ori_pqal.json: of the test split those that test_ground_truth.json beside it has, otherwise the rest.

    Raises:
      UserError: a key is missing, a decision is none of yes, no and maybe, or an id of the test has no row.
    """
    rows, truth_file = read_value(path), find_file(path.parent, (TRUTH,))
    if truth_file is None:
        raise UserError(
            f"{path.parent} has no {TRUTH}, which says which rows are the test's; put the official one there"
        )
    truth = read_value(truth_file)
    for file, value in ((path, rows), (truth_file, truth)):
        if not isinstance(value, Mapping):
            raise UserError(f"{file} is no JSON object of rows by their ids; use the official file")
    if lacking := [name for name in truth if name not in rows]:
        raise UserError(f"{path}: lacks the row {lacking[0]!r} of {truth_file.name}; use the official file")
    for name, row in rows.items():
        if (name in truth) != (split == "test"):
            continue
        where = f"{path}, row {name}"
        question = take(where, row, "QUESTION", str, empty=False)
        texts, decision = take(where, row, "CONTEXTS", list), take(where, row, "final_decision", str)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: 'CONTEXTS' is no list of texts; use the official file")
        yield ExamRow(where, question, DECISIONS, _right(where, decision, DECISIONS), context="\n".join(texts))


def read_medqa(path: Path, split: str) -> Iterator[ExamRow]:
    """Rows of JSON lines with "question", "options" by letter (four or five) and "answer_idx".

    Raises:
      UserError: a key is missing, or the answer is none of the options' letters.
    """
    del split
    for where, row in read_objects(path):
        question, options = take(where, row, "question", str, empty=False), take(where, row, "options", dict)
        letters = LETTERS[: len(options)]
        if len(options) < 2 or sorted(options) != list(letters):
            raise UserError(
                f"{where}: 'options' has {', '.join(map(str, options))[:60]}; it must have A, B, C and so on"
            )
        texts = tuple(take(where, options, letter, str, empty=False) for letter in letters)
        yield ExamRow(where, question, texts, _right(where, take(where, row, "answer_idx", str), tuple(letters)))


def read_phrasebank(path: Path, split: str) -> Iterator[ExamRow]:
    """Lines "sentence@sentiment".

    Raises:
      UserError: a line has no sentence, or another sentiment.
    """
    del split
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        sentence, _, sentiment = line.rstrip("\r\n").rpartition("@")
        if not sentence.strip():
            raise UserError(f"{where}: has no sentence before an '@'; write 'sentence@{SENTIMENTS[0]}'")
        yield ExamRow(where, sentence.strip(), SENTIMENTS, _right(where, sentiment.strip(), SENTIMENTS))


def _right(where: str, said: Any, known: tuple[str, ...]) -> int:
    if said not in known:
        raise UserError(f"{where}: the answer is {str(said)[:40]!r}; it must be one of {', '.join(known)}")
    return known.index(said)
