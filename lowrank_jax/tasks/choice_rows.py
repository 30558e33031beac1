"""Prompts with candidate completions as ids: checked row by row, encoded once, read by index."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.cuts import describe_cuts
from lowrank_jax.data.row_kinds import COMPLETION, Row
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.text_rows import RowEncoder


class Question(NamedTuple):
    """A row: a prompt, its candidate completions as they follow it, and the number of the right one."""

    prompt: str
    candidates: tuple[str, ...]
    answer: int


class Candidate(NamedTuple):
    """A prompt with one completion: ids [n], where the completion starts, and the UTF-8 bytes of its text."""

    tokens: np.ndarray
    start: int
    size: int


class ChoiceRows:
    """Random access to rows, each a sequence of its candidates.

    Args:
      rows: of each row its candidates, or the right one alone.
      answers: the right one's number among the row's candidates.

    Attributes:
      answers: the same as int32 [rows].
      lengths: tokens of each row's longest candidate with its prompt, int32 [rows].
      most: tokens of the longest completion of all rows.
    """

    def __init__(self, rows: Sequence[Sequence[Candidate]], answers: Iterable[int]):
        self._rows, self.answers = rows, np.fromiter(answers, np.int32, len(rows))
        self.lengths = np.array([max(len(one.tokens) for one in row) for row in rows], np.int32)
        self.most = max((len(one.tokens) - one.start for row in rows for one in row), default=0)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sequence[Candidate]:
        return self._rows[index]


def candidate_arrays(row: Sequence[Candidate], choices: int, most: int, pad_id: int) -> dict[str, np.ndarray]:
    """The arrays of a row's candidates that `tasks.base.ChoiceTask.candidates` returns.

    Args:
      row: its candidates.
      choices: K; a row with fewer has completions of 0 tokens.
      most: M, tokens of the longest completion of all rows.
      pad_id: fills prompts with completions that are shorter than the row's longest.
    """
    made: dict[str, np.ndarray] = {name: np.zeros(choices, np.int32) for name in ("starts", "counts", "sizes")}
    made["tokens"] = np.full((max(len(one.tokens) for one in row), choices), pad_id, np.int32)
    made["targets"] = np.zeros((choices, most), np.int32)
    for place, one in enumerate(row):
        targets = one.tokens[one.start :]
        made["tokens"][: len(one.tokens), place] = one.tokens
        made["targets"][place, : len(targets)] = targets
        for name, value in (("starts", one.start), ("counts", len(targets)), ("sizes", one.size)):
            made[name][place] = value
    return made


class Encoded(NamedTuple):
    """Rows, and the line about those that were cut; None where none was."""

    rows: ChoiceRows
    note: str | None


class _Texts:
    """Prompts with single completions, as `RowEncoder` reads them."""

    def __init__(self, rows: Sequence[Row], place: Callable[[int], str]):
        self._rows, self.place = rows, place

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


def encode_questions(
    tokenizer: Any,
    questions: Sequence[Question],
    seq_len: int,
    *,
    name: str,
    place: Callable[[int], str],
    add_bos: bool = False,
    truncate: bool = False,
    right_alone: bool = False,
    framing: Framing = PLAIN,
) -> Encoded:
    """Encodes rows; prompt and completion are joined as in training on prompts with completions (`RowEncoder`).

    Args:
      tokenizer: of the base.
      questions: the rows.
      seq_len: most tokens of a prompt with a completion.
      name: what the rows are called in the line about cuts.
      place: number of a row -> where it is, for messages.
      add_bos: whether texts begin with BOS.
      truncate: True cuts the beginning of a prompt that is too long off (not its BOS, no virtual tokens), False refuses
        it.
      right_alone: encodes the right candidate alone, which is all that training reads.
      framing: the virtual tokens of a prefix method. They count among a row's tokens.

    Raises:
      UserError: names the first row that has an empty prompt or candidate, fewer than two candidates, no right one
        among them, or too many tokens.
    """
    for index, row in enumerate(questions):
        _check(row, place(index))
    wanted = [(row.candidates[row.answer],) if right_alone else row.candidates for row in questions]
    owners = [index for index, texts in enumerate(wanted) for _ in texts]
    texts = [
        {"prompt": row.prompt, "completion": text} for row, own in zip(questions, wanted, strict=True) for text in own
    ]
    encoder = RowEncoder(tokenizer, COMPLETION, add_bos=add_bos, add_eos=False, framing=framing)
    head, infix = len(framing.prefix_ids) + add_bos, len(framing.infix_ids)
    rows: list[list[Candidate]] = [[] for _ in questions]
    lengths = np.zeros(len(questions), np.int64)
    for owner, text, made in zip(
        owners, texts, encoder.encode(_Texts(texts, lambda at: place(owners[at]))), strict=True
    ):
        start, length = int(np.argmax(made.targets)), len(made.tokens)
        if not made.targets.any():
            raise UserError(f"{place(owner)}: {_short(text)} has no token of its own after its prompt; change it")
        if length > seq_len and (not truncate or head + 1 + infix + length - start > seq_len):
            raise UserError(
                f"{place(owner)}: has {length} tokens with {_short(text)}, and task.seq_len is {seq_len}; raise it, or "
                "set task.truncate=True to cut the beginnings of long prompts"
            )
        lost = max(length - seq_len, 0)
        kept = np.concatenate([made.tokens[:head], made.tokens[head + lost :]]).astype(np.int32)
        rows[owner].append(Candidate(kept, start - lost, len(text["completion"].strip().encode())))
        lengths[owner] = max(lengths[owner], length)
    answers = [0 if right_alone else row.answer for row in questions]
    return Encoded(ChoiceRows(rows, answers), describe_cuts(name, "task.seq_len", seq_len, lengths, place=place))


def _check(row: Question, where: str) -> None:
    if not row.prompt:
        raise UserError(f"{where}: the prompt is empty; nothing would come before a completion's first token")
    if empty := [number for number, text in enumerate(row.candidates, 1) if not text.strip()]:
        raise UserError(f"{where}: candidate {empty[0]} of {len(row.candidates)} is empty; give it a text")
    if len(row.candidates) < 2:
        raise UserError(f"{where}: has {len(row.candidates)} candidate(s), and there is nothing to choose; give two")
    if not 0 <= row.answer < len(row.candidates):
        wanted = f"number {row.answer + 1} of {len(row.candidates)}"
        raise UserError(f"{where}: the right candidate is {wanted}, which the row lacks; add it")


def _short(text: Row) -> str:
    return repr(str(text["completion"])[:40])
