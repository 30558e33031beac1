"""The README's example runs, and the files and commands that it names exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.bench import report
from experiments.records.results import load_results
from experiments.tables import lora_table2, mora_table2, quantized, speed

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_example_learns_and_merges():
    """Run as printed, in a process of its own: the loss falls and the merged kernels differ from the base's."""
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    body = code[code.index("\nbase = ") :].strip().splitlines()
    assert len(body) == 12
    code += """
import numpy as np
before, after = base.params["layers"]["mlp"]["up"]["kernel"], merged["layers"]["mlp"]["up"]["kernel"]
assert float(metrics["loss"]) < 1.5 and not np.allclose(before, after) and before.shape == after.shape
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "158,464 trainable parameters" in done.stdout


def test_named_files_exist():
    names = set(re.findall(r"\b(?:configs|scripts|lowrank_jax|experiments|tests)/[\w./-]+\.(?:py|sh|md|json)\b", TEXT))
    assert len(names) > 8
    assert not [name for name in sorted(names) if not (ROOT / name).exists()]


def test_every_part_has_its_section():
    """Results are pasted by scripts, one of which once took four sections with it."""
    sections = {
        "Adapters",
        "LoRA's Table 2",
        "MoRA's Table 2",
        "Pretrained models",
        "Running experiments",
        "In twelve lines",
        "Speed",
        "The house",
    }
    found = re.findall(r"^## (.*)$", TEXT, re.M)
    assert not [name for name in sorted(sections) if not any(one.startswith(name) for one in found)]


@pytest.mark.parametrize("scale", ["laptop", "gpu"])
def test_tables_are_those_of_the_recorded_results(scale):
    """Every row that `experiments.tables` prints stands in the README."""
    found = mora_table2.settings(load_results([ROOT / "experiments" / "results"]), scale)
    rows = mora_table2.shown(found[0]).text("markdown")
    assert all(line in TEXT for line in rows.splitlines() if line.startswith("|"))


def test_speeds_are_those_of_the_recorded_results():
    (suite,) = report.load_suites([ROOT / "experiments" / "results" / "speed" / "h200_suite.json"])
    assert speed.shown(suite).text("markdown", lines_alone=True) in TEXT
    rows = quantized.compared(load_results([ROOT / "experiments" / "results"]))
    assert quantized.shown(rows).text("markdown", lines_alone=True) in TEXT


def test_glue_rows_are_those_of_the_recorded_results():
    """Ours of LoRA's Table 2, as `experiments.tables` prints them."""
    results = load_results([ROOT / "experiments" / "results"])
    ours = lora_table2.shown(lora_table2.board(results, "minilm-l6")).text("markdown", lines_alone=True)
    assert len(ours.splitlines()) > 2
    assert ours in TEXT
