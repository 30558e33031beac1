"""The papers' tables from recorded results. A new table is a module and its line in TABLES."""

import importlib
from types import ModuleType
from typing import Any

from lowrank_jax.core.errors import UserError

# Name -> module with `table(results, options) -> Table` and `figures(table, folder) -> paths`; `load(places)`, where
# its results are not records of runs.
TABLES = {
    "mora_table2": "experiments.tables.mora_table2",
    "lora_table2": "experiments.tables.lora_table2",
    "speed": "experiments.tables.speed",
    "quantized": "experiments.tables.quantized",
    "sweep": "experiments.tables.sweep",
    "ledger": "experiments.papers.ledger",
}


def find(names: list[str]) -> ModuleType:
    """The module of the one named table.

    Raises:
      UserError: none, several, or an unknown one.
    """
    if len(names) != 1 or names[0] not in TABLES:
        raise UserError(f"name one table: {' or '.join(TABLES)}" + (f"; not {' '.join(names)}" if names else ""))
    return importlib.import_module(TABLES[names[0]])


def make(module: ModuleType, options: Any) -> Any:
    """The module's table of the results at `options.results`."""
    from experiments.records.results import load_results

    return module.table(getattr(module, "load", load_results)(options.results), options)
