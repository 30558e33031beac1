"""Makes exams for one model: completions of a question to compare, or its prompt to continue; and scores them."""

import functools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics.answers.verify import installed
from lowrank_jax.metrics.classification import check_library, macro_f1
from lowrank_jax.tasks.base import Target, check_score_input, pad_id, round_up
from lowrank_jax.tasks.choice_rows import Candidate, ChoiceRows, candidate_arrays
from lowrank_jax.tasks.exams.options import ExamOptions
from lowrank_jax.tasks.exams.prompts import STYLES, completions, style_of
from lowrank_jax.tasks.exams.rows import read_questions
from lowrank_jax.tasks.exams.scores import JUDGED, MATH, score_classes, score_texts
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.glue.task import default_buckets
from lowrank_jax.text.joining import encode_with_cuts, puts_space_before

log = logging.getLogger(__name__)
ROUNDED = 64  # the longest row's length is rounded up to a multiple of it, which has halves for shorter buckets


class Examinee(NamedTuple):
    """The model that takes an exam, as far as an exam needs to know it.

    Attributes:
      tokenizer: of the base.
      positions: the most tokens of a row that it reads.
      opening: ids before each prompt.
      end_ids: tokens that end a text.
      framing: the virtual tokens of a prefix method.
    """

    tokenizer: Any
    positions: int
    opening: tuple[int, ...] = ()
    end_ids: tuple[int, ...] = ()
    framing: Framing = PLAIN


class ChoiceExam:
    """An exam whose questions have options; what `forms.held_out.row_outputs` asks of a task.

    Where each completion is one token, the options of a question share one row, which is its prompt: "tokens" has then
    one column, not one an option. A row's last target is never read.

    Args:
      options: which exam.
      examinee: the model that takes it.

    Raises:
      UserError: as `read_questions`; the exam has no options, or a row is longer than the model reads.
    """

    def __init__(self, options: ExamOptions, examinee: Examinee):
        style = STYLES[options.task]
        if style.stops:
            raise UserError(f'{options.task} has answers to write; set the entry\'s type to "generation"')
        self.options, self._examinee = options, examinee
        asked = read_questions(options)
        self.prompts = [one.prompt for one in asked]
        self.pad: Mapping[str, int] = {"tokens": pad_id(examinee.tokenizer)}
        self._choices = max(len(one.row.options) for one in asked)
        self._classes = 0 if style.lettered else self._choices
        self.likelihood, self._measure = style.likelihood, style.measure
        if self._classes or self._measure == "weighted_f1":
            check_library()
        self._groups = [one.row.subject for one in asked]
        encoder = _Encoder(examinee)
        rows, self._cut = [], 0
        for one in asked:
            texts = completions(style, one.row)
            made = [encoder(one.prompt, text) for text in texts]
            rows.append([self._candidate(*each, one.row.place) for each in zip(made, texts, strict=True)])
            self._cut += any(len(own.tokens) < len(ids) for own, (ids, _) in zip(rows[-1], made, strict=True))
        if self._cut:
            log.warning("%s: the beginnings of %d of %d prompts are cut", options.task, self._cut, len(asked))
        self._rows = ChoiceRows(rows, (one.row.right for one in asked))
        self._shared = self._rows.most == 1
        read = np.array(self._rows.lengths) - 1
        longest = int(read.max())
        self.seq_len = min(round_up(longest, ROUNDED), max(examinee.positions, longest))
        self.buckets = default_buckets(self.seq_len)

    def validation_sources(self) -> dict[str, ChoiceRows]:
        """{"": the questions}."""
        return {"": self._rows}

    def lengths(self, source: ChoiceRows) -> np.ndarray:
        """Tokens of each row that are read, int32 [rows]."""
        return source.lengths - 1

    def candidates(self, example: Sequence[Candidate]) -> dict[str, np.ndarray]:
        """As `tasks.base.ChoiceTask.candidates`, without the last target among the tokens."""
        made = candidate_arrays(example, self._choices, self._rows.most, self.pad["tokens"])
        return {**made, "tokens": made["tokens"][:-1, : 1 if self._shared else None]}

    def score(self, outputs: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Accuracy of the likeliest options, and counts for an interval.

        Args:
          outputs: {"": log-likelihoods [n, K], -inf where a question has fewer options}.

        Returns:
          "accuracy" (also as "main"), "correct", "n"; "loss", the mean of -log of the right option's share of the
          options' probability; "distinct", how many options were picked; "nonfinite", how many questions have a
          likelihood that is NaN or infinite, which count as wrong; "macro_f1" where the options are the same for all
          questions; "weighted_f1" with its interval (`score_classes`) where that is the exam's measure and so "main";
          "cut", how many prompts lost their beginnings, where any did.
        """
        values, answers = np.asarray(outputs[""], np.float32), self._rows.answers
        if values.shape != (len(answers), self._choices):
            raise ValueError(f"outputs {values.shape}; wanted {(len(answers), self._choices)}")
        counts = np.array([len(self._rows[index]) for index in range(len(answers))])
        there = np.arange(self._choices)[None, :] < counts[:, None]
        finite = np.all(np.isfinite(values) | ~there, axis=1)
        safe = np.where(there & finite[:, None], values, np.where(there, 0, -np.inf))
        picks = np.where(finite, np.argmax(safe, axis=1), self._choices)  # a number that no right answer has
        right = np.take_along_axis(safe, answers[:, None], axis=1)[:, 0]
        found = {
            "accuracy": float(np.mean(picks == answers)),
            "correct": float(np.sum(picks == answers)),
            "n": float(len(answers)),
            "loss": float(np.mean(np.logaddexp.reduce(safe, axis=1) - right)) if finite.all() else math.nan,
            "distinct": float(len(np.unique(picks[finite]))),
            "nonfinite": float(np.sum(~finite)),
        }
        more = {"macro_f1": macro_f1(picks, answers, self._classes)} if self._classes else {}
        more["main"] = found["accuracy"]
        if self._measure == "weighted_f1":
            more |= score_classes(picks, answers, self._groups, self._classes)
        return {**found, **more, **({"cut": float(self._cut)} if self._cut else {})}

    def _candidate(self, made: tuple[list[int], int], text: str, place: str) -> Candidate:
        tokens, start = made
        if start == len(tokens):
            raise UserError(f"{place}: {text!r} has no token of its own after its prompt; take another base")
        most = self._examinee.positions + 1  # the last target is predicted, not read
        return _cut(self._examinee, self.options, tokens, start, most, place, len(text.strip().encode()))


class WrittenExam:
    """An exam whose answers are written; what `forms.generation.generation` asks of a task.

    Args: as `ChoiceExam`.

    Attributes:
      max_new_tokens, stop_id, end_ids, stops: how many tokens an answer has at most, and what ends it.
      shortening: the remedy `truncate`, for the error of a prompt that is too long; "" where it is set already.

    Raises:
      UserError: as `read_questions`; the exam's questions have options; or MATH's texts are neither scored nor written.
    """

    stop_id: int | None = None

    def __init__(self, options: ExamOptions, examinee: Examinee, max_new_tokens: int = 0):
        style = style_of(options.task, options.prompt)
        if not STYLES[options.task].stops:
            raise UserError(f'{options.task} has options to choose from; set the entry\'s type to "choice"')
        self._judged = installed()
        if not self._judged and options.task == MATH and not getattr(options, "write", False):
            raise UserError(
                f"answers to {options.task} need math-verify; pip install 'lowrank_jax[eval]', or set write, and score "
                "the texts elsewhere by experiments.score"
            )
        if not self._judged and options.task in JUDGED:
            log.warning("%s: math_verify is not computed; pip install 'lowrank_jax[eval]'", options.task)
        self.options, self._examinee = options, examinee
        self.name, self.seq_len, self.evaluation = options.task, examinee.positions, "generation"
        self.max_new_tokens = max_new_tokens or style.new_tokens
        self.end_ids, self.stops = examinee.end_ids, style.stops
        self.shortening = "" if options.truncate else "set truncate to cut the beginnings of long prompts, "
        self._asked, self._encoder, self._cut = read_questions(options), _Encoder(examinee), 0

    def prompts(self, sample: int | None = None) -> list[tuple[str, Target]]:
        """(prompt, what its answer must come to), of all questions or the first ones."""
        return [(one.prompt, one.row.answer) for one in self._asked[:sample]]

    def places(self) -> list[str]:
        """File and row of each of `prompts`, for messages."""
        return [one.row.place for one in self._asked]

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The ids that decoding starts from."""
        return self._encoder(prompt, "")[0]

    def fitted(self, prompts: Sequence[list[int]], room: int) -> list[list[int]]:
        """The prompts; `truncate` cuts each to its last `room` ids (virtual tokens stay), and a line says how many."""
        if not self.options.truncate or room <= self._examinee.framing.count:
            return list(prompts)  # `forms.generation` refuses those that are too long
        self._cut = sum(len(ids) > room for ids in prompts)
        if self._cut:
            log.warning("%s: the beginnings of %d of %d prompts are cut", self.options.task, self._cut, len(prompts))
        return [self._examinee.framing.last(ids, room) for ids in prompts]

    def score(self, predictions: Sequence[str], targets: Sequence[Any]) -> dict[str, float]:
        """`score_texts` of all questions, without math-verify where that is not installed; "cut" as `ChoiceExam`'s."""
        check_score_input(predictions, targets)
        found = score_texts(self.options.task, predictions, targets, self._judged)
        return found | ({"cut": float(self._cut)} if self._cut else {})


class _Encoder:
    """(prompt, completion) -> (ids, where the completion starts); a prompt's ids are kept for its next completion."""

    def __init__(self, examinee: Examinee):
        self._examinee, tokenizer = examinee, examinee.tokenizer
        self._together = puts_space_before(tokenizer.encode, tokenizer.decode)
        self._prompt = functools.lru_cache(maxsize=1)(tokenizer.encode)

    def __call__(self, prompt: str, completion: str) -> tuple[list[int], int]:
        encode, examinee = self._examinee.tokenizer.encode, self._examinee
        if self._together and completion:
            ids, (length,), _ = encode_with_cuts(encode, prompt + completion, [len(prompt)])
            before, after = ids[:length], ids[length:]
        else:
            before, after = self._prompt(prompt), encode(completion) if completion else []
        start = examinee.framing.around([*examinee.opening, *before])
        return [*start, *after], len(start)


def _cut(
    examinee: Examinee, options: ExamOptions, tokens: list[int], start: int, most: int, place: str, size: int
) -> Candidate:
    """The candidate, without the beginning of its text where it is too long.

    Raises:
      UserError: it is too long and may not be cut, or nothing of the prompt would be left.
    """
    prefix, lost = len(examinee.framing.prefix_ids), max(len(tokens) - most, 0)
    kept = start - len(examinee.framing.infix_ids) - prefix - lost
    if lost and (not options.truncate or kept < 1):
        ways = [
            *([] if options.truncate else ["set truncate to cut the beginnings of long prompts"]),
            *(["set fewer shots"] if options.shots else []),
            "take a base with more positions",
        ]
        raise UserError(
            f"{place}: has {len(tokens)} tokens with its completion, and the model reads {examinee.positions}; "
            f"{', or '.join(ways)}"
        )
    return Candidate(np.array([*tokens[:prefix], *tokens[prefix + lost :]], np.int32), start - lost, size)
