"""The house rules that a parser can hold: floors, cycles, Flax's place, file sizes, first lines, no local traces."""

import ast
import collections
import functools
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Imports go down; rooms on one floor do not import each other.
FLOORS = (  # the ground floor is two: core is below the other rooms there
    ("core",),
    ("assets", "ops", "layouts"),
    ("adapters", "models", "sharding", "metrics", "text"),
    ("data", "checkpoints"),
    ("tasks", "decoding", "interop"),
    ("forms", "bases"),
    ("train",),
    ("experiments",),
    ("scripts",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PROJECT = ("lowrank_jax", "experiments", "configs", "scripts")
FOLDERS = (*PROJECT, "docs", "tests")
MAX_LINES = 400
MAX_PROGRAM = 150  # lines: flags and main
MAX_MODULES = 16  # of a folder, not counting __init__
# Packages that a machine may lack, or that take seconds to import: inside functions only.
LAZY = {
    *("tensorflow_datasets", "tensorflow", "grain", "array_record", "wandb", "gguf", "ml_collections", "matplotlib"),
    *("huggingface_hub", "sklearn", "sacrebleu", "pycocoevalcap", "pyter", "rouge_score", "nltk"),
    *("lm_eval", "math_verify", "datasets"),
    *("trackio", "fsspec", "s3fs", "gcsfs"),
}
ORIGINALS = ("torch", "transformers", "peft", "loralib")  # the extra [parity]


def repository_files() -> list[Path]:
    """Every file that is, or would be, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        files = [ROOT / line for line in listed.stdout.splitlines()]
    else:  # an unpacked archive
        skip = {"build", "dist", "runs", "wandb", "__pycache__"}
        inside = (path.relative_to(ROOT).parts for path in ROOT.rglob("*"))
        kept = (parts for parts in inside if not any(p in skip or p.startswith(".") for p in parts))
        files = [ROOT.joinpath(*parts) for parts in kept if not parts[0].endswith(".egg-info")]
    return sorted(path for path in files if path.is_file())


FILES = repository_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
SOURCES = {path for path in PYTHON if path.relative_to(ROOT).parts[0] in PROJECT}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SOURCES)}

CORE = {name for name in MODULES if name.startswith("lowrank_jax.core.")}


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imports(path: Path, top_level: bool = False) -> frozenset[str]:
    """Full names of the imported modules and, for `from a import b`, of a.b: everywhere, or run on import alone."""
    package = list(path.relative_to(ROOT).parts[:-1])
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            found.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (top_level and deferred):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(parse(path))
    return frozenset(found)


def room(module: str) -> str | None:
    """The room of a module of the project, None of any other (and of the package's own top)."""
    top, *rest = module.split(".")
    if top == "lowrank_jax":
        return rest[0] if rest else None
    return top if top in PROJECT else None


def internal(path: Path) -> set[str]:
    """The project's own modules that a file imports; `from package import module` means the module."""
    names = {name for name in imports(path) if name in MODULES}
    return {name for name in names if not (MODULES[name].name == "__init__.py" and reaches_submodule_only(path, name))}


def reaches_submodule_only(path: Path, package: str) -> bool:
    """Whether everything taken from a package is a submodule of it."""
    taken = {name for name in imports(path) if name.rpartition(".")[0] == package}
    return bool(taken) and taken <= MODULES.keys()


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports_anything(path: Path, *names: str, top_level: bool = False) -> list[str]:
    found = imports(path, top_level)
    return sorted(i for i in found if any(i == name or i.startswith(f"{name}.") for name in names))


def test_there_is_a_house():
    assert {"core", "adapters"} <= {room(name) for name in MODULES}
    assert len(MODULES) > 10


def test_the_checkout_has_no_other_folders():
    """Such as what a test or a run left where it was started."""
    folders = {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT}
    assert {name for name in folders if not name.startswith(".")} == {*FOLDERS}


def test_every_room_has_a_floor():
    rooms = {room(name) for name in MODULES} - {None, "configs"}
    assert rooms <= FLOOR.keys(), f"give these rooms a floor: {sorted(rooms - FLOOR.keys())}"


def test_imports_only_go_down():
    broken = []
    for name, path in MODULES.items():
        here = room(name)
        for target in internal(path):
            there = room(target)
            if there in (None, here) or here == "configs":
                continue
            if there not in FLOOR or FLOOR[there] >= FLOOR.get(here, -1):
                broken.append(f"{relative(path)} imports {target}")
    assert not broken, broken


def test_configs_are_data():
    """They import configs.common, which imports nothing above the ground floor, and tables that import nothing."""
    bare = {name for name, path in MODULES.items() if room(name) == "configs" and not imports(path) & MODULES.keys()}
    broken = {}
    for name, path in MODULES.items():
        if room(name) == "configs":
            allowed = {"configs.common", *bare, *CORE}
            if others := [i for i in internal(path) if i not in allowed]:
                broken[relative(path)] = others
    assert not broken, broken


def test_nothing_imports_scripts_or_tests():
    broken = [relative(p) for p in SOURCES if imports_anything(p, "tests") or imports_anything(p, "scripts")]
    assert not broken, broken


def test_no_cycles_between_files():
    graph = {name: sorted(internal(path) - {name}) for name, path in MODULES.items()}
    done, trail = set(), []

    def visit(name):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            trail.append(name)
            for target in graph[name]:
                visit(target)
            trail.pop()
            done.add(name)

    for name in graph:
        visit(name)


def test_only_models_and_attach_import_flax_linen():
    allowed = {ROOT / "lowrank_jax/adapters/attach.py"}
    broken = [
        relative(path)
        for name, path in MODULES.items()
        if room(name) != "models" and path not in allowed and imports_anything(path, "flax.linen")
    ]
    assert not broken, broken


def test_only_attach_intercepts():
    users = [relative(path) for path in SOURCES if "intercept_methods(" in path.read_text(encoding="utf-8")]
    assert users == ["lowrank_jax/adapters/attach.py"]


def test_core_needs_jax_and_numpy_alone():
    import sys

    known = {*sys.stdlib_module_names, "jax", "numpy", "lowrank_jax"}
    for name, path in MODULES.items():
        if room(name) == "core":
            assert not {i.split(".")[0] for i in imports(path)} - known, relative(path)


def test_optional_packages_are_imported_inside_functions():
    """Except in TFDS builders, which are classes of that library."""
    broken = {
        relative(path): found
        for name, path in MODULES.items()
        if name.startswith("lowrank_jax") and not name.startswith("lowrank_jax.data.builders.")
        if (found := imports_anything(path, *LAZY, top_level=True))
    }
    assert not broken, broken


def test_lm_eval_is_imported_by_its_program_alone():
    """And by nothing that a run or another program imports: it takes seconds, and may be absent."""
    users = {name for name, path in MODULES.items() if imports_anything(path, "lm_eval")}
    assert users
    assert all(name == "experiments.evaluate" or name.startswith("experiments.evaluation.") for name in users), users
    for name, path in MODULES.items():
        evaluation = {one for one in imports(path) if one.startswith("experiments.evaluation")}
        assert not evaluation or name in ("experiments.evaluate", *users) or name.startswith("experiments.evaluation")
    assert not imports_anything(ROOT / "experiments/evaluate.py", "lm_eval", "experiments.evaluation", top_level=True)


def test_the_originals_are_imported_by_tests_alone():
    broken = {relative(path): found for path in SOURCES if (found := imports_anything(path, *ORIGINALS))}
    assert not broken, broken
    assert any(imports_anything(path, *ORIGINALS) for path in PYTHON if path not in SOURCES)  # the test can see them


def test_collection_imports_no_original():
    """Each worker imports every test file: torch alone would take 1.8 s of CPU in each."""

    def on_import(node):
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            children = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        else:
            children = [] if isinstance(node, ast.Lambda) else ast.iter_child_nodes(node)
        for child in children:
            yield from on_import(child)

    files = [path for path in PYTHON if path.match("test_*.py") or path.name == "conftest.py"]
    broken = [relative(path) for path in files if imports_anything(path, *ORIGINALS, top_level=True)]
    for path in (path for path in files if imports_anything(path, "late")):
        reads = (node for node in on_import(parse(path)) if isinstance(node, ast.Attribute))
        names = (node.value.id for node in reads if isinstance(node.value, ast.Name))
        broken += [f"{relative(path)}: {name}" for name in names if name in ORIGINALS]
    assert not broken, broken


def test_the_originals_are_an_extra():
    lists = {}
    for node in parse(ROOT / "setup.py").body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            items = node.value.elts
            lists[node.targets[0].id] = (
                {item.value for item in items if isinstance(item, ast.Constant)},
                {item.value.id for item in items if isinstance(item, ast.Starred)},
            )
    parity, _ = lists["PARITY_REQUIRES"]
    assert {re.match(r"\w+", line).group() for line in parity} == set(ORIGINALS)
    assert "PARITY_REQUIRES" in lists["TEST_REQUIRES"][1]
    required, taken = lists["REQUIRES"]
    assert required
    assert not taken
    assert not parity & required
    setup = next(n for n in ast.walk(parse(ROOT / "setup.py")) if isinstance(n, ast.Call) and n.func.id == "setup")
    words = {word.arg: ast.unparse(word.value) for word in setup.keywords}
    assert words["install_requires"] == "REQUIRES"
    assert "'parity': PARITY_REQUIRES" in words["extras_require"]
    assert "'test': TEST_REQUIRES" in words["extras_require"]


def test_no_junk_drawers():
    drawers = ("utils", "util", "helpers", "misc", "common_utils")
    assert not [relative(path) for path in PYTHON if path.stem in drawers]


def test_no_long_files():
    sources = [p for p in FILES if p.relative_to(ROOT).parts[0] in PROJECT and p.suffix in (".py", ".sh")]
    long = {relative(p): n for p in sources if (n := len(p.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert not long, long


def test_programs_are_flags_and_main():
    """What else a program would hold stands in a room, where other code can use it."""
    lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in (ROOT / "experiments").glob("*.py")}
    programs = {name: len(text) for name, text in lines.items() if 'if __name__ == "__main__":' in text}
    assert len(programs) > 10
    assert not {name: count for name, count in programs.items() if count > MAX_PROGRAM}


def test_no_folder_of_many_modules():
    held = collections.Counter(
        relative(path.parent)
        for path in SOURCES
        if path.name != "__init__.py" and path.relative_to(ROOT).parts[0] in ("lowrank_jax", "experiments")
    )
    assert held
    full = {folder: count for folder, count in held.items() if count > MAX_MODULES}
    assert not full, full


def test_forms_alone_ask_what_kind_a_task_is():
    """Calls isinstance(..., SomeTask), and those with such a class in a tuple or a union."""
    asking = []
    for name, path in MODULES.items():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance" and room(name) != "forms":
                kinds = [n.id if isinstance(n, ast.Name) else getattr(n, "attr", "") for n in ast.walk(node.args[1])]
                if any(kind.endswith("Task") for kind in kinds):
                    asking.append(f"{relative(path)}:{node.lineno}")
    assert not asking, asking


def test_every_python_file_opens_with_its_purpose():
    silent = []
    for path in PYTHON:
        body = parse(path).body
        if not body or ast.get_docstring(parse(path)) is None or body[0].lineno != 1:
            silent.append(relative(path))
    assert not silent, silent


def test_nothing_is_left_unfinished():
    marks = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    left = [relative(path) for path in SOURCES if marks.search(path.read_text(encoding="utf-8"))]
    assert not left, left


# Written in pieces, so that this file does not hold what it forbids.
LOCAL_TRACES = {
    "a package registry": rb"(?:py" + rb"pi\.org|python" + rb"hosted|anaconda\.(?:org|com)|npm" + rb"js\.|crates\.io)",
    "a proxy or index setting": rb"(?:extra-)?index" + rb"-url|trusted" + rb"-host",
    "a path of the workplace": rb"(?<![\w.~-])/(?:wo" + rb"rk|opt/py" + rb"pi[\w-]*|ro" + rb"ot)(?![\w-])",
}


@pytest.mark.parametrize("kind", LOCAL_TRACES)
def test_no_file_holds(kind):
    found = [relative(path) for path in FILES if re.search(LOCAL_TRACES[kind], path.read_bytes())]
    assert not found, f"{kind} in {found}"


def test_the_trace_patterns_catch_what_they_should():
    path, registry = LOCAL_TRACES["a path of the workplace"], LOCAL_TRACES["a package registry"]
    for text in (
        b"cd /wo" + b"rk/main",
        b'"/wo' + b'rk"',
        b"/ro" + b"ot/.cache",
        b"file:///opt/py" + b"pi-more/simple",
    ):
        assert re.search(path, text), text
    for text in (b"/workspace/a", b"network/work", b"./work/x", b"a/root"):
        assert not re.search(path, text), text
    assert re.search(registry, b"https://py" + b"pi.org/simple")


@pytest.mark.parametrize("name", ["lowrank_jax.metrics.texts.nist", "experiments.tables.mora.sheet"])
def test_sums_of_floats_are_refused_in_every_module(name):
    """The tests' own `sum` (conftest.py) is found by modules that the collection imports, and by those a test does."""
    module = importlib.import_module(name)
    assert module.sum([1, 2]) == 3
    with pytest.raises(AssertionError, match=r"math\.fsum"):
        module.sum([1, 0.5])
