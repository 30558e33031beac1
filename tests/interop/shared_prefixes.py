"""Measures what shared beginnings save: five-shot MMLU questions to a model of pico-llama's shape, on this machine.

    python -m tests.interop.shared_prefixes --data=FOLDER

FOLDER has mmlu/ with the official files. The weights are random, as pico-llama reads 512 bytes and these prompts are
longer; what is timed does not depend on them. Both ways answer in turns, the first of which compiles and is not
counted.
"""

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

QUESTIONS, SHOTS, TURNS = 20, 5, 3
TASK = "mmlu_abstract_algebra"


def questions(data, folder):
    """lm-eval's requests, four a question."""
    from experiments.evaluation.harness import load_tasks, set_up
    from experiments.evaluation.local_tasks import write_tasks

    write_tasks(folder, [f"mmlu={data / 'mmlu'}"])
    tasks = load_tasks([TASK], [folder])
    set_up(tasks, SHOTS, "", 1234)
    (task,) = tasks["tasks"].values()
    task.build_all_requests(limit=QUESTIONS, rank=0, world_size=1)
    return task.instances


def written_base(folder):
    """A folder of random weights in pico-llama's shape, with room for the prompts."""
    import jax

    from lowrank_jax.bases.base import BaseConfig, export_params, load_base
    from lowrank_jax.models.registry import get_model

    base = load_base(BaseConfig("pico-llama", random_init=True), jax.random.key(0))
    shape = dataclasses.replace(get_model("pico-llama"), max_position_embeddings=2048)
    return export_params(base.params, shape, folder, tokenizer=base.tokenizer)


def main(data):
    """Prints seconds and tokens of both ways, and how far their log-likelihoods differ."""
    from experiments.evaluation.language_model import LanguageModel
    from experiments.generation.model import of_base

    with tempfile.TemporaryDirectory() as place:
        asked = questions(data, Path(place))
        model = of_base(str(written_base(Path(place) / "base")), None, "float32")
    ways = {share: LanguageModel(model, share=share) for share in (False, True)}
    seconds, answers = {False: [], True: []}, {}
    for _ in range(TURNS + 1):
        for share, way in ways.items():
            begun = time.perf_counter()
            answers[share] = way.loglikelihood(asked, disable_tqdm=True)
            seconds[share].append(time.perf_counter() - begun)
    print(f"{QUESTIONS} questions of {TASK}, {SHOTS} examples each; median of {TURNS}, first turn (with compilation)")
    for share, way in ways.items():
        first, *others = seconds[share]
        name = "shared beginnings" if share else "whole rows"
        count = way.count.read // (TURNS + 1)
        print(f"{name}: {statistics.median(others):.2f} s, {first:.2f} s, {count:,} tokens read")
    furthest = max(abs(one[0] - two[0]) for one, two in zip(answers[True], answers[False], strict=True))
    print(f"furthest log-likelihoods: {furthest:.1e} nats")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    main(parser.parse_args().data)
