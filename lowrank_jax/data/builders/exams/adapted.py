"""Reads AdaptLLM's test files for biomedicine and finance, whose rows are whole prompts with options or a label.

Cheng et al. (arXiv 2309.09530) publish them as AdaptLLM/medicine-tasks and AdaptLLM/finance-tasks: a test.json for each
exam, a list of rows (JSON lines are read too). "input" has the question and the worked examples before it, if any.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.exams.rows import ExamRow
from lowrank_jax.data.builders.nlg.files import check_reference, read_objects, read_value, read_whole, take

Reader = Callable[[Path, str], Iterator[ExamRow]]


def choices(count: int, groups: int = 0) -> Reader:
    """Makes a reader of rows {"input", "options", "gold_index"}, also with "class_id" where groups are scored apart.

    Args:
      count: how many options each row has.
      groups: how many; each row's "class_id", 0 to groups - 1, becomes its subject. 0: rows have no "class_id".

    Returns:
      (file, split) -> rows. It raises UserError: a key is missing, a text is empty, the options are not `count`
      different ones, or an index is out of range.
    """

    def read(path: Path, split: str) -> Iterator[ExamRow]:
        del split
        for where, row in _rows(path):
            text, options = take(where, row, "input", str, empty=False), take(where, row, "options", list)
            if not all(isinstance(option, str) and option.strip() for option in options):
                raise UserError(f"{where}: 'options' is not a list of texts; use the official file")
            if len(options) != count or len(set(options)) != count:
                shown = ", ".join(options)[:60] or "none"
                raise UserError(f"{where}: 'options' are {shown}; this exam has {count} different ones")
            right = _number(where, row, "gold_index", count)
            subject = str(_number(where, row, "class_id", groups)) if groups else ""
            yield ExamRow(where, text, tuple(options), right, subject=subject)

    return read


def read_labels(path: Path, split: str) -> Iterator[ExamRow]:
    """Reads rows {"input", "label"}; of a list of labels the first counts, as in the authors' scores.

    Raises:
      UserError: a key is missing, a text is empty, or the label is neither a text nor a list of texts.
    """
    del split
    for where, row in _rows(path):
        text, label = take(where, row, "input", str, empty=False), take(where, row, "label", object)
        answer = next(iter(label), "") if isinstance(label, list) else label
        if not isinstance(answer, str):
            raise UserError(f"{where}: 'label' has type {type(answer).__name__}, not text; use the official file")
        check_reference(where, "label", answer)
        yield ExamRow(where, text, worked=answer, answer=answer)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and row, row) of a JSON list, or of JSON lines."""
    if not read_whole(path).lstrip().startswith("["):
        yield from read_objects(path)
        return
    for number, row in enumerate(read_value(path), 1):
        where = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: is a JSON {type(row).__name__}, not an object; use the official file")
        yield where, row


def _number(where: str, row: Mapping[str, Any], key: str, count: int) -> int:
    found = take(where, row, key, int)
    if not 0 <= found < count:
        raise UserError(f"{where}: {key!r} is {found}; it must be between 0 and {count - 1}")
    return found
