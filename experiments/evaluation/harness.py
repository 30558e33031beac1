"""Calls lm-eval: finds tasks by their names, sets their examples and generation settings, and has a model answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import simple_parse_args_string

from lowrank_jax.core.errors import UserError, one_line
from lowrank_jax.core.paths import unknown_name


def load_tasks(names: Sequence[str], folders: Sequence[Path]) -> Any:
    """The tasks, with their data, by name, group or tag.

    Args:
      names: of tasks.
      folders: of YAML files. lm-eval's own thousands are read only where these lack a name.

    Raises:
      UserError: an unknown name, or data that cannot be loaded.
    """
    include: list[str | Path] = [*folders]
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    for name in names:
        if name not in manager.all_tasks:
            raise unknown_name("task", name, manager.all_tasks)
    try:
        return manager.load(list(names))
    except Exception as error:  # of any type: from a task's file, its code, the network or the Hub
        raise UserError(
            f"the tasks {', '.join(names)} cannot be loaded ({type(error).__name__}: {one_line(error)}); without the "
            "Hub, give --data=EXAM=FOLDER, or --include_path with tasks over local files"
        ) from error


def set_up(tasks: Any, shots: int | None, gen_kwargs: str, seed: int) -> None:
    """Sets how many worked examples the tasks have, and how texts are written.

    Args:
      tasks: of `load_tasks`.
      shots: None: as each task's file says, otherwise none. A task that says 0 keeps that, and a line says so.
      gen_kwargs: "max_gen_toks=64,temperature=0.8"; "" changes nothing.
      seed: of the draws of worked examples.

    Raises:
      UserError: a task has fewer examples, or none writes text and `gen_kwargs` says how.
    """
    changes = simple_parse_args_string(gen_kwargs) if gen_kwargs else {}
    if changes and all(task.get_config("output_type") != "generate_until" for task in tasks["tasks"].values()):
        raise UserError(f"--gen_kwargs={gen_kwargs}: none of the tasks writes text; leave it out")
    for name, task in tasks["tasks"].items():
        given = task.get_config("num_fewshot")
        if shots is not None and given != 0:
            task.set_config(key="num_fewshot", value=shots)
        elif shots and given == 0:
            print(f"{name}: its file says that it has no examples, which --num_fewshot={shots} does not change")
        elif given is None:
            task.set_config(key="num_fewshot", value=0)
        if changes and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=changes, update=True)
        task.set_fewshot_seed(seed=seed)
        wanted = task.get_config("num_fewshot")
        if wanted and (there := len(list(task.fewshot_docs()))) < wanted:
            raise UserError(
                f"{name}: {wanted} examples are asked for, and its data have {there}; set a smaller --num_fewshot"
            )


def ask(model: LM, tasks: Any, limit: int | None, chat: bool, samples: TextIO | None) -> dict[str, Any]:
    """lm-eval's results of a model.

    Args:
      model: what answers.
      tasks: of `load_tasks`, after `set_up`.
      limit: the first so many questions of each task; None: all.
      chat: whether prompts are given to the model's chat template.
      samples: gets a JSON line of each question: its prompts, the model's answers, and the metrics; None: none.
    """
    found: Any = evaluator.evaluate(
        model, tasks, limit=limit, apply_chat_template=chat, log_samples=samples is not None, bootstrap_iters=0
    )
    assert found is not None  # there is one process
    if samples is not None:
        for task, rows in found["samples"].items():
            for row in rows:
                print(json.dumps({"task": task, **row}, ensure_ascii=False, default=str), file=samples)
    return found
