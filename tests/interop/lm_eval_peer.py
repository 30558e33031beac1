"""Asks lm-eval's Hugging Face backend and ours the same MMLU questions and GSM8K problems, and compares.

200 questions and 100 problems of SmolLM2-135M-Instruct, as fetched by scripts/fetch_weights.py:

    python -m tests.interop.lm_eval_peer hf --data=FOLDER                # makes smollm2_lm_eval.json.gz
    python -m tests.interop.lm_eval_peer ours --data=FOLDER --out=FILE   # compares our answers with that file's

10 of each of pico-llama, whose weights are in the repository: short ones, as it reads 512 bytes. test_lm_eval.py
compares our answers with the second file on every run of the suite:

    python -m tests.interop.lm_eval_peer rows --data=FOLDER              # makes exam_rows.json
    python -m tests.interop.lm_eval_peer hf --base=pico-llama            # makes pico_lm_eval.json

FOLDER has mmlu/ and gsm8k/ with the official files. Models compute in float32 on the CPU; texts have at most 64 new
tokens. Ours are those of `evaluate` and of exams inside training. `hf` and `ours` continue where they were stopped,
with --out they begin anew.
"""

import argparse
import csv
import gzip
import hashlib
import importlib.metadata
import json
import shutil
import tempfile
import time
from pathlib import Path

SMOLLM2, PICO = "smollm2-135m", "pico-llama"
GOLDEN = {
    SMOLLM2: Path(__file__).with_name("smollm2_lm_eval.json.gz"),
    PICO: Path(__file__).with_name("pico_lm_eval.json"),
}
ROWS = Path(__file__).with_name("exam_rows.json")  # what pico-llama is asked
QUESTIONS, PROBLEMS, NEW_TOKENS = 200, 100, 64
FEW, SHORT = 10, 192  # of each exam for pico-llama; bytes of a prompt: with 64 new ones two compiled widths
CHUNK = 10  # questions between two writes of the file of what is done
TOLERANCE = 2e-4  # nats, of float32 sums of log-probabilities
SOURCES = {
    "mmlu": {
        "source": "MMLU, official test set (Hendrycks et al., arXiv 2009.03300, github.com/hendrycks/test)",
        "licence": "MIT, Copyright (c) 2020 Dan Hendrycks",
    },
    "gsm8k": {
        "source": "GSM8K, official test set (Cobbe et al., arXiv 2110.14168, github.com/openai/grade-school-math)",
        "licence": "MIT, OpenAI",
    },
}
COLUMNS = ("subject", "question", "A", "B", "C", "D", "answer")


def few(data):
    """Evenly spaced rows of the official files among those whose prompts are short, with their sources."""
    from lowrank_jax.data.builders.exams.readers import LETTERS
    from lowrank_jax.data.builders.exams.source import load_exam
    from lowrank_jax.tasks.exams.prompts import STYLES, prompt

    found = {}
    for name, source in SOURCES.items():
        short = [one for one in load_exam(name, "test", data) if len(prompt(STYLES[name], one).encode()) <= SHORT]
        kept = [short[index * len(short) // FEW] for index in range(FEW)]
        if name == "mmlu":
            rows = [[one.subject, one.question, *one.options, LETTERS[one.right]] for one in kept]
        else:
            rows = [{"question": one.question, "answer": one.worked} for one in kept]
        found[name] = {**source, "rows": rows}
    return found


def write_few(folder):
    """Writes the rows of ROWS into a folder in the official form; dev, of which no row is shown, has the same."""
    kept = json.loads(ROWS.read_text(encoding="utf-8"))
    for name in SOURCES:
        (folder / name).mkdir()
    for split in ("test", "dev"):
        with open(folder / "mmlu" / f"{split}.csv", "w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([COLUMNS, *kept["mmlu"]["rows"]])
    lines = "".join(json.dumps(row) + "\n" for row in kept["gsm8k"]["rows"])
    (folder / "gsm8k" / "test.jsonl").write_text(lines, encoding="utf-8")


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


def hf_model(base):
    """lm-eval's own backend over transformers, which reads the base's own weights, with our tokenizer's file.

    transformers makes a tokenizer of SmolLM2's GGUF file that does not split digits off first, as SmolLM2's own does:
    of two spaces before a digit it makes two tokens, not one (one prompt of the 300). pico-llama's is unknown to it.
    """
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM

    from lowrank_jax.bases.base import BaseConfig, abstract_base
    from lowrank_jax.bases.locate import resolve
    from lowrank_jax.text.tokenizers import save_tokenizer

    place = resolve(base)[0]
    files = list(place.glob("*.gguf"))
    given = {"gguf_file": files[0].name} if files else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **given).eval()
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(abstract_base(BaseConfig(base)).tokenizer, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=CHUNK, device="cpu")


def our_model(base):
    """Our model as `experiments.evaluate` gives it to lm-eval."""
    from experiments.evaluation.language_model import LanguageModel
    from experiments.generation.model import of_base

    return LanguageModel(of_base(base, None, "float32"), batch_size=CHUNK)


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


def agreement(ours, theirs):
    """How far two sets of digested answers agree: same choices, the furthest log-likelihoods (nats), same texts."""
    assert ours["mmlu"].keys() == theirs["mmlu"].keys(), "the prompts differ"
    assert ours["gsm8k"].keys() == theirs["gsm8k"].keys(), "the prompts differ"
    pairs = [(ours["mmlu"][prompt], values) for prompt, values in theirs["mmlu"].items()]
    return {
        "same_choices": sum(pick(a) == pick(b) for a, b in pairs),
        "furthest": round(max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)), 7),
        "same_texts": sum(ours["gsm8k"][prompt] == text for prompt, text in theirs["gsm8k"].items()),
    }


def pick(values):
    """The likeliest option's place."""
    return max(range(len(values)), key=values.__getitem__)


def golden(base):
    """The Hugging Face backend's answers, as recorded."""
    kept = GOLDEN[base].read_bytes()
    found = json.loads(gzip.decompress(kept) if GOLDEN[base].suffix == ".gz" else kept)
    return {task: found[task] for task in SOURCES}


def write_golden(base, found):
    """Keeps the Hugging Face backend's answers."""
    if base == SMOLLM2:
        GOLDEN[base].write_bytes(gzip.compress(json.dumps(found, ensure_ascii=False).encode(), mtime=0))
        return
    said = {"what": f"python -m tests.interop.lm_eval_peer hf --base={base}", "versions": versions(), **found}
    GOLDEN[base].write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def versions():
    """Versions of the libraries behind the Hugging Face backend."""
    return {name: importlib.metadata.version(name) for name in ("lm_eval", "torch", "transformers")}


def record_of(base, folder, requests, done):
    """Our answers by both ways, compared with the recorded ones and with each other."""
    from experiments.records.environment import environment_record

    begun = time.perf_counter()
    model = our_model(base)
    wrapped = digested(answers(model, requests, done))
    asked = time.perf_counter()
    formed = digested(forms(folder, model))
    ended = time.perf_counter()
    theirs = golden(base)
    return {
        "what": f"python -m tests.interop.lm_eval_peer ours --base={base} --data=FOLDER --out=FILE",
        "golden": {"file": GOLDEN[base].name, "sha256": hashlib.sha256(GOLDEN[base].read_bytes()).hexdigest()},
        "questions": len(theirs["mmlu"]),
        "problems": len(theirs["gsm8k"]),
        "new_tokens": NEW_TOKENS,
        "agreement": {
            "evaluate and Hugging Face": agreement(wrapped, theirs),
            "forms and Hugging Face": agreement(formed, theirs),
            "forms and evaluate": agreement(formed, wrapped),
        },
        "seconds": {"evaluate": round(asked - begun, 1), "forms": round(ended - asked, 1)},
        "peers": versions(),
        **environment_record(),
    }


def main():
    """Makes a file, or compares with it."""
    words = argparse.ArgumentParser()
    words.add_argument("side", choices=("hf", "ours", "rows"))
    words.add_argument("--base", choices=(*GOLDEN,), default=SMOLLM2)
    words.add_argument("--data", type=Path, help="folder of the official files; hf and ours of pico-llama need none")
    words.add_argument("--done", type=Path, help="file of what is done so far")
    words.add_argument("--out", type=Path, help="JSON file to write; all questions are asked again")
    given = words.parse_args()
    if given.data is None and (given.side == "rows" or given.base == SMOLLM2):
        words.error("give --data=FOLDER")
    if given.side == "rows":
        ROWS.write_text(json.dumps(few(given.data), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    done = given.done or Path(tempfile.gettempdir()) / f"lm_eval_{given.side}_{given.base}.json"
    if given.out:
        done.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as made:
        folder, tasks = Path(made) / "data", Path(made) / "tasks"
        folder.mkdir()
        tasks.mkdir()
        if given.base == SMOLLM2:
            excerpt(given.data, folder)
        else:
            write_few(folder)
        requests = requests_of(folder, tasks)
        if given.side == "hf":
            write_golden(given.base, digested(answers(hf_model(given.base), requests, done)))
            return
        record = record_of(given.base, folder, requests, done)
    text = json.dumps(record, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")
    for found in record["agreement"].values():
        assert (found["same_choices"], found["same_texts"]) == (record["questions"], record["problems"])
        assert found["furthest"] < TOLERANCE


if __name__ == "__main__":
    main()
