"""Reads the questions of an exam and the worked examples before each, as an entry of `config.evals` asks."""

import collections
from typing import NamedTuple

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.data.builders.exams.rows import ExamRow
from lowrank_jax.data.builders.exams.source import EXAMS, load_exam
from lowrank_jax.tasks.base import spaced
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.prompts import prompt, style_of


class ExamPrompt(NamedTuple):
    """A question that is asked: its row, and the text before its answer."""

    row: ExamRow
    prompt: str


def read_questions(options: ExamOptions) -> list[ExamPrompt]:
    """The questions that are asked, in the order of the file.

    Raises:
      UserError: as `load_exam`; an unknown subject, or fewer examples than shots.
    """
    spec, style = EXAMS[options.task], style_of(options.task, options.prompt)
    rows = load_exam(options.task, options.split, options.data_dir)
    if options.subjects:
        known = dict.fromkeys(row.subject for row in rows)
        for subject in options.subjects:
            if subject not in known:
                raise unknown_name(f"subject of {options.task}", subject, known)
        rows = [row for row in rows if row.subject in options.subjects]
    pool: list[ExamRow] = []
    if options.shots and (options.split or spec.scored) == spec.shots:
        pool = spaced(rows, options.shots)
        rows = [row for row in rows if row not in pool]
    elif options.shots:
        pool = load_exam(options.task, spec.shots, options.data_dir)
    by_subject: dict[str, list[ExamRow]] = collections.defaultdict(list)
    for row in pool:
        by_subject[row.subject].append(row)
    found = []
    for row in spaced(rows, options.max_rows or None):
        shots = by_subject[row.subject][: options.shots]
        if len(shots) < options.shots:
            about = f" about {row.subject}" if row.subject else ""
            raise UserError(
                f"{row.place}: {options.shots} examples are asked for, and the split {spec.shots} has {len(shots)}"
                f"{about}; set fewer shots"
            )
        found.append(ExamPrompt(row, prompt(style, row, shots)))
    if not found:
        raise UserError(f"{options.task}: no question is left to ask; set fewer shots, or give more rows")
    return found
