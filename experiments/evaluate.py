"""Evaluates a run or a base by lm-eval's tasks: its prompts and metrics, our model and decoder.

python -m experiments.evaluate runs/NAME --tasks=mmlu,gsm8k --data=mmlu=FOLDER --data=gsm8k=FOLDER
python -m experiments.evaluate smollm2-135m --tasks=mine --include_path=FOLDER --limit=100 --output=results.json
python -m experiments.evaluate FOLDER --adapter=FOLDER --tasks=arc_easy

Tasks and data come from local files (--data, --include_path), or from the Hub where there is one.
"""

import contextlib
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from experiments.cli import launch, start_devices
from experiments.generation import BESIDE, WEIGHTS
from lowrank_jax.core.errors import UserError

WORDS = True  # the program takes a positional argument: a run's folder, or a base
flags.DEFINE_list("tasks", [], "Names of lm-eval's tasks, groups or tags, or of those in --include_path.")
flags.DEFINE_multi_string("data", [], "EXAM=FOLDER: lm-eval's own task over the exam's official files in a folder.")
flags.DEFINE_multi_string("include_path", [], "A folder of tasks in lm-eval's YAML; they go before its own.")
flags.DEFINE_string("adapter", None, "With a base: the folder of an adapter, a run's adapter/ or PEFT's.")
flags.DEFINE_integer("num_fewshot", None, "Worked examples before each question; by default as the task says.", 0)
flags.DEFINE_integer("limit", None, "Only the first so many questions of each task.", 1)
flags.DEFINE_string("gen_kwargs", "", "How texts are written, e.g. max_gen_toks=64; by default as the task says.")
flags.DEFINE_integer("seed", 1234, "Of the draws of worked examples; lm-eval's own default.", 0)
flags.DEFINE_integer("batch_size", 16, "Most questions at a time.", 1)
flags.DEFINE_bool(
    "share_prefixes", True, "Reads a beginning that prompts share once; --noshare_prefixes reads each prompt whole."
)
flags.DEFINE_string("dtype", None, "Dtype of weights and computation; by default the run's, or float32.")
flags.DEFINE_enum("weights", BESIDE, WEIGHTS, "How base and adapter are computed; see experiments.generate.")
flags.DEFINE_bool("bos", None, "Whether texts begin with BOS; by default as in training, or as the tokenizer does.")
flags.DEFINE_bool("apply_chat_template", False, "Gives prompts to the chat template, as a user's messages.")
flags.DEFINE_string("chat_template", "", "The template's name (chatml, ...); by default the tokenizer's own.")
flags.DEFINE_string("output", None, "JSON file of the results.")
flags.DEFINE_string("samples", None, "File of JSON lines: each question, its prompts, the answers and their scores.")
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
    """Loads tasks, then the model; prints a table, and writes what was asked for."""
    name = _check(argv)
    start_devices()
    # Imported after the flags are parsed: --help and a wrong flag answer at once.
    from experiments.evaluation import harness
    from experiments.evaluation.language_model import LanguageModel
    from experiments.evaluation.local_tasks import write_tasks
    from experiments.evaluation.report import rows_of, table_of
    from experiments.records.text_table import format_table

    with contextlib.ExitStack() as opened:
        folders = [Path(folder) for folder in FLAGS.include_path]
        if FLAGS.data:
            made = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            write_tasks(made, FLAGS.data)
            folders.append(made)
        tasks = harness.load_tasks(FLAGS.tasks, folders)
        harness.set_up(tasks, FLAGS.num_fewshot, FLAGS.gen_kwargs, FLAGS.seed)
        samples = opened.enter_context(open(FLAGS.samples, "w", encoding="utf-8")) if FLAGS.samples else None
        model = _model(name)
        wrapped = LanguageModel(model, FLAGS.batch_size, FLAGS.bos, FLAGS.chat_template, FLAGS.share_prefixes)
        results = harness.ask(wrapped, tasks, FLAGS.limit, FLAGS.apply_chat_template, samples)
    rows = rows_of(results)
    print(format_table([list(line) for line in table_of(rows)], "text"))
    read = wrapped.count
    print(f"{read.read:,} tokens were read; without shared beginnings they would be {read.whole:,}")
    if wrapped.cut:
        print(f"{wrapped.cut} prompts were longer than the model reads; their beginnings were cut off")
    if FLAGS.output:
        record = {"model": model.made_of, "settings": _settings(), "cut": wrapped.cut, "results": rows}
        record["tokens"] = {"read": read.read, "whole": read.whole}
        Path(FLAGS.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {FLAGS.output}")


def _check(argv: list[str]) -> str:
    """The run or base; refuses what can be known to be wrong before anything is imported."""
    if len(argv) != 2:
        raise UserError(
            f"name one run or base, e.g. python -m experiments.evaluate runs/NAME; there are {len(argv) - 1}"
        )
    if not FLAGS.tasks or not all(FLAGS.tasks):
        raise UserError("give --tasks, e.g. --tasks=mmlu,gsm8k")
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("this program needs lm-eval; pip install 'lowrank_jax[eval]'")
    for folder in FLAGS.include_path:
        if not Path(folder).is_dir():
            raise UserError(f"--include_path={folder}: no such folder; name one of tasks in lm-eval's YAML")
    for flag, file in (("output", FLAGS.output), ("samples", FLAGS.samples)):
        if file and not Path(file).absolute().parent.is_dir():
            raise UserError(f"--{flag}={file}: its folder does not exist; make it first")
        if file and Path(file).is_dir():
            raise UserError(f"--{flag}={file} is a folder; name a file in it")
    if FLAGS.chat_template and not FLAGS.apply_chat_template:
        raise UserError("--chat_template is read with --apply_chat_template alone; add that, or leave it out")
    if _is_run(Path(argv[1])) and FLAGS.adapter:
        raise UserError("--adapter goes with a base; a run has its own")
    return argv[1]


def _is_run(folder: Path) -> bool:
    """Whether a folder's config.json is that of a run: a base's names no task."""
    from experiments.config.files import CONFIG
    from lowrank_jax.core.files import kind_of
    from lowrank_jax.core.json_text import read_json

    if kind_of(folder / CONFIG) != "file":
        return False
    found = read_json(folder / CONFIG, "copy the folder's own file")
    return isinstance(found, dict) and {"base", "task"} <= found.keys()


def _model(name: str) -> Any:
    from experiments.generation.model import of_base, of_run

    if _is_run(Path(name)):
        return of_run(name, FLAGS.dtype, FLAGS.weights)
    return of_base(name, FLAGS.adapter, FLAGS.dtype or "float32", FLAGS.weights)


def _settings() -> dict[str, Any]:
    import lm_eval

    names = ("tasks", "num_fewshot", "limit", "gen_kwargs", "seed", "apply_chat_template", "chat_template", "bos")
    return {**{name: FLAGS[name].value for name in names}, "lm_eval": lm_eval.__version__}


if __name__ == "__main__":
    launch(main, words=WORDS)
