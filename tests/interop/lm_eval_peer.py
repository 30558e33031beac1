"""Asks lm-eval's Hugging Face backend and ours the same 200 MMLU questions and 100 GSM8K problems, and compares.

    python -m tests.interop.lm_eval_peer hf --data=FOLDER     # makes smollm2_lm_eval.json.gz
    python -m tests.interop.lm_eval_peer ours --data=FOLDER   # compares our answers with that file's

FOLDER has mmlu/ and gsm8k/ with the official files. The base is SmolLM2-135M-Instruct as fetched by
scripts/fetch_weights.py, in float32 on the CPU; texts have at most 64 new tokens. Ours are those of `evaluate` and of
exams inside training. Either command continues where it was stopped.
"""

import argparse
import csv
import gzip
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

QUESTIONS, PROBLEMS, NEW_TOKENS = 200, 100, 64
CHUNK = 10  # questions between two writes of the file of what is done
BASE = "smollm2-135m"
GOLDEN = Path(__file__).with_name("smollm2_lm_eval.json.gz")
TOLERANCE = 2e-4  # nats, of float32 sums of log-probabilities


def excerpt(data, folder):
    """Writes evenly spaced rows of the official files into a folder of the same form."""
    for name, count in (("mmlu", QUESTIONS), ("gsm8k", PROBLEMS)):
        (folder / name).mkdir()
        for file in (data / name).glob("*.gz"):
            target = folder / name / file.name
            if not file.name.startswith("test"):
                shutil.copy(file, target)
                continue
            with gzip.open(file, "rt", encoding="utf-8", newline="") as source:
                rows = list(csv.reader(source)) if name == "mmlu" else source.readlines()
            head, rows = (rows[:1], rows[1:]) if name == "mmlu" else ([], rows)
            kept = head + [rows[index * len(rows) // count] for index in range(count)]
            with gzip.open(target, "wt", encoding="utf-8", newline="") as out:
                if name == "mmlu":
                    csv.writer(out).writerows(kept)
                else:
                    out.writelines(kept)


def requests_of(folder, tasks):
    """(log-likelihood requests, four a question; generation requests) of lm-eval's tasks over the excerpt."""
    from experiments.evaluation.harness import load_tasks, set_up
    from experiments.evaluation.local_tasks import write_tasks

    write_tasks(tasks, [f"mmlu={folder / 'mmlu'}", f"gsm8k={folder / 'gsm8k'}"])
    loaded = load_tasks(["mmlu", "gsm8k"], [tasks])
    set_up(loaded, 0, f"max_gen_toks={NEW_TOKENS}", 1234)
    found = {"loglikelihood": [], "generate_until": []}
    for task in loaded["tasks"].values():
        task.build_all_requests(limit=None, rank=0, world_size=1)
        for one in task.instances:
            found[one.request_type].append(one)
    return found["loglikelihood"], found["generate_until"]


def answers(model, requests, done):
    """{"mmlu": {prompt: log-likelihoods}, "gsm8k": {prompt: text}}; what the file `done` has is not asked again."""
    found = json.loads(done.read_text()) if done.exists() else {"mmlu": {}, "gsm8k": {}}
    choices, texts = requests
    questions = {}
    for one in choices:
        questions.setdefault(one.args[0], []).append(one)
    left = [each for prompt, each in questions.items() if prompt not in found["mmlu"]]
    for start in range(0, len(left), CHUNK):
        part = left[start : start + CHUNK]
        values = iter(model.loglikelihood([one for each in part for one in each], disable_tqdm=True))
        for each in part:
            found["mmlu"][each[0].args[0]] = [round(next(values)[0], 6) for _ in each]
        done.write_text(json.dumps(found))
        print(f"mmlu: {len(found['mmlu'])} of {len(questions)}", flush=True)
    left = [one for one in texts if one.args[0] not in found["gsm8k"]]
    for start in range(0, len(left), CHUNK):
        part = left[start : start + CHUNK]
        for one, text in zip(part, model.generate_until(part, disable_tqdm=True), strict=True):
            found["gsm8k"][one.args[0]] = text
        done.write_text(json.dumps(found))
        print(f"gsm8k: {len(found['gsm8k'])} of {len(texts)}", flush=True)
    return found


def hf_model():
    """lm-eval's own backend over transformers, with our tokenizer's file.

    transformers makes a tokenizer of the GGUF file that does not split digits off first, as SmolLM2's own does: of two
    spaces before a digit it makes two tokens, not one (one prompt of the 300).
    """
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from lowrank_jax.bases.base import BaseConfig, abstract_base
    from lowrank_jax.bases.locate import resolve
    from lowrank_jax.text.tokenizers import save_tokenizer

    file = next(resolve(BASE)[0].glob("*.gguf"))
    given = {"gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(abstract_base(BaseConfig(BASE)).tokenizer, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=CHUNK, device="cpu")


def our_model():
    """Our model as `experiments.evaluate` gives it to lm-eval."""
    from experiments.evaluation.language_model import LanguageModel
    from experiments.generation.model import of_base

    return LanguageModel(of_base(BASE, None, "float32"), batch_size=CHUNK)


def forms(folder, wrapped):
    """The answers to the same questions by exams inside training: `forms.chooser` and `forms.generation`."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lowrank_jax.bases.ends import end_ids, opening_ids
    from lowrank_jax.forms import chooser, generation
    from lowrank_jax.forms.base import Setting, examinee_of
    from lowrank_jax.forms.held_out import row_outputs
    from lowrank_jax.sharding.mesh import MeshConfig, batch_sharding, make_mesh
    from lowrank_jax.tasks.exams.task import ChoiceExam

    model, mesh = wrapped.model, make_mesh(MeshConfig(), jax.devices()[:1])
    base = model.base

    def place(batch):
        return {name: jax.device_put(value, batch_sharding(mesh)) for name, value in batch.items()}

    setting = Setting(
        model.apply_fn, base.config, mesh, jnp.float32, base.tokenizer, place, batch_size=8,
        end_ids=lambda: end_ids(base), opening=lambda: opening_ids(base),
    )  # fmt: skip
    options = chooser.ChoiceOptions(task="mmlu", data_dir=str(folder))
    exam, outputs = ChoiceExam(options, examinee_of(setting, None, None)), {}
    exam.score = lambda found: outputs.update(found) or {}
    predict = chooser.make_chooser(setting.apply_fn, exam.likelihood)
    row_outputs(setting, exam, predict, exam.candidates, CHUNK).one(model.variables)
    found = {"mmlu": {prompt: row.tolist() for prompt, row in zip(exam.prompts, outputs[""], strict=True)}}
    options = generation.GenerationOptions(
        task="gsm8k", data_dir=str(folder), max_new_tokens=NEW_TOKENS, batch=CHUNK, write=True
    )
    decoded = generation.generation(setting, None, options).one(model.variables)
    found["gsm8k"] = {row["prompt"]: row["continuation"] for row in decoded.texts}
    print({name: value for name, value in decoded.values.items() if np.isfinite(value)})
    return found


def digested(found):
    """The answers by digests of their prompts, which keeps the file small."""
    return {
        task: {hashlib.sha256(prompt.encode()).hexdigest()[:16]: answer for prompt, answer in answers.items()}
        for task, answers in found.items()
    }


def compare(name, ours, theirs):
    """Prints how far two sets of answers agree; returns whether all choices and texts are the same."""
    assert ours["mmlu"].keys() == theirs["mmlu"].keys(), "the prompts differ"
    assert ours["gsm8k"].keys() == theirs["gsm8k"].keys(), "the prompts differ"
    pairs = [(ours["mmlu"][prompt], values) for prompt, values in theirs["mmlu"].items()]
    chosen = sum(max(range(4), key=a.__getitem__) == max(range(4), key=b.__getitem__) for a, b in pairs)
    furthest = max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True))
    same = sum(ours["gsm8k"][prompt] == text for prompt, text in theirs["gsm8k"].items())
    print(f"{name}: {chosen} of {len(pairs)} choices, furthest {furthest:.1e}; {same} of {len(theirs['gsm8k'])} texts")
    return chosen == len(pairs) and furthest < TOLERANCE and same == len(theirs["gsm8k"])


def main():
    """Makes the file, or compares with it."""
    words = argparse.ArgumentParser()
    words.add_argument("side", choices=("hf", "ours"))
    words.add_argument("--data", type=Path, required=True)
    words.add_argument("--done", type=Path, default=None, help="file of what is done so far")
    given = words.parse_args()
    done = given.done or Path(tempfile.gettempdir()) / f"lm_eval_{given.side}.json"
    with tempfile.TemporaryDirectory() as made:
        folder, tasks = Path(made) / "data", Path(made) / "tasks"
        folder.mkdir()
        tasks.mkdir()
        excerpt(given.data, folder)
        requests = requests_of(folder, tasks)
        if given.side == "hf":
            found = digested(answers(hf_model(), requests, done))
            GOLDEN.write_bytes(gzip.compress(json.dumps(found, ensure_ascii=False).encode(), mtime=0))
            return
        theirs = json.loads(gzip.decompress(GOLDEN.read_bytes()))
        model = our_model()
        sides = {"wrapper": digested(answers(model, requests, done)), "forms": digested(forms(folder, model))}
        same = [compare(f"{name} and Hugging Face", ours, theirs) for name, ours in sides.items()]
        assert all([*same, compare("forms and wrapper", sides["forms"], sides["wrapper"])])


if __name__ == "__main__":
    main()
