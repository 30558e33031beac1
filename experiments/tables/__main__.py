"""Prints the papers' tables from recorded results, ours next to theirs.

python -m experiments.tables mora_table2 [--scale=gpu] [--results=experiments/results,runs] [--figures=FOLDER]
python -m experiments.tables mora_table1 [--model=smollm2-135m] [--results=...]    # also 4, 6, 7
python -m experiments.tables mora_table3 [--results=...] [--figures=FOLDER]
python -m experiments.tables rates [--model=smollm2-135m] [--results=...] [--figures=FOLDER]
python -m experiments.tables lora_table2 [--model=minilm-l6] [--results=...] [--figures=FOLDER]
python -m experiments.tables lora_table3 [--model=smollm2-135m] [--results=...]    # also 4, 13, 14, 16, 18
python -m experiments.tables speed [--results=experiments/results/speed/h100_suite.json]
python -m experiments.tables quantized    # also decoding, beams, latency, rounding
python -m experiments.tables sweep --results=runs,results.jsonl    # any grid of your own
python -m experiments.tables ledger
python -m experiments.tables --write    # the tables between markers in README.md and docs/*.md
"""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from experiments import tables
from experiments.cli import launch
from experiments.papers.mora import SCALES
from experiments.tables.documents import write_all
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 2.0  # seconds after which a line says what takes the time


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The program's flags; not defined at import, as other programs have a --results too."""
    flags.DEFINE_list(
        "results",
        ["experiments/results"],
        "Folders and .jsonl files of results, with commas: experiments/results,runs",
        flag_values=values,
    )
    flags.DEFINE_enum("scale", "laptop", SCALES, "Scale of the runs to show (mora_table2)", flag_values=values)
    flags.DEFINE_string(
        "model", None, "Base model of the runs to show (LoRA's tables, MoRA's of fine-tuning)", flag_values=values
    )
    flags.DEFINE_bool("lines", False, "Print the first table's lines alone, without captions", flag_values=values)


def define_program_flags() -> None:
    """Flags without use in a document's marker."""
    flags.DEFINE_enum("format", "text", ["text", "markdown"], "How the table is printed")
    flags.DEFINE_string("figures", None, "Folder to draw the figures into (PNG)")
    flags.DEFINE_bool("write", False, "Write the tables that README.md and docs/*.md have markers for, and print none")


def table_of(words: list[str], root: Path = ROOT) -> str:
    """The Markdown for a marker's words: a table's name and its flags, with places of results below `root`."""
    options = flags.FlagValues()
    define_flags(options)
    try:
        _, *names = options(["marker", *words])
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    module = tables.find(names)
    tables.check_flags(names[0], _given(options))
    options.results = [str(root / place) for place in options.results]
    return tables.make(module, options).text("markdown", options.lines)


def _given(options: flags.FlagValues) -> list[str]:
    """Names of the flags that the command line sets."""
    return [name for name in (*tables.READERS, *tables.WITHOUT, "figures") if name in options and options[name].present]


@contextlib.contextmanager
def said_where_slow(line: str) -> Iterator[None]:
    """Prints a line to stderr where the work inside takes longer than PATIENCE."""
    timer = threading.Timer(PATIENCE, print, (line,), {"file": sys.stderr, "flush": True})
    timer.daemon = True  # Ctrl-C need not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def main(argv: list[str]) -> None:
    """Prints the named table and draws its figures if asked; or writes the documents' tables."""
    options, names = flags.FLAGS, argv[1:]
    if options.write:
        if names:
            raise UserError(f"--write takes the tables from the documents' markers, not {' '.join(names)}")
        changed = write_all(ROOT, table_of)
        print("\n".join(f"wrote {path}" for path in changed) or "every table is as its records give it")
        return
    module = tables.find(names)
    tables.check_flags(names[0], _given(options))
    with said_where_slow(f"reading the records at {', '.join(options.results)} ..."):
        table = tables.make(module, options)
    print(table.text(options.format, options.lines))
    if options.figures:
        for path in module.figures(table, options.figures):
            print(f"drew {path}")


if __name__ == "__main__":
    define_flags()
    define_program_flags()
    launch(main, words=True)
