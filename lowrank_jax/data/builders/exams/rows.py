"""A question of an exam: with options to choose from, or with an answer to write."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ExamRow:
    """One question.

    Attributes:
      place: file and row, for messages.
      question: its text, as the file has it.
      options: the answers to choose from; none where one is written.
      right: number of the right option.
      context: a text that the question is about; "" for none.
      subject: of MMLU; of Headline the number of the question, as each question's rows are scored apart.
      worked: an answer as an example shows it, with its steps; of written answers.
      answer: what a written answer must come to.
    """

    place: str
    question: str
    options: tuple[str, ...] = ()
    right: int = 0
    context: str = ""
    subject: str = ""
    worked: str = ""
    answer: str = ""
