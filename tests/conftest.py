"""Settings made before jax is imported: 8 simulated CPU devices (or a GPU), and one compilation cache per run."""

import functools
import gc
import importlib.metadata
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for `from fuzz import doors`, as `python -m tests.fuzz` does

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background job; it is inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEVICES = 8
PROGRAMS = 2_000  # compiled ones that a process keeps in memory
MAPPED = 40_000  # regions of memory; at 65,530, Linux's usual limit, XLA ends the process without a message
gc.set_threshold(150_000, 20, 100)  # tracing makes objects faster than they die: 1.6% of toy runs, at 50,000 3.4%
PLATFORM = os.environ.get("LOWRANK_JAX_TEST_PLATFORM", "cpu")  # cuda: for tests that need a GPU (CONTRIBUTING.md)
os.environ["JAX_PLATFORMS"] = PLATFORM
_FLAGS = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _FLAGS:
    os.environ["XLA_FLAGS"] = f"{_FLAGS} --xla_force_host_platform_device_count={DEVICES}".strip()

if "xla_cpu_experimental_ynn_fusion_type" not in _FLAGS:  # wrong results: see experiments.cli.set_xla_flags
    os.environ["XLA_FLAGS"] += " --xla_cpu_experimental_ynn_fusion_type="

# Compilation is most of the suite: without LLVM's optimisations test_sharding and test_groups took 74 s instead of
# 122 s, without MLIR's emitters of fusions test_bottleneck compiled in 15 s instead of 36 s, and a small program took 3
# regions of memory instead of 21 (see MAPPED). XLA's own passes, and so what the tests read of programs and their
# memory, are the same.
QUICK = (
    "xla_backend_optimization_level=0",
    "xla_llvm_disable_expensive_passes=true",
    # jax 0.11 aborts at the first; jax 0.10 knows the second, but then fuses differently (see before/programs.json).
    "xla_cpu_use_fusion_emitters=false"
    if importlib.metadata.version("jaxlib").startswith("0.10.")
    else "xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    "xla_cpu_parallel_codegen_split_count=1",
)
for flag in QUICK if PLATFORM == "cpu" else ():
    if flag.split("=")[0] not in _FLAGS:
        os.environ["XLA_FLAGS"] += f" --{flag}"

# Other libraries' products are tiny here, and their threads spin while they wait for each other: torch's linear layers
# alone were a sixth of test_families.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# No Python frames in the compiled programs' locations: test_groups, test_llama and test_state took 6% less time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# The first process of the run makes the folder; xdist's workers and the tests' own subprocesses inherit its name.
_RUN_FOLDER = None
if "LOWRANK_JAX_TEST_FOLDER" not in os.environ:
    _RUN_FOLDER = tempfile.mkdtemp(prefix="lowrank_jax_tests_")
    os.environ["LOWRANK_JAX_TEST_FOLDER"] = _RUN_FOLDER
_FOLDER = Path(os.environ["LOWRANK_JAX_TEST_FOLDER"])
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_FOLDER / "jax_cache")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["TFDS_DATA_DIR"] = str(_FOLDER / "tfds")  # never the user's own


def exact_sum(values, /, start=0):
    """The builtin `sum`, which fails where the result is a float."""
    total = sum(values, start)
    assert type(total) is not float, "Python 3.12 rounds a sum of floats differently from 3.11: use math.fsum"
    return total


def _run_with_exact_sum(loader, module, run=SourceFileLoader.exec_module):
    if module.__name__.startswith(("lowrank_jax.", "experiments.")):
        vars(module)["sum"] = exact_sum
    run(loader, module)


# Our modules call `exact_sum` in place of the builtin `sum`, whether pytest imports them or a test does later.
SourceFileLoader.exec_module = _run_with_exact_sum


# Where each file is one worker's (scripts/test.sh), the longest come first: no worker ends long after the others.
LONGEST = (
    "experiments/test_processes.py",
    "experiments/test_run.py",
    "models/test_families.py",
    "experiments/test_programs.py",
    "experiments/test_build.py",
    "experiments/test_bench.py",
    "experiments/test_glue_run.py",
    "models/test_family_layouts.py",
    "experiments/test_trials.py",
    "train/test_step.py",
    "sharding/test_sharding.py",
    "adapters/test_groups.py",
    "adapters/test_bottleneck.py",
    "metrics/texts/test_official.py",
    "experiments/test_generate.py",
    "adapters/test_attach.py",
    "test_contributing.py",
    "checkpoints/test_manager.py",
    "experiments/test_sweep.py",
    "experiments/test_claims.py",
)


def pytest_collection_modifyitems(items):
    """Tests of the longest files first, in the order of LONGEST; the others as they were."""
    folder = Path(__file__).parent
    place = {folder / name: number for number, name in enumerate(LONGEST) if (folder / name).stat()}  # or it is renamed
    items.sort(key=lambda item: place.get(item.path, len(place)))


# Files with something in common are one worker's: what the text of such a file has -> a name for them.
TOGETHER = {
    # Imports of torch and its like, or the peer's script, which has them: 10 s in each worker. A quarter of the suite.
    re.compile(r"\b(from|import) (torch|transformers|peft|lm_eval|late)\b|peft_step"): "torch",
    # Toy runs of experiments/conftest.py: `straight` is made once, and their programs are compiled once.
    re.compile(r"^def test\w*\((?:[^)]*\W)?(run|straight)\W", re.MULTILINE): "runs",
}


@functools.cache
def group(file: Path) -> str:
    """The name of the group of a file, or the file's own; those of interop/ import torch by their fixtures."""
    text = file.read_text()
    names = (name for pattern, name in TOGETHER.items() if pattern.search(text))
    return "torch" if "interop" in file.parts else next(names, str(file))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`--dist loadfile` by groups of files, in place of files."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return group(config.rootpath / super()._split_scope(nodeid))

    return Scheduling(config, log)


def pytest_unconfigure():
    """Removes the run's folder, in the process that made it."""
    if _RUN_FOLDER is not None:
        shutil.rmtree(_RUN_FOLDER, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def one_context():
    """One MLIR context for the programs of a file, where jax makes and fills one for each: 12 ms an addition, not 15.5.

    A context keeps the constants of all its programs, so that each file has its own.
    """
    from jax._src.interpreters import mlir

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlir, "make_ir_context", functools.cache(mlir.make_ir_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def programs_in_memory():
    """The last compiled programs are kept as they are, for the next trace of one of them in this process.

    Jax's own cache would write each to a file and read it back; the writing alone is 1.6% of toy runs. With jax 0.11 a
    program takes about 20 regions of memory: the older half is dropped when the process has over half of MAPPED.
    """
    from jax._src import compilation_cache

    kept, lock, puts = {}, threading.Lock(), itertools.count(1)  # a run compiles on several threads
    files = compilation_cache.get_executable_and_time, compilation_cache.put_executable_and_time

    def place(key, devices):
        return key, tuple(device.id for device in devices)

    def get(key, options, backend, devices, *callbacks):  # jax 0.11 has the last, which a program is bound to
        found = None if any(callbacks) else kept.get(place(key, devices))
        return (found, 0) if found is not None else files[0](key, options, backend, devices, *callbacks)

    def put(key, name, program, backend, seconds):
        with lock:
            kept[place(key, program.local_devices())] = program
            crowded = next(puts) % 100 == 0 and _mapped() > MAPPED // 2
            most = len(kept) // 2 if crowded else PROGRAMS
            while len(kept) > most:
                del kept[next(iter(kept))]
        if seconds:  # whole ones: what takes that long is worth a file, for other workers
            files[1](key, name, program, backend, seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation_cache, "get_executable_and_time", get)
        patch.setattr(compilation_cache, "put_executable_and_time", put)
        yield
    assert _mapped() < MAPPED, f"{_mapped()} regions of memory: something other than this fixture holds programs"


def _mapped():
    """How many regions of memory this process has mapped; 0 without /proc."""
    maps = Path("/proc/self/maps")
    return maps.read_bytes().count(b"\n") if maps.exists() else 0


@pytest.fixture
def two_devices(monkeypatch):
    """Two of the simulated devices are all there are: for toy runs, of which eight parts take a third more CPU time."""
    import jax

    for name in ("devices", "local_devices"):
        every = getattr(jax, name)
        monkeypatch.setattr(jax, name, lambda *args, every=every, **options: every(*args, **options)[:2])
    for name in ("device_count", "local_device_count"):
        monkeypatch.setattr(jax, name, lambda *_, **__: 2)


@pytest.fixture(scope="session")
def load_script():
    """load_script("merge_adapter") -> scripts/merge_adapter.py as a new module."""
    from by_path import SCRIPTS, module_at

    return lambda name: module_at(SCRIPTS / f"{name}.py")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of public data sets: $LOWRANK_JAX_DATA, or shared/data next to the checkout; skips without it."""
    folder = Path(os.environ.get("LOWRANK_JAX_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no data sets: set LOWRANK_JAX_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def subwords():
    """A small byte-level BPE that splits digits and punctuation, as SmolLM2's does; 0 BOS, 1 EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from lowrank_jax.text.tokenizers import SubwordTokenizer

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "face deed cafe babe bead dead beef the cat sat on the mat and ate a fig"
    backend.train_from_iterator([text] * 4, trainer)
    return SubwordTokenizer(backend, bos_id=0, eos_id=1, name="test-subwords")


@pytest.fixture(scope="session")
def tiny_glue(tmp_path_factory) -> Path:
    """A folder of GLUE in the official layout, 8 rows a training file and 5 a dev file: for allow_partial=True."""
    from lowrank_jax.data.builders.glue.specs import GLUE

    root = tmp_path_factory.mktemp("glue")
    words = ["plain", "naïve", "\u2028 odd", 'an "unbalanced', "long " * 12]
    for spec in GLUE.values():
        header = spec.header or ("index", *spec.columns, spec.label)
        (root / spec.folder).mkdir()
        for split in spec.splits:
            lines = [] if spec.header else ["\t".join(header)]
            for i in range(8 if split == "train" else 5):
                values = {name: f"{split} {i} {words[(i + j) % 5]}" for j, name in enumerate(header)}
                number = int("01210120"[i])
                values[spec.label] = spec.written[number % len(spec.written)] if spec.written else f"{i * 5 / 7:.3f}"
                lines.append("\t".join(values[name] for name in header))
            (root / spec.folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def tiny_nlg(tmp_path_factory) -> Path:
    """A folder of official files of E2E and WebNLG, a few rows a split: for allow_partial=True."""
    import csv
    import json

    root = tmp_path_factory.mktemp("nlg")
    (root / "e2e").mkdir()
    names = ("Blue Spice", "The Vaults", "Aromi", "Cotto", "Wildwood")
    for split, file, inputs, texts in (
        ("train", "trainset", 5, 3),
        ("dev", "devset", 3, 2),
        ("test", "testset_w_refs", 4, 2),
    ):
        with open(root / "e2e" / f"{file}.csv", "w", newline="", encoding="utf-8") as opened:
            rows = csv.writer(opened)
            rows.writerow(("mr", "ref"))
            for i in range(inputs):
                for j in range(texts):
                    name = f"{names[i]} {split}" + " café" * (i % 2)
                    rows.writerow((f"name[{name}], eatType[pub]", f"{name} is a pub, said {j}."))
    (root / "webnlg").mkdir()
    for split, categories in (("train", ("Airport", "City")), ("dev", ("Food",)), ("test", ("City", "Artist", "Food"))):
        rows = [
            {
                "category": category,
                "modifiedtripleset": [{"subject": category, "property": "isA", "object": f"Thing {number}"}],
                "lexicalisations": [{"lex": f"{category} is thing {number}.", "comment": "good"}] * (1 + number),
            }
            for number, category in enumerate(categories)
        ]
        entries = [{str(number): row} for number, row in enumerate(rows, 1)]
        (root / "webnlg" / f"{split}.json").write_text(json.dumps({"entries": entries}))
    return root
