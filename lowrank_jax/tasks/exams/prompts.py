"""The prompts of exams: of most, character by character those of lm-eval's tasks of the same names (0.4.13).

Financial PhraseBank has no task there: its prompt is ours. MATH's is that of lm-eval's hendrycks_math. The rows of
AdaptLLM's exams (RCT, ConvFinQA, FiQA SA, FPB, Headline, NER) are prompts already, and are asked as they are.
"""

import dataclasses
from collections.abc import Callable, Sequence

from lowrank_jax.data.builders.exams.readers import LETTERS
from lowrank_jax.data.builders.exams.rows import ExamRow

MMLU_OPENING = "The following are multiple choice questions (with answers) about {subject}.\n\n"
BETWEEN = "\n\n"  # after each worked example


@dataclasses.dataclass(frozen=True)
class Style:
    """How an exam's rows are written.

    Attributes:
      ask: row -> the question as text, without its answer.
      lettered: whether options have letters, which are then the completions; otherwise the options themselves are.
      opening: row -> what stands before the examples.
      stops: strings that end a written answer.
      new_tokens: most tokens of a written answer, lm-eval's own default.
      likelihood: by which options are compared, a name of `forms.chooser.LIKELIHOODS`.
      measure: the main score of the picked options: "accuracy", or "weighted_f1" (of Headline the mean over its
        questions).
    """

    ask: Callable[[ExamRow], str]
    lettered: bool = False
    opening: Callable[[ExamRow], str] = lambda row: ""
    stops: tuple[str, ...] = ()
    new_tokens: int = 256
    likelihood: str = "sum"
    measure: str = "accuracy"


def _listed(row: ExamRow) -> str:
    return "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, row.options, strict=False))


# As in AdaptLLM's evaluation (microsoft/LMOps, adaptllm): options are compared by their mean log-likelihood a token,
# and a written answer has at most 100 tokens and ends at a line break.
_PICKED = Style(lambda row: row.question, likelihood="per_token")
_F1 = dataclasses.replace(_PICKED, measure="weighted_f1")
_WRITTEN = Style(lambda row: row.question, stops=("\n",), new_tokens=100)

STYLES = {
    "mmlu": Style(
        lambda row: f"{row.question.strip()}\n{_listed(row)}Answer:",
        lettered=True,
        opening=lambda row: MMLU_OPENING.format(subject=row.subject.replace("_", " ")),
    ),
    "gsm8k": Style(
        lambda row: f"Question: {row.question}\nAnswer:", stops=("Question:", "</s>", "<|im_end|>")
    ),
    "math": Style(lambda row: f"Problem: {row.question}\nAnswer:", stops=("Problem:",)),
    "pubmedqa": Style(lambda row: f"Abstract: {row.context}\nQuestion: {row.question}\nAnswer:"),
    "medqa": Style(lambda row: f"Question: {row.question}\n{_listed(row)}Answer:", lettered=True),
    "phrasebank": Style(lambda row: f"{row.question}\nQuestion: What is the sentiment of this sentence?\nAnswer:"),
    "rct": _PICKED,
    "convfinqa": _WRITTEN,
    "fiqa_sa": _F1,
    "fpb": _F1,
    "headline": _F1,
    "ner": _WRITTEN,
}  # fmt: skip


# (exam, name) -> another way to ask it. "step by step" is that of PEFT's method comparison, whose answers end with EOS.
OTHERS = {
    ("gsm8k", "step by step"): Style(
        lambda row: f"Question: {row.question} Think step by step.\nAnswer:", new_tokens=300
    )
}


def style_of(exam: str, name: str = "") -> Style:
    """How an exam is written, in its own way or another by name."""
    return OTHERS[exam, name] if name else STYLES[exam]


def completions(style: Style, row: ExamRow) -> tuple[str, ...]:
    """The texts whose log-likelihoods are compared: each option, or its letter, as it follows a prompt."""
    names = LETTERS[: len(row.options)] if style.lettered else row.options
    return tuple(f" {name}" for name in names)


def prompt(style: Style, row: ExamRow, shots: Sequence[ExamRow] = ()) -> str:
    """The text before an answer: opening, worked examples, question.

    Args:
      style: of the exam.
      row: what is asked.
      shots: examples.
    """
    worked = (f"{style.ask(one)}{_answer(style, one)}{BETWEEN}" for one in shots)
    return f"{style.opening(row)}{''.join(worked)}{style.ask(row)}"


def _answer(style: Style, row: ExamRow) -> str:
    return completions(style, row)[row.right] if row.options else f" {row.worked}"
