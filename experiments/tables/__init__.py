"""The papers' tables from recorded results. A new table is a module and its line in TABLES."""

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from lowrank_jax.core.errors import UserError

# Name -> module with `table(results, options) -> Table` and `figures(table, folder) -> paths`; `load(places)`, where
# its results are not records of runs.
TABLES = {
    "mora_table2": "experiments.tables.uuid.mora_table2",
    "mora_table1": "experiments.tables.mora.mora_table1",
    "mora_table3": "experiments.tables.mora.mora_table3",
    "mora_table4": "experiments.tables.mora.mora_table4",
    "mora_table6": "experiments.tables.mora.mora_table6",
    "mora_table7": "experiments.tables.mora.mora_table7",
    "rates": "experiments.tables.rates.rates",
    "lora_table2": "experiments.tables.glue.lora_table2",
    "lora_table3": "experiments.tables.nlg.lora_table3",
    "lora_table4": "experiments.tables.nlg.lora_table4",
    "lora_table13": "experiments.tables.nlg.lora_table13",
    "lora_table14": "experiments.tables.nlg.lora_table14",
    "lora_table16": "experiments.tables.nlg.lora_table16",
    "lora_table18": "experiments.tables.nlg.lora_table18",
    "speed": "experiments.tables.speed.suite",
    "decoding": "experiments.tables.speed.decoding",
    "beams": "experiments.tables.speed.beams",
    "latency": "experiments.tables.speed.latency",
    "quantized": "experiments.tables.speed.quantized",
    "rounding": "experiments.tables.speed.rounding",
    "codes": "experiments.tables.speed.codes",
    "sweep": "experiments.tables.sweep",
    "ledger": "experiments.papers.ledger",
}

# A table's number in the paper -> what prints it here.
SHOWN_BY = {
    "lora_table1": "latency",
    "lora_table5": "sweep --results=runs",
    "lora_table6": "sweep --results=runs",
    "lora_table15": "lora_table4",
}

# Flag -> the tables that read it, for flags that few tables read. A new table that reads one is added here.
READERS = {
    "scale": ("mora_table2",),
    "model": (
        "lora_table2",
        *(f"lora_table{number}" for number in (3, 4, 13, 14, 16, 18)),
        *(f"mora_table{number}" for number in (1, 4, 6, 7)),
        "rates",
    ),
}
WITHOUT = {"results": ("ledger",)}  # flag -> the tables that do not read it, for flags that most read


def find(names: list[str]) -> ModuleType:
    """The module of the one named table.

    Raises:
      UserError: none, several, or an unknown one.
    """
    if len(names) == 1 and names[0] in SHOWN_BY:
        raise UserError(f"{names[0]} has another name here: python -m experiments.tables {SHOWN_BY[names[0]]}")
    if len(names) != 1 or names[0] not in TABLES:
        raise UserError(f"name one table: {' or '.join(TABLES)}" + (f"; not {' '.join(names)}" if names else ""))
    return importlib.import_module(TABLES[names[0]])


def check_flags(name: str, given: Iterable[str]) -> None:
    """Refuses flags that a table does not read.

    Args:
      given: names of the flags on the command line.

    Raises:
      UserError: names the first, and the table that reads it.
    """
    for flag in given:
        if flag in READERS and name not in READERS[flag]:
            raise UserError(f"{name} does not read --{flag}, a flag of {' and '.join(READERS[flag])}; leave it out")
        if name in WITHOUT.get(flag, ()) or (flag == "figures" and not has_figures(find([name]))):
            raise UserError(f"{name} does not read --{flag}; leave it out")


def has_figures(module: ModuleType) -> bool:
    """Whether a table draws anything."""
    from experiments.tables.table import no_figures

    return module.figures is not no_figures


def make(module: ModuleType, options: Any) -> Any:
    """The module's table of the results at `options.results`.

    Raises:
      UserError: `options.model` is none of its bases.
    """
    from experiments.records.results import load_results
    from experiments.tables.models import check_model

    results = getattr(module, "load", load_results)(options.results)
    for name in READERS["model"]:
        if TABLES[name] == module.__name__:
            check_model(name, options.model, results)
    return module.table(results, options)
