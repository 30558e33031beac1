"""Operation counts and memory of six compiled steps, on shapes; `python tests/before/programs.py` writes programs.json.

Before and after a rearrangement: run it at both commits on one machine with one version of jax, and compare the files
(`--to=FILE` writes another one, `--compare=FILE` says what differs from it and writes nothing).
"""

import argparse
import collections
import functools
import importlib.util
import json
import os
import re
import resource
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECORD = HERE / "programs.json"
UUID = "--config=configs/mora_uuid.py"
# name: (config, tokens a row where the config does not say, trials); a row of a suite: (None, its name, ...).
LAPTOP = {
    "laptop-mora": (f"{UUID}:method=mora", 74),
    "laptop-lora": (f"{UUID}:method=lora", 74),
    # The model's shape by its registered name: no weights are wanted.
    "glue-lora": ("--config=configs/lora_glue.py:method=lora,model=minilm-l6 --config.base.random_init=true", 128),
}
SUITE = {"7b-lora-8": "7b-lora-8", "smollm2-64x64": "smollm2-64x64", "eight-trials": "smollm2-8-trials"}
NAMES = (*LAPTOP, *SUITE)


def load(name: str, path: Path):
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doors = load("before_doors", HERE / "doors.py")


@functools.cache
def trace(name: str):
    """The step of a program, traced on shapes."""
    if name in LAPTOP:
        return doors.lower(*LAPTOP[name])
    words = doors.suite_words("h100")[SUITE[name]]
    config = " ".join(word for word in words if word.startswith("--config"))
    trials = [int(word.partition("=")[2]) for word in words if word.startswith("--trials=")]
    return doors.lower(config, None, *trials)


def equations(jaxpr) -> dict[str, int]:
    """Primitive -> equations of a jaxpr and of those inside it; a loop's body counts once."""
    from jax.extend.core import ClosedJaxpr, Jaxpr

    found = collections.Counter()

    def visit(value):
        if isinstance(value, Jaxpr):  # with jax 0.11 a ClosedJaxpr is one too
            for equation in value.eqns:
                found[equation.primitive.name] += 1
                visit(list(equation.params.values()))
        elif isinstance(value, ClosedJaxpr):
            visit(value.jaxpr)
        elif isinstance(value, list | tuple):
            for one in value:
                visit(one)

    visit(jaxpr)
    return dict(sorted(found.items()))


def shapes(avals) -> dict[str, int]:
    """ "float32[4,256]" -> how many of them, for arguments or results; names and order of leaves do not matter."""
    return dict(sorted(collections.Counter(aval.str_short(short_dtypes=False) for aval in avals).items()))


def operations(text: str) -> dict[str, int]:
    """Opcode -> instructions of a compiled program's text, those inside fusions and loops once each."""
    pattern = r"^\s*(?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([a-z][\w-]*)\("
    return dict(sorted(collections.Counter(re.findall(pattern, text, re.M)).items()))


def memory(compiled) -> dict[str, int]:
    """Bytes by the compiler's own account."""
    found = compiled.memory_analysis()
    kinds = ("argument", "output", "alias", "temp")
    return {kind: getattr(found, f"{kind}_size_in_bytes") for kind in kinds}


def traced(name: str) -> dict:
    """What is known of a program before it is compiled."""
    jaxpr = trace(name).jaxpr
    return {"equations": equations(jaxpr), "in": shapes(jaxpr.in_avals), "out": shapes(jaxpr.out_avals)}


def compiled(name: str) -> dict:
    """What is known of a program once it is compiled."""
    program = trace(name).lower().compile()
    return {"operations": operations(program.as_text()), "memory": memory(program)}


def versions() -> dict[str, str]:
    """What the counts depend on beside this code."""
    import jax
    import jaxlib

    return {"jax": jax.__version__, "jaxlib": jaxlib.__version__, "platform": jax.default_backend()}


def differences(before: dict, after: dict, where: str = "") -> list[str]:
    """ "laptop-mora operations dot: 61 -> 63", for every number that differs."""
    lines = []
    for key in sorted({*before, *after}):
        one, other = before.get(key, 0), after.get(key, 0)
        if isinstance(one, dict) or isinstance(other, dict):
            lines += differences(one or {}, other or {}, f"{where} {key}")
        elif one != other:
            lines.append(f"{where} {key}: {one} -> {other}".strip())
    return lines


def main() -> int:
    """Records or compares; the machine's flags are those of the tests, on one device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="programs whose name matches this regular expression")
    parser.add_argument("--to", type=Path, default=RECORD, help="the file to write")
    parser.add_argument("--compare", type=Path, help="a file to compare with; writes nothing")
    options = parser.parse_args()
    programs = {}
    for name in (name for name in NAMES if re.search(options.only, name)):
        began = time.perf_counter()
        programs[name] = traced(name) | compiled(name)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        counted = [sum(programs[name][kind].values()) for kind in ("equations", "operations")]
        taken = f"{time.perf_counter() - began:.0f} s, process at most {most:.1f} GiB"
        counts = f"{counted[0]} equations, {counted[1]} operations"
        print(f"{name}: {counts}, {programs[name]['memory']}; {taken}", flush=True)
    if options.compare:
        found = json.loads(options.compare.read_text())
        if found["versions"] != versions():
            print(f"other versions, so other counts: {found['versions']}, here {versions()}")
        lines = [line for name in programs for line in differences(found["programs"][name], programs[name], name)]
        print("\n".join(lines) or "no difference")
        return int(bool(lines))
    options.to.write_text(json.dumps({"versions": versions(), "programs": programs}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(doors.ROOT))
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1".strip()
    flags = load("before_flags", HERE.parent / "conftest.py")  # the tests' flags for XLA
    status = main()
    flags.pytest_unconfigure()
    sys.exit(status)
