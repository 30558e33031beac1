"""The tasks by name: the only list."""

from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.core.paths import unknown_name
from lowrank_jax.tasks.base import Task
from lowrank_jax.tasks.framing import PLAIN, Framing
from lowrank_jax.tasks.glue.task import GlueConfig, GlueTask
from lowrank_jax.tasks.mnli import MnliConfig, MnliTask
from lowrank_jax.tasks.nlg.task import NlgConfig, NlgTask
from lowrank_jax.tasks.text import TextConfig, TextTask
from lowrank_jax.tasks.uuid import UuidConfig, UuidTask

TASKS = {
    "uuid": (UuidConfig, UuidTask),
    "text": (TextConfig, TextTask),
    "glue": (GlueConfig, GlueTask),
    "mnli": (MnliConfig, MnliTask),
    "nlg": (NlgConfig, NlgTask),
}
# Tasks that are told how many positions the base has: they choose the length of their rows within it, or check it.
SIZED = (TextTask, MnliTask, NlgTask)
FRAMED = (TextTask, UuidTask, MnliTask, NlgTask)  # tasks whose rows take virtual tokens


def task_config(name: str) -> type:
    """The config dataclass of a task.

    Raises:
      UserError: no such task.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name][0]


def build_task(name: str, config: Any, tokenizer: Any, positions: int | None = None, framing: Framing = PLAIN) -> Task:
    """The task `name` over `tokenizer`.

    Args:
      positions: the most tokens of a row that the base can read; for the tasks of SIZED.
      framing: the virtual tokens of a prefix method.

    Raises:
      UserError: no such task, or the config is of another one; virtual tokens for a task whose rows take none.
    """
    expected = task_config(name)
    if not isinstance(config, expected):
        raise UserError(f"task {name!r} takes a {expected.__name__}, got a {type(config).__name__}")
    made = TASKS[name][1]
    options: dict[str, Any] = {"positions": positions} if made in SIZED else {}
    if framing.count:
        if made not in FRAMED:
            raise UserError(f"the rows of task {name!r} take no virtual tokens; choose another adapter.method")
        options["framing"] = framing
    return made(config, tokenizer, **options)
