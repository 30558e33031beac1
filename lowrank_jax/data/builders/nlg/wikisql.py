"""WikiSQL (Zhong et al., 2017): a query in SQL from a table's columns and a question."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.files import SUFFIXES, find_file, read_objects, take
from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.metrics.wikisql import AGGREGATES, OPERATORS, TYPES, Query, write

TABLES = ".tables.jsonl"
COLUMNS, ANSWER = "\ncolumns: ", "\nA: "


def read_wikisql(path: Path) -> Iterator[NlgRow]:
    """The rows of {split}.jsonl with its {split}.tables.jsonl; or of a sample whose rows are {"text"} already.

    The input is "table: ID", "columns: ...", "Q: ..." and "A:", a line each; the text is
    "SELECT [aggregate] column FROM table [WHERE column operator value [AND ...]]", texts among the values in quotes.

    Raises:
      UserError: a key or the table is missing, or a query names a column that the table has not; names the line.
    """
    tables: dict[str, Mapping[str, Any]] | None = None
    for where, row in read_objects(path):
        if "text" in row:
            yield _sample(where, take(where, row, "text", str, empty=False))
            continue
        if tables is None:
            tables = {take(at, one, "id", str): _table(at, one) for at, one in read_objects(tables_of(path))}
        name, query = take(where, row, "table_id", str), take(where, row, "sql", dict)
        if name not in tables:
            raise UserError(f"{where}: its table {name!r} is not in {tables_of(path)}; fetch both files again")
        table = tables[name]
        question = take(where, row, "question", str, empty=False).strip()
        text = sql_text(where, query, name, table["header"])
        yield NlgRow(_context(name, table["header"], question), (text,), where, "", {**table, "sql": query})


def is_sample(path: Path) -> bool:
    """Whether the rows of a file are texts, of which the tables are unknown."""
    return "text" in next((row for _, row in read_objects(path)), {})


def tables_of(path: Path) -> Path:
    """train.jsonl -> the train.tables.jsonl beside it, plain or compressed."""
    name = path.name
    for suffix in SUFFIXES[1:]:
        name = name.removesuffix(suffix)
    wanted = name.removesuffix(".jsonl") + TABLES
    if found := find_file(path.parent, (wanted,)):
        return found
    raise UserError(f"{path.parent} has no {wanted} beside {path.name}; put WikiSQL's own file there")


def sql_text(where: str, query: Mapping[str, Any], table: str, header: list[str]) -> str:
    """A query {"sel", "agg", "conds"} as text.

    Raises:
      UserError: a number is out of range, or a value is neither text nor number.
    """
    _check(where, "sel", take(where, query, "sel", int), header)
    _check(where, "agg", take(where, query, "agg", int), AGGREGATES)
    for one in take(where, query, "conds", list):
        if not isinstance(one, list) or len(one) != 3 or not all(isinstance(part, int) for part in one[:2]):
            raise UserError(f"{where}: a condition is {str(one)[:60]}, not [column, operator, value]")
        _check(where, "conds", one[0], header)
        _check(where, "conds", one[1], OPERATORS)
        if not _is_value(one[2]):
            raise UserError(f"{where}: a condition's value is {str(one[2])[:60]}, neither text nor number")
    return write(Query.of(query), header, table)


def _context(table: str, header: list[str], question: str) -> str:
    return f"table: {table}{COLUMNS}{', '.join(header)}\nQ: {question}\nA:"


def _sample(where: str, text: str) -> NlgRow:
    before, found, answer = text.partition(ANSWER)
    first, columns, rest = before.partition(COLUMNS)
    listed, asked, _ = rest.partition("\nQ: ")
    if not (found and columns and asked and answer.strip() and first.startswith("table: ")):
        raise UserError(f"{where}: 'text' has no lines table:, columns:, Q: and A:; use the official files")
    table = {"id": first.removeprefix("table: "), "header": listed.split(", ")}
    return NlgRow(f"{before}\nA:", (answer.strip(),), where, "", table)


def _table(where: str, row: Mapping[str, Any]) -> Mapping[str, Any]:
    kept = {"id": take(where, row, "id", str)}
    kept |= {key: take(where, row, key, list) for key in ("header", "types", "rows")}
    header, types, rows = (kept[key] for key in ("header", "types", "rows"))
    if wrong := [name for name in header if not isinstance(name, str)]:
        raise UserError(f"{where}: a column is called {wrong[0]!r}, which is no text; use the official file")
    if len(types) != len(header) or any(kind not in TYPES for kind in types):
        raise UserError(f"{where}: 'types' are {', '.join(TYPES)}, one a column, not {str(types)[:60]}")
    for number, cells in enumerate(rows, 1):
        if not isinstance(cells, list) or len(cells) != len(header):
            raise UserError(f"{where}: row {number} of the table is no list of {len(header)} cells; fetch it again")
        if wrong := [cell for cell in cells if not (cell is None or _is_value(cell))]:
            raise UserError(f"{where}: row {number} of the table has {str(wrong[0])[:60]}, neither text nor number")
    return kept


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and value == value  # NaN is not


def _check(where: str, key: str, number: int, names: Sequence[str]) -> None:
    if not 0 <= number < len(names):
        raise UserError(f"{where}: {key!r} has {number}, the choices are {len(names)}; fetch the file again")
