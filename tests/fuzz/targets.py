"""What is mutated, and which program is given it; every case is made from its seed, target and number alone."""

import contextlib
import functools
import gzip
import hashlib
import json
import os
import random
import shutil
from unittest import mock

from by_path import SCRIPTS, module_at

from fuzz import doors, mutations
from fuzz.shapes import SHAPES
from fuzz.spoiling import spoil
from fuzz.workspace import ROOT, words, workspace

SECONDS = 60  # of one case
HERE = "here"  # folder of a case that its programs are started in
MEMORY = 2**28  # bytes that a trained case may need
REAL = 0.04  # share of the cases of a config that are trained


# ---- the cases ----


def config(rng, kept, case):
    """A run's config.json, given as --config."""
    file = case / "config.json"
    mutations.write(file, mutations.text_of(rng, mutations.mutate(rng, kept.config)))
    if rng.random() < REAL:
        return run(kept, case, f"--config={file}")
    return build(f"--config={file}")


def override(rng, kept, case):
    """One to three values of the command line."""
    given = words(kept)
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = rng.choice(_paths(kept.config))
        value = mutations.near(rng, _at(kept.config, path))
        if isinstance(value, list):
            value = tuple(value)
        shown = value if isinstance(value, str) else _shown(value)
        given.append(f"--config.{path}={shown}".replace("\0", "").replace("\ud800", ""))
    given = [word for word in given if not word.startswith("--workdir")]
    if rng.random() < REAL:
        return run(kept, case, *given)
    return build(*given)


def data(rng, kept, case):
    """JSON lines of a user's own data."""
    file = case / rng.choice(("rows.jsonl", "rows.jsonl", "rows.jsonl.gz"))
    lines, talks = kept.data.read_text().splitlines(), rng.random() < 0.4
    turns = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant")]
    if talks:
        lines = [json.dumps({"messages": turns[rng.randrange(2) :]}) for _ in lines]
    for _ in range(rng.choice((1, 2))):
        place = rng.randrange(len(lines))
        row = rng.choice(({"text": f"row {place}"}, {"text": f"row {place}"}, {"prompt": "a", "completion": "b"}))
        if talks:
            said = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
            kinds = {"messages": turns}, {"conversations": said}, {"instruction": "a", "input": "b", "output": "c"}
            row = rng.choice((*kinds, {"prompt": turns[:2], "completion": turns[2:]}))
        lines[place] = mutations.text_of(rng, mutations.mutate(rng, row))
    content = "\n".join(lines).encode("utf-8", errors="surrogatepass")
    content = mutations.flip(rng, content) if rng.random() < 0.4 else content
    if file.suffix == ".gz" and rng.random() < 0.9:
        content = gzip.compress(content)
        content = mutations.flip(rng, content) if rng.random() < 0.5 else content
    file.write_bytes(content)
    more = {"task__packed": rng.choice(("true", "false")), "task__seq_len": rng.choice(("8", "16", "2", "512"))}
    if talks:
        more |= {"task__chat_template": rng.choice(("zephyr",) * 8 + ("chatml", "")), "task__seq_len": "128"}
    if talks or rng.random() < 0.2:
        more |= {
            "task__documents": rng.choice(("separate", "joined")),
            "task__packed": rng.choice(("true", "true", "false")),
        }
    given = words(
        kept, "configs/mora_uuid.py:data=text", task__pairs=None, task__eval_pairs=None, task__path=file, **more
    )
    return build(*(word for word in given if not word.startswith("--workdir")))


def base(rng, kept, case):
    """A base folder: its config.json, tokenizer, index or weights."""
    folder = case / "base"
    shutil.copytree(rng.choice((kept.base, kept.sharded)), folder)
    name = rng.choice(sorted(file.name for file in folder.iterdir()) + ["config.json"] * 4)
    spoil(rng, folder / name)
    given = words(kept, base__name=folder, base__random_init="false")
    if rng.random() < 0.3:
        return load(folder)
    return build(*(word for word in given if not word.startswith("--workdir")))


def gguf(rng, kept, case):
    """A GGUF file: mostly what stands before its weights."""
    file = case / rng.choice(("base.gguf", "base.gguf", "base-00001-of-00002.gguf"))
    content = kept.gguf.read_bytes()
    end = rng.choice((len(content), *(content.index(b"blk.1.ffn_down.weight"),) * 4))
    file.write_bytes(mutations.flip(rng, content[:end]) + content[end:])
    if rng.random() < 0.5:
        return load(file)
    given = words(kept, base__name=file, base__random_init="false")
    return build(*(word for word in given if not word.startswith("--workdir")))


def shape(rng, kept, case):
    """A config.json of any architecture, without weights."""
    folder = case / "base"
    folder.mkdir()
    kind = rng.choice(sorted(SHAPES))
    mutations.write(folder / "config.json", mutations.text_of(rng, mutations.mutate(rng, SHAPES[kind])))
    given = words(kept, base__name=folder, base__random_init="false", adapter__targets="('all-linear',)")
    return build(*(word for word in given if not word.startswith("--workdir")), seq_len=16)


def adapter(rng, kept, case):
    """An adapter's folder, ours or PEFT's: as a start, and to be merged."""
    ours = rng.random() < 0.5
    folder = case / "adapter"
    shutil.copytree(kept.adapter if ours else kept.peft, folder)
    spoil(rng, folder / rng.choice(sorted(file.name for file in folder.iterdir())))
    if ours and rng.random() < 0.7:
        _sign(folder)
    if ours and rng.random() < 0.5:
        given = words(
            kept, base__name=kept.base, base__random_init="false", start__adapter=folder, adapter__method="lora",
            adapter__rank="2", adapter__targets="('query','value')",
        )  # fmt: skip
        return build(*(word for word in given if not word.startswith("--workdir")))
    script = _script("merge_adapter")
    argv = ["--base", str(kept.base), "--adapter", str(folder), "--to", str(case / "out")]
    return lambda: doors.call("", main=lambda: script.main(argv), seconds=SECONDS)


def results(rng, kept, case):
    """Recorded results, for the tables."""
    from absl import flags

    from experiments import tables
    from experiments.tables.__main__ import define_flags

    name = rng.choice(
        ("mora_table2", "lora_table2", "lora_table3", "lora_table14", "lora_table18", "quantized", "speed")
    )
    options = flags.FlagValues()
    define_flags(options)
    options(["tables"])
    options.scale = rng.choice(("gpu", "laptop"))
    if name == "speed":
        suite = json.loads((ROOT / "experiments/results/speed/cpu_suite.json").read_text())
        file = case / "cpu_suite.json"
        mutations.write(file, mutations.text_of(rng, mutations.mutate(rng, suite)))
    else:
        file = case / "found.jsonl"
        lines = [json.dumps(record) for record in kept.recorded]
        place = rng.randrange(len(lines))
        lines[place] = mutations.text_of(rng, mutations.mutate(rng, kept.recorded[place]))
        mutations.write(file, "\n".join(lines) + "\n")
        if rng.random() < 0.3:
            file.write_bytes(mutations.flip(rng, file.read_bytes()))
    options.results = [str(file)]

    def show():
        print(tables.make(tables.find([name]), options).text("text"))
        return 0

    return lambda: doors.call("", main=show, seconds=SECONDS)


def scored(rng, kept, case):
    """The folder of a run that has answered an exam, scored again."""
    folder = case / "runs" / "asked"
    folder.mkdir(parents=True)
    asked = {"evals": {"ask": {"type": "generation", "task": "ner", "write": True}}, "task": {"name": "text"}}
    record = {**kept.result, "config": {**kept.config, **asked}, "evaluations": [{"step": 2, "ask/n": 3.0}]}
    (folder / "result.json").write_text(json.dumps(record))
    row = {"step": 2, "name": "ask", "prompt": "Who?", "continuation": "Ann (PER)", "references": ["Ann (PER)"]}
    (folder / "decoded.jsonl").write_text("".join(json.dumps({**row, "prompt": f"{i}?"}) + "\n" for i in range(3)))
    spoil(rng, folder / rng.choice(("result.json", "decoded.jsonl")))
    return lambda: doors.call("score", f"--runs={folder}", seconds=SECONDS)


def finished(rng, kept, case):
    """The folder of a finished run, started again."""
    shutil.copytree(kept.run, case / "run")
    name = rng.choice(("result.json", "config.json", "metrics.jsonl", "result.json"))
    spoil(rng, case / "run" / name)
    given = [word for word in words(kept) if not word.startswith("--workdir")]
    return lambda: _untrained("run", *given, f"--workdir={case}", "--name=run")


def source(rng, kept, case):
    """A config file in Python."""
    file = case / "config.py"
    file.write_bytes(mutations.flip(rng, (ROOT / "configs/mora_uuid.py").read_bytes()))
    return build(f"--config={file}:method={rng.choice(('lora', 'mora'))}", *words(kept)[2:])


TARGETS = {
    one.__name__: one for one in (config, override, data, base, gguf, shape, adapter, results, scored, finished, source)
}


# ---- the programs ----


def build(*given, seq_len=None):
    """A case that does what experiments.plan does, but for the compilation."""
    more = () if seq_len is None else (f"--seq_len={seq_len}",)
    return lambda: _uncompiled("plan", *given, *more)


def run(kept, case, *given):
    """A case that trains in a folder of its own, and whose records are then read back."""

    def call():
        place = case / "trained"
        few = ["--config.train.steps=2"] if not any("train.steps" in word for word in given) else []
        ended = _bounded("run", *given, *few, f"--workdir={place}", "--name=run")
        if ended.status == 0 and not ended.fault:
            ended.fault = _read_back(place / "run")
        return ended

    return call


def load(folder):
    """A case that loads a base, weights and all."""

    def main():
        import jax

        from lowrank_jax.bases.base import BaseConfig, load_base

        load_base(BaseConfig(str(folder)), jax.random.PRNGKey(0))
        return 0

    return lambda: doors.call("", main=main, seconds=SECONDS)


class Trained(Exception):
    """The case has come as far as training, which takes too long for every one of them."""


def _uncompiled(name, *given):
    with mock.patch("experiments.session.experiment.Experiment.compile", return_value=None):
        with mock.patch("lowrank_jax.train.compiled.memory.check_fits", return_value=None):
            return doors.call(name, *given, seconds=SECONDS)


def _bounded(name, *given):
    """Trains on a device of little memory: what asks for more is refused as on any other."""
    with mock.patch("lowrank_jax.train.compiled.memory.device_limit", return_value=MEMORY):
        return doors.call(name, *given, seconds=4 * SECONDS)


def _untrained(name, *given):
    def stop(*_, **__):
        raise Trained

    with mock.patch("experiments.session.training.Session.compile", stop):
        ended = doors.call(name, *given, seconds=SECONDS)
    if ended.fault.rstrip().endswith("Trained"):
        ended.fault = ""  # it was to be resumed
    return ended


def _read_back(folder):
    """ "" where a run's records are finite and its config is what is read back; otherwise what is wrong."""
    from experiments.config.files import RECORDS
    from experiments.config.labels import with_labels
    from experiments.config.plain import content_hash, to_plain

    from experiments.cli import complete_file  # isort: skip

    written = json.loads((folder / "config.json").read_text())
    for key in RECORDS:
        written.pop(key, None)
    again = with_labels(to_plain(complete_file(str(folder / "config.json"))))
    if again != written or content_hash(again) != content_hash(written):
        return f"read back otherwise: {again} instead of {written}"
    result = json.loads((folder / "result.json").read_text())
    if any(loss is None for _, loss in result["losses"]) and result["status"] != "diverged":
        return "a loss that is not finite"
    return ""


def _sign(folder):
    """Writes the weights' true digest into adapter.json, so that a mutated file comes further."""
    if not all((folder / name).is_file() for name in ("adapter.json", "adapter.safetensors")):
        return  # a mutation made a pipe of it, whose reader would wait
    with contextlib.suppress(ValueError, OSError, TypeError, RecursionError):
        description = json.loads((folder / "adapter.json").read_text())
        description["sha256"] = hashlib.sha256((folder / "adapter.safetensors").read_bytes()).hexdigest()
        (folder / "adapter.json").write_text(json.dumps(description))


# ---- small things ----


def _paths(node, prefix=""):
    found = []
    for key, value in node.items():
        if isinstance(value, dict) and value and key not in ("data",):
            found += _paths(value, f"{prefix}{key}.")
        elif key not in ("data",):
            found.append(f"{prefix}{key}")
    return found


def _at(node, path):
    for key in path.split("."):
        node = node[key]
    return node


def _shown(value):
    try:
        return repr(value)
    except ValueError:  # an int that Python does not write
        return "9" * 5000


@functools.cache
def _script(name):
    return module_at(SCRIPTS / f"{name}.py")


def state(place):
    """{file: (size, time)} of everything below a folder but the cases' own."""
    found = {}
    for folder, below, files in os.walk(place):
        below[:] = [name for name in below if name != "case"]
        for name in files:
            about = os.stat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (about.st_size, about.st_mtime_ns)
    return found


def attempt(target, seed, number, folder):
    """(what is wrong or "", how it ended) of one case."""
    return tried(target, random.Random(f"{seed}/{target}/{number}"), folder)


def tried(target, rng, folder):
    """The same of the case that a source of random choices makes."""
    kept = workspace(str(folder))
    case = kept.place / "case"
    shutil.rmtree(case, ignore_errors=True)
    (case / HERE).mkdir(parents=True)
    before = state(kept.place)
    with contextlib.chdir(case / HERE):  # where a mutated name of a folder, "../x" too, is inside the case
        ended = TARGETS[target](rng, kept, case)()
    wrong = doors.verdict(ended)
    if not wrong and (changed := {*before.items()} ^ {*state(kept.place).items()}):
        wrong = f"files outside the case changed: {sorted(name for name, _ in changed)[:3]}"
    return wrong, ended
