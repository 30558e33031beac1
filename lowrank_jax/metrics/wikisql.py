"""WikiSQL's scores: a generated query read back, compared as a logical form, and executed on its table."""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from lowrank_jax.core.errors import UserError, one_line

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")  # a query's `agg` is a place in this list
OPERATORS = ("=", ">", "<")  # and a condition's operator one in this; the data has a fourth, OP, that is no SQL
TYPES = ("text", "real")
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
OPERATOR = re.compile(" ([=<>]) ")
AND = " AND "
FAILURES = (sqlite3.Error, ValueError, OverflowError)  # of a query that cannot be executed
Condition = tuple[int, int, str | int | float]


@dataclass(frozen=True)
class Query:
    """SELECT agg(sel) WHERE conds, as WikiSQL has it: places of columns, aggregates and operators, and values."""

    sel: int
    agg: int
    conds: tuple[Condition, ...] = ()

    @classmethod
    def of(cls, sql: Mapping) -> "Query":
        """A query from the field `sql` of WikiSQL's files: {"sel": 1, "agg": 0, "conds": [[0, 0, "1998"]]}."""
        return cls(sql["sel"], sql["agg"], tuple((column, operator, value) for column, operator, value in sql["conds"]))

    def form(self) -> tuple:
        """What equal queries have in common: column, aggregate, and the set of conditions in lower case."""
        return self.sel, self.agg, frozenset((c, operator, str(value).lower()) for c, operator, value in self.conds)


@dataclass(frozen=True)
class Table:
    """One table of WikiSQL: the columns' names and types ("text" or "real"), and rows of values."""

    columns: Sequence[str]
    types: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


def write(query: Query, columns: Sequence[str], table: str) -> str:
    """The query as text: SELECT COUNT Name FROM 1-10015132-16 WHERE Position = 'Guard' AND No. > 5.

    Numbers have no quotes; no name or value is escaped, so that `parse` needs the columns.

    Args:
      query: of places in `columns`.
      columns: the table's names.
      table: its id.
    """
    aggregate = f"{AGGREGATES[query.agg]} " if query.agg else ""
    conditions = [f"{columns[c]} {OPERATORS[operator]} {_quoted(value)}" for c, operator, value in query.conds]
    where = f" WHERE {AND.join(conditions)}" if conditions else ""
    return f"SELECT {aggregate}{columns[query.sel]} FROM {table}{where}"


def parse(text: str, columns: Sequence[str]) -> Query | None:
    """The query that a text of `write`'s form means; None where it is of another form, or has an unknown column.

    Names are compared in lower case and without spaces, as the official reader does. Values stay texts. A value may
    contain AND and quotes: of the readings that fit the columns, the one with the shortest first values counts.

    Args:
      text: one query.
      columns: the table's names.
    """
    places: dict[str, int] = {}
    for place, column in enumerate(columns):
        places.setdefault(_bare(column), place)
    text = text.strip()
    if not text.startswith("SELECT "):
        return None
    for found in re.finditer(" FROM ", text):  # a column's name may contain it too
        selected = _selected(text[len("SELECT ") : found.start()], places)
        if selected:
            table, where, conditions = text[found.end() :].partition(" WHERE ")
            conds = _conditions(conditions, places) if where else ()
            return None if conds is None or len(table.split()) != 1 else Query(*selected, conds)
    return None


def possible_columns(text: str) -> list[str]:
    """The names that "No., Power, takeoff" may list: No. | Power | takeoff | No., Power | Power, takeoff | all three.

    For data that has a table's names only as one text, in which a name may have a comma of its own.
    """
    parts = text.split(", ")
    ends = range(1, len(parts) + 1)
    return [", ".join(parts[end - size : end]) for size in ends for end in ends if end >= size]


def logical_form(predictions: Sequence[str], targets: Sequence[Query], columns: Sequence[Sequence[str]]) -> float:
    """Percent of texts that mean the target: its column and aggregate, and the same set of conditions.

    Args:
      predictions: a text a row.
      targets: the query a row.
      columns: the names of the row's table.

    Raises:
      UserError: no rows, different counts, or a target with a column that is not in the table; it names the row.
    """
    _check(predictions, targets, columns)
    right = 0
    for text, target, names in zip(predictions, targets, columns, strict=True):
        found = parse(text, names)
        right += found is not None and (found.form() == target.form() or found == _as_read(target, names))
    return 100 * right / len(targets)


def execution(predictions: Sequence[str], targets: Sequence[Query], tables: Sequence[Table]) -> float:
    """Percent of texts whose query gives the target's result on the row's table, in the table's order.

    A text that cannot be read or executed is wrong.

    Args:
      predictions: a text a row.
      targets: the query a row.
      tables: the row's table; rows may share one.

    Raises:
      UserError: no rows, different counts, a broken table, or a target that cannot be executed; it names the row.
    """
    _check(predictions, targets, [table.columns for table in tables])
    database = Database()
    right = 0
    for row, (text, target, table) in enumerate(zip(predictions, targets, tables, strict=True), start=1):
        try:
            wanted = database.execute(target, table)
        except FAILURES as error:
            what = f"row {row} of {len(targets)}: its target cannot be executed"
            raise UserError(f"{what}: {one_line(error)}") from error
        except UserError as error:
            raise UserError(f"row {row} of {len(targets)}: {error}") from error
        found = parse(text, table.columns)
        try:
            right += found is not None and (
                found == _as_read(target, table.columns) or database.execute(found, table) == wanted
            )
        except FAILURES:
            continue
    return 100 * right / len(targets)


def _as_read(target: Query, columns: Sequence[str]) -> Query | None:
    """What the target's own text is read as: another query where two columns have one name, or a value reads oddly."""
    return parse(write(target, columns, "table"), columns)


class Database:
    """Tables in memory, made on their first use: texts in lower case, columns named by their places."""

    def __init__(self):
        self._connection = sqlite3.connect(":memory:")
        self._tables: dict[int, tuple[str, Table]] = {}  # by id, which no other object gets while the table is here

    def execute(self, query: Query, table: Table) -> list:
        """The query's results.

        Two conditions on one column both get the later one's value, as in the official script, which binds values by
        the column's name.

        Raises:
          sqlite3.Error, ValueError, OverflowError: the query cannot be executed.
          UserError: the table's types or rows do not fit its columns.
        """
        name = self._name(table)
        column = f"col{query.sel}"
        selected = f"{AGGREGATES[query.agg]}({column})" if query.agg else column
        values = {f"col{c}": _bound(value, table.types[c]) for c, _, value in query.conds}
        where = " AND ".join(f"col{c} {OPERATORS[operator]} :col{c}" for c, operator, _ in query.conds)
        found = self._connection.execute(f"SELECT {selected} FROM {name}{where and f' WHERE {where}'}", values)
        return [row[0] for row in found]

    def _name(self, table: Table) -> str:
        if id(table) not in self._tables:
            name = f"table{len(self._tables)}"
            if len(table.types) != len(table.columns) or not set(table.types) <= set(TYPES):
                raise UserError(f"a table's types are {', '.join(TYPES)}, one a column, not {list(table.types)}")
            lower = [[value.lower() if isinstance(value, str) else value for value in row] for row in table.rows]
            for number, row in enumerate(lower, start=1):
                if len(row) != len(table.columns):
                    raise UserError(f"row {number} of a table has {len(row)} values for {len(table.columns)} columns")
            columns = ", ".join(f"col{c} {kind}" for c, kind in enumerate(table.types))
            self._connection.execute(f"CREATE TABLE {name} ({columns})")
            self._connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(table.types))})", lower)
            self._tables[id(table)] = name, table
        return self._tables[id(table)][0]


def _bound(value: str | int | float, kind: str) -> str | int | float:
    """The value as a condition compares it: lower case, and against real columns a number, or the first in the text."""
    if not isinstance(value, str):
        return value
    value = value.lower()
    if kind != "real":
        return value
    try:
        return float(Decimal(value.replace(",", "")))
    except InvalidOperation:
        found = NUMBER.search(value)
        if not found:
            raise ValueError(f"{value!r} is compared with numbers") from None
        return float(found[0])


def _selected(text: str, places: Mapping[str, int]) -> tuple[int, int] | None:
    """(column, aggregate) of what stands between SELECT and FROM."""
    word, _, rest = text.partition(" ")
    if word in AGGREGATES[1:] and _bare(rest) in places:
        return places[_bare(rest)], AGGREGATES.index(word)
    return (places[_bare(text)], 0) if _bare(text) in places else None


def _conditions(text: str, places: Mapping[str, int]) -> tuple[Condition, ...] | None:
    """The conditions that a whole text states, None where it cannot be read; from its end, to read each part once."""
    ends = [found.start() for found in re.finditer(AND, text)] + [len(text)]
    read: dict[int, tuple[Condition, ...]] = {len(text) + len(AND): ()}  # place -> the conditions from there to the end
    longest = max(map(len, places), default=0)
    for start in [end + len(AND) for end in reversed(ends[:-1])] + [0]:
        for found in OPERATOR.finditer(text, start):
            name, begin = _bare(text[start : found.start()]), found.end()
            if len(name) > longest:
                break
            fitting = (end for end in ends if end + len(AND) in read and _is_value(text, begin, end))
            end = next(fitting, None) if name in places else None
            if end is not None:
                value = text[begin + 1 : end - 1] if text[begin] == "'" else text[begin:end]
                read[start] = (places[name], OPERATORS.index(found[1]), value), *read[end + len(AND)]
                break
    return read.get(0)


def _is_value(text: str, begin: int, end: int) -> bool:
    """Whether something stands between these places, and a quote that begins there ends there."""
    return end > begin and (text[begin] != "'" or (end > begin + 1 and text[end - 1] == "'"))


def _quoted(value: str | int | float) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _bare(name: str) -> str:
    return "".join(name.lower().split())


def _check(predictions: Sequence[str], targets: Sequence[Query], columns: Sequence[Sequence[str]]):
    if len(predictions) == len(targets) == 0:
        raise UserError("there are no queries to score")
    counts = {"predictions": len(predictions), "targets": len(targets), "tables": len(columns)}
    if len(set(counts.values())) > 1:
        lacking = min(counts, key=lambda name: counts[name])
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"{said}: row {counts[lacking] + 1} is not in the {lacking}")
    for row, (target, names) in enumerate(zip(targets, columns, strict=True), start=1):
        wrong = [c for c in (target.sel, *(c for c, _, _ in target.conds)) if c not in range(len(names))]
        wrong += [o for o in (target.agg,) if o not in range(len(AGGREGATES))]
        wrong += [o for _, o, _ in target.conds if o not in range(len(OPERATORS))]
        if wrong:
            what = f"row {row} of {len(targets)}: its target has a column, aggregate or operator numbered {wrong[0]}"
            raise UserError(f"{what}; the table has {len(names)} columns")
