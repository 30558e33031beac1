"""Writes the fixtures of this folder but programs.json; kept for the record, and runs at commit da76ff5 (README.md)."""

import gzip
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from programs import HERE, doors, load

ROOT = doors.ROOT
TOKENS = np.random.default_rng(7).integers(0, 256, (2, 9))

# --- runs ---

COMMON = ("--config.checkpoint.every=0", "--config.tracking.wandb=disabled")
TOY = (
    *COMMON,
    "--config.base.name=llama",
    "--config.adapter.rank=4",
    "--config.adapter.targets=('query','value')",
    "--config.train.batch_size=8",
    "--config.train.steps=6",
    "--config.schedule.warmup_steps=1",
)
PAIRS = ("--config.task.pairs=20", "--config.task.eval_pairs=4", "--config.train.eval_steps=(2,)")
TEXT = ("--config.task.path=lines.jsonl", "--config.task.seq_len=48")
GLUE = (
    *COMMON,
    "--config.task.data_dir=glue",
    "--config.task.buckets=(64,)",
    "--config.train.log_every=1",
    "--config.optimizer.learning_rate=0.01",
)
GLUE_CONFIG = "configs/lora_glue.py:task=mrpc,method=lora,rank=2,base=bert,partial=true,epochs=3,batch=8,seq_len=64"
STOPPED = 3  # of 6 steps
# name: (program, its words, how it is stopped)
RUNS = {
    "uuid": ("run", ("--config=configs/mora_uuid.py:method=mora", "--name=uuid", *TOY, *PAIRS), "signal"),
    "glue": ("run", (f"--config={GLUE_CONFIG}", "--name=glue", *GLUE), "stop_at"),
    "trials": ("trials", ("--config=configs/mora_uuid.py:method=lora,data=text", "--seeds=0,1", *TOY, *TEXT), "signal"),
}
# A signal after step 3, without waiting for one.
SIGNALLED = f"""
import runpy, sys
from lowrank_jax.train import loop, trial_loop
class Stop(loop.StopRequest):
    def requested(self, step):
        return step == {STOPPED}
loop.StopRequest = trial_loop.StopRequest = Stop
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
CLOCKS = ("time", "tokens_per_second", "train_seconds")


def start(folder: Path, program: str, words, *, signalled=False) -> None:
    """Runs a program in the folder to its end; its configs are named from the checkout."""
    words = [word.replace("--config=", f"--config={ROOT}/") for word in words]
    head = ["-c", SIGNALLED] if signalled else ["-m"]
    ended = subprocess.run(
        [sys.executable, *head, f"experiments.{program}", *words],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == (130 if signalled else 0), ended.stderr[-3000:]


def make_bases(folder: Path) -> None:
    """A toy Llama and a toy BERT, their weights drawn wide enough to show in the logits, in float16."""
    from lowrank_jax.data.tokenizers import ByteTokenizer
    from lowrank_jax.interop.sources import export_params, param_shapes

    from lowrank_jax.core.paths import flatten, unflatten
    from lowrank_jax.models.registry import get_model

    rng = np.random.default_rng(0)
    for name in ("llama", "bert"):
        shape, leaves = get_model(f"toy-{name}"), {}
        for path, dims in param_shapes(shape).items():
            middle = 1.0 if path.endswith("scale") else 0.0
            leaves[path] = rng.normal(middle, 0.1 if path.endswith(("scale", "bias")) else 0.15, dims)
        leaves = {path: leaf.astype(np.float16).astype(np.float32) for path, leaf in leaves.items()}
        assert flatten(unflatten(leaves)).keys() == leaves.keys()
        export_params(unflatten(leaves), shape, folder / name, "float16", tokenizer=ByteTokenizer())


def make_data(folder: Path) -> None:
    """20 lines of text, and MRPC's files with 16 rows to train on and 5 to score."""
    lines = [{"prompt": f"{i} times {i} is ", "completion": f"{i * i}."} for i in range(20)]
    (folder / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["plain", "naive", "odd", 'an "unbalanced', "long " * 8]
    (folder / "glue" / "MRPC").mkdir(parents=True)
    for split, rows in (("train", 16), ("dev", 5)):
        lines = ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
        for i in range(rows):
            texts = [f"{split} {i} {words[(i + j) % 5].strip()}" for j in range(2)]
            lines.append("\t".join(["0110010111001010"[i], str(i), str(i + 50), *texts]))
        (folder / "glue" / "MRPC" / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def make_runs(folder: Path) -> None:
    """runs.tar.gz: bases, data, folders stopped half way, adapters of whole runs; runs.json: what those came to."""
    import jax

    expected = {"place": doors.place(), "runs": {}}
    make_bases(folder)
    make_data(folder)
    for name, (program, words, how) in RUNS.items():
        start(folder, program, (*words, f"--workdir=whole/{name}"))
        early = ("--config.train.stop_at=3",) if how == "stop_at" else ()
        start(folder, program, (*words, *early, f"--workdir=stopped/{name}"), signalled=how == "signal")
        found = {}
        for run in sorted(path for path in (folder / "whole" / name).iterdir() if (path / "result.json").exists()):
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            result = json.loads((run / "result.json").read_text())
            found[run.name] = {
                "metrics": [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines],
                "result": {key: result[key] for key in ("status", "parameters", "evaluations", "losses")},
            }
            shutil.copytree(run / "adapter", folder / "adapters" / run.name)
            half = folder / "stopped" / name / run.name
            assert len((half / "metrics.jsonl").read_text().splitlines()) < len(lines)
            (half / "curves.png").unlink(missing_ok=True)
        assert found
        expected["runs"][name] = {"program": program, "words": [*words], "stopped": STOPPED, "expected": found}
    assert expected["place"]["jax"] == jax.__version__
    pack(folder, ("llama", "bert", "glue", "lines.jsonl", "stopped", "adapters"), HERE / "runs.tar.gz")
    (HERE / "runs.json").write_text(json.dumps(expected, indent=1) + "\n")


# --- adapters ---

FAMILIES = {
    "lora": {"method": "lora", "rank": 3, "alpha": 5.0, "targets": ("all-linear",)},
    "mora-sharing": {"method": "mora", "rank": 2, "targets": ("query", "value", "up")},
    "mora-rotation": {"method": "mora", "rank": 2, "targets": ("query", "value", "down")},
    "dora": {"method": "dora", "rank": 2, "targets": ("query", "out", "gate")},
    "houlsby": {"method": "houlsby", "rank": 4},
}
PEFT = ("lora", "dora")


def make_adapters(folder: Path) -> None:
    """adapters.tar.gz: folders of save_adapter and of save_peft over the toy Llama; logits.npz: what they compute."""
    import jax
    from lowrank_jax.interop.peft_export import save_peft
    from lowrank_jax.interop.sources import BaseConfig, load_base

    from lowrank_jax import adapters
    from lowrank_jax.checkpoints.adapters_only import save_adapter
    from lowrank_jax.core.paths import flatten, unflatten
    from lowrank_jax.interop import llama

    base, rng, found = load_base(BaseConfig(str(folder / "llama"))), np.random.default_rng(1), {}
    plain = np.asarray(base.model.apply({"params": base.params}, TOKENS))
    for name, section in FAMILIES.items():
        mora = {"mora": adapters.MoraConfig(compression=name.partition("-")[2])} if "mora" in name else {}
        plan = adapters.make_plan(base.params, adapters.AdapterConfig(**section, **mora))
        made = adapters.create(plan, jax.random.key(0), base.params)
        moved = {p: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape) for p, leaf in flatten(made["adapters"]).items()}
        moved = unflatten({path: leaf.astype(np.float32) for path, leaf in moved.items()})
        variables = {"params": base.params, "scales": made["scales"], "adapters": moved}
        scales = {path: np.asarray(scale).tolist() for path, scale in flatten(made["scales"]).items()}
        to, described = folder / "ours" / name, adapters.describe(plan)
        save_adapter(to, {"adapters": moved}, described, scales, {"name": "llama", "fingerprint": base.fingerprint})
        found[f"ours/{name}"] = np.asarray(jax.jit(adapters.attach(base.model, plan))(variables, TOKENS))
        if name in PEFT:
            rows, layers = llama.hf_table(base.config), base.config.num_hidden_layers
            save_peft(folder / "peft" / name, plan, variables, rows, layers, "llama", base.fingerprint)
            found[f"peft/{name}"] = found[f"ours/{name}"]
    for name, value in found.items():
        assert np.abs(value - plain).max() > 0.01 * np.abs(plain).max(), name
        again = doors.logits(folder / "llama", folder / name, TOKENS)
        assert np.abs(value - again).max() <= 1e-6 * np.abs(value).max(), name
    pack(folder, ("llama", "ours", "peft"), HERE / "adapters.tar.gz")
    np.savez_compressed(HERE / "logits.npz", tokens=TOKENS, **found)


# --- tables ---

TABLES = {
    **{f"mora_table2-{scale}": ("mora_table2", {"scale": scale}) for scale in ("laptop", "gpu", "paper")},
    **{
        f"lora_table2-{model}": ("lora_table2", {"model": model})
        for model in ("minilm-l6", "bert-base", "roberta-base", "roberta-large", "deberta-v2-xxlarge")
    },
    **{name: (name, {}) for name in ("quantized", "ledger")},
    "speed": ("speed", {"only": "speed/cpu_suite.json,speed/h100_suite.json,speed/h200_suite.json"}),
}
FORMATS = {"txt": "text", "md": "markdown"}


def make_tables() -> None:
    """tables/NAME.txt and .md: exactly what experiments.tables prints, and tables/commands.json: by which words."""
    shutil.rmtree(HERE / "tables", ignore_errors=True)
    (HERE / "tables").mkdir()
    commands = {}
    for (stem, (name, options)), (ending, form) in itertools.product(TABLES.items(), FORMATS.items()):
        text = doors.table(name, **options, format=form)
        if ending == "txt":  # the program itself says the same
            words = [name, *(f"--{key}={value}" for key, value in options.items())]
            command = [sys.executable, "-m", "experiments.tables", *words]
            assert text == subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        if name == "ledger" and ending == "md":  # it has one form
            continue
        (HERE / "tables" / f"{stem}.{ending}").write_text(text)
        commands[f"{stem}.{ending}"] = [name, options | {"format": form}]
    (HERE / "tables" / "commands.json").write_text(json.dumps(commands, indent=1) + "\n")


# --- names ---

GRIDS = {
    "uuid_laptop": "configs/mora_uuid.py",
    "uuid_table2": "configs/mora_uuid.py",
    "glue_minilm": "configs/lora_glue.py",
    "glue_roberta": "configs/lora_glue.py",
}
UUID, CELL = "--config=configs/mora_uuid.py:", "--config=configs/lora_glue.py:"
MODELS = ("minilm-l6", "bert-base", "roberta-base", "roberta-large", "deberta-v2-xxlarge")
METHODS = ("lora", "mora", "dora", "fft", "ft-top2", "bitfit", "head", "houlsby", "lin", "pfeiffer", "adapterdrop")
TASKS = ("mrpc", "cola", "sst2", "rte", "stsb", "qnli", "qqp", "mnli", "wnli")
MAPS = ("truncation", "decoupling", "rotation", "type1", "type2", "type3", "type4", "type6")
FURTHER = (
    *(f"{CELL}task=mrpc,model={m},method={k},reading=code" for m in MODELS[2:] for k in ("lora", "mora", "dora")),
    *(f"{CELL}model=roberta-large,method={k},protocol=dagger" for k in ("lora", "houlsby", "pfeiffer,rank=64")),
    *(f"{CELL}method=mora,compression={c}" for c in MAPS),
    *(f"{CELL}method=lora,targets={t}" for t in ("q", "q+k", "q+v", "query+key+value+o", "q+k+v+o")),
    f"{CELL}method=adapterdrop,placement=houlsby,drop=3",
    f"{CELL}method=lora,rank=64,batch=8,epochs=7,seq_len=96",
    f"{CELL}task=rte,model=roberta-base,start=runs/MNLI_RUN/adapter,head=adapter",
    f"{CELL}task=mnli,model=roberta-base,train_examples=100",
    f"{CELL}task=mrpc,base=some/folder,partial=true",
    f"{CELL}task=mrpc,method=lora --config.optimizer.learning_rate=0.002 --config.adapter.scaling=rslora",
    f"{CELL}task=mrpc,method=lora --config.adapter.method=mora --config.adapter.rank=4",
    f"{CELL}task=mrpc,method=lora --config.base.quantize=nf4 --config.base.remat=full",
    f"{CELL}task=mrpc --config.train.stop_at=20 --config.tracking.wandb=disabled --config.seed=3",
    f"{UUID}scale=gpu,method=mora,rank=32",
    f"{UUID}scale=gpu,method=lora,rank=32 --config.base.fused=true --config.base.scan_unroll=30",
    f"{UUID}method=mora --config.adapter.mora.compression=rotation --config.adapter.mora.layout=pairs",
    f"{UUID}method=mora --config.adapter.method=dora",
    f"{UUID}method=lora --config.adapter.dropout=0.1 --config.schedule.kind=cosine --config.optimizer.b2=0.95",
    f"{UUID}data=text --config.task.path=mine.jsonl --config.task.seq_len=128 --config.task.packed=true",
    f"{UUID}data=text,scale=gpu,method=lora,rank=8 --config.base.quantize=int8 --config.train.eval_every=200",
    f"{UUID}method=mora --config.mesh.fsdp=2 --config.checkpoint.every=7 --config.export.merged=float16",
    "--config=configs/pico_pretrain.py",
    "--config=configs/pico_pretrain.py:steps=100,dtype=float32",
)


def config_words() -> list[str]:
    """Configs with their arguments: what the files' own text says, every choice, and rows of the suites."""
    files = [ROOT / "README.md", *sorted(ROOT.glob("configs/**/*.py")), *sorted(ROOT.glob("experiments/*.py"))]
    said = "\n".join(path.read_text() for path in files)
    found = {word.rstrip(".,") for word in re.findall(r"--config=configs/\w+\.py(?::[\w=,./+-]+)?(?![\w{])", said)}
    found = {word for word in found if (ROOT / word.removeprefix("--config=").partition(":")[0]).is_file()}
    for scale, reading, data in itertools.product(("laptop", "gpu", "paper"), ("paper", "code"), ("uuid", "text")):
        for method in ("fft", "lora,rank=8", "lora,rank=256", "mora,rank=8", "mora,rank=256"):
            found.add(f"{UUID}scale={scale},method={method},reading={reading},data={data}")
    found |= {f"{UUID}method=mora,compression={name}" for name in MAPS}
    found |= {f"{CELL}task={task},model={model}" for task in TASKS for model in (MODELS[0], MODELS[2], MODELS[4])}
    pairs = itertools.product(MODELS, METHODS)
    found |= {f"{CELL}model={m},method={k}" for m, k in pairs if (m, k) != ("deberta-v2-xxlarge", "ft-top2")}
    for suite in ("h100", "cpu"):
        for words in doors.suite_words(suite).values():
            found.add(" ".join(word for word in words if word.startswith("--config")))
    return sorted(found | set(FURTHER))


def make_names() -> None:
    """names.json.gz: names, which end with their hash, and labels of configs, grids' cells and recorded results."""
    configs, records = {}, {}
    for words in config_words():
        plain = doors.plain_config(words)
        configs[words] = [doors.name_of(plain), doors.labels_of(plain)]
        assert configs[words][0].endswith(f"-{doors.hash_of(plain)}")
    grids = {name: [config, doors.grid_cells(config, f"configs/sweeps/{name}.py")] for name, config in GRIDS.items()}
    for result in doors.recorded():
        assert result["labels"] == doors.labels_of(result["config"])
        records[result["name"]] = [doors.name_of(result["config"]), result["labels"]]
    text = json.dumps({"configs": configs, "grids": grids, "records": records}, sort_keys=True, indent=0)
    (HERE / "names.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    counts = {name: len(cells) for name, (_, cells) in grids.items()}
    print(f"{len(configs)} configs, {counts} cells, {len(records)} records")


def pack(folder: Path, names, to: Path) -> None:
    """A .tar.gz of these folders, the same bytes for the same content."""

    def plain(entry):
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in names:
            tar.add(folder / name, name, filter=plain)
    to.write_bytes(gzip.compress(held.getvalue(), mtime=0))


def main() -> None:
    """Makes what is named on the command line, by default all of it."""
    wanted = sys.argv[1:] or ["runs", "adapters", "tables", "names"]
    with tempfile.TemporaryDirectory() as folder:
        if "runs" in wanted:
            make_runs(Path(folder))
        if "adapters" in wanted:
            if "runs" not in wanted:
                make_bases(Path(folder))
            make_adapters(Path(folder))
    if "tables" in wanted:
        make_tables()
    if "names" in wanted:
        make_names()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    flags = load("before_flags", HERE.parent / "conftest.py")  # the tests' flags for XLA, for the programs too
    try:
        main()
    finally:
        flags.pytest_unconfigure()
