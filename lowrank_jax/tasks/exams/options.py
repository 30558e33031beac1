"""Which exam an entry of `config.evals` asks, from which files, with how many examples."""

import dataclasses
from typing import Annotated

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.core.ranges import Range, check_ranges
from lowrank_jax.data.builders.exams.source import exam_spec, has_exam
from lowrank_jax.tasks.exams.prompts import OTHERS


@dataclasses.dataclass(frozen=True)
class ExamOptions:
    """An exam with its own data set, whatever the run is trained on.

    Attributes:
      task: the exam, a name of `data.builders.exams.source.EXAMS`.
      data_dir: folder of its official files, or of several exams' folders; None: $LOWRANK_JAX_EXAMS_DIR.
      split: which rows are asked; "" is the official test set.
      shots: worked examples before each question, the first of the examples' split (of MMLU: of the subject's).
      subjects: of MMLU, those that are asked; none: all.
      max_rows: how many questions are asked, evenly spaced; 0: all.
      truncate: where a prompt is too long for the model, True cuts its beginning off as lm-eval does, False refuses it.
      prompt: another way to ask the exam, a name of `prompts.OTHERS`; "" is lm-eval's.
      add_bos: whether prompts begin with BOS; None: as in the run's training, or as the base's tokenizer begins a text.
      optional: where the exam has no file in data_dir, True leaves the exam out (a line and the record's "missing" say
        that), False refuses it.
    """

    task: str = ""
    data_dir: str | None = None
    split: str = ""
    shots: Annotated[int, Range(least=0)] = 0
    subjects: tuple[str, ...] = ()
    max_rows: Annotated[int, Range(least=0)] = 0
    truncate: bool = False
    add_bos: bool | None = None
    prompt: str = ""
    optional: bool = False

    def __post_init__(self):
        check_ranges(self, "evals")
        object.__setattr__(self, "subjects", tuple(self.subjects))  # a list where it comes from JSON
        if not self.task:
            defaults = {field.name: field.default for field in dataclasses.fields(ExamOptions)}
            if given := next((name for name, value in defaults.items() if getattr(self, name) != value), None):
                raise UserError(f"evals: {given} belongs to an exam; name the exam as task, or leave {given} out")
            return
        spec = exam_spec(self.task)
        if self.split and self.split not in spec.files:
            raise unknown_name(f"split of {self.task}", self.split, spec.files)
        if self.prompt and (self.task, self.prompt) not in OTHERS:
            raise unknown_name(
                f"prompt of {self.task}", self.prompt, [name for exam, name in OTHERS if exam == self.task]
            )
        if self.shots and not spec.shots:
            raise UserError(f"evals: the prompts of {self.task} have their examples in them; leave shots out")
        if self.subjects and self.task != "mmlu":
            raise UserError(f"evals: subjects are MMLU's; leave them out for {self.task}")

    @property
    def is_absent(self) -> bool:
        """Whether the exam is left out: it is optional and has no file.

        Raises:
          UserError: no folder is given, or there is none of that name.
        """
        return bool(self.task) and self.optional and not has_exam(self.task, self.split, self.data_dir)
