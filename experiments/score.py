"""Scores the decoded texts of ended runs again: for metrics that could not be computed where they were trained.

    python -m experiments.score --runs='runs/lora_nlg-*' --data_dir=FOLDER --results=experiments/results/e2e_smollm2

METEOR, ROUGE-L and CIDEr need Java, and most other metrics a library; a GPU machine may have neither. A run writes its
texts to decoded.jsonl in any case, and its record names what was not computed ("missing"). This program reads both,
computes the metrics of the data set on the CPU, and writes the record again: "missing" then has what is missing here.
The data must be those of the run: each prompt and its references are compared. A run that cannot be scored is named in
a line at the end, and stops none of the others.

Exams whose answers are written (GSM8K, MATH, ConvFinQA, NER; `config.evals` with "write") are scored too, the first two
also by math-verify; their texts have the right answers beside them, and need no data.
"""

import glob
import sys
from pathlib import Path

from absl import flags

from experiments.cli import launch
from experiments.generation.scored import score_run
from experiments.records import json_files, run_folder
from experiments.records.lines import Recorded, check_results
from lowrank_jax.core.errors import UserError, report

flags.DEFINE_list("runs", None, "Run folders, or patterns of them in quotes: 'runs/lora_nlg-*'")
flags.DEFINE_string("data_dir", None, "Folder of the official files; otherwise the one in each run's config")
flags.DEFINE_string("results", None, "NAME or NAME.jsonl: the file that each record is added to")
FLAGS = flags.FLAGS


def main(_) -> None:
    """Prints a line for each run: its scores, and what is missing; at the end one for each that could not be scored."""
    if not FLAGS.runs:
        raise UserError("name the runs: --runs=runs/NAME, or a pattern in quotes")
    folders = dict.fromkeys(Path(found) for word in FLAGS.runs for found in sorted(glob.glob(word)) or [word])
    recorded = Recorded(FLAGS.results) if FLAGS.results else None
    if recorded:
        check_results(recorded.path)  # before any scoring: METEOR and TER take minutes a run
    failed = []
    for folder in folders:
        try:
            record = score_run(folder, FLAGS.data_dir)
            json_files.write_json(folder / run_folder.RESULT, record)
            if recorded:
                recorded.put(record)
        except UserError as error:
            failed.append(error if str(folder) in str(error) else UserError(f"{folder}: {error}"))
            continue
        scores = [
            f"{key} {'none' if value is None else format(value, '.4g')}"
            for key, value in record["evaluations"][-1].items()
            if "/" in key
        ]
        print(f"{folder.name}: {', '.join(scores)}", flush=True)
        for metric, why in (record.get("missing") or {}).items():
            print(f"    {metric}: {why}", flush=True)
    if failed:
        sys.exit(max(map(report, failed)))


if __name__ == "__main__":
    launch(main)
