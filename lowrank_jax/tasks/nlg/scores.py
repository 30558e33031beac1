"""Scores decoded texts as the official scripts do: all inputs together, and of WebNLG the seen and the unseen apart."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.rows import NlgRow
from lowrank_jax.metrics import texts, wikisql
from lowrank_jax.metrics.texts.ter import Known

WEBNLG, WIKISQL = "webnlg", "wikisql"


class Scored(NamedTuple):
    """Scores by name: `values` that were computed, and in `missing` why the others were not."""

    values: dict[str, float]
    missing: dict[str, str]


def score_by(task: str, predictions: Sequence[str], rows: Sequence[NlgRow], seen: Collection[str]) -> Scored:
    """The metrics of a data set; of WebNLG as "all/bleu", "seen/bleu", "unseen/bleu" and so on.

    Args:
      task: a name of `specs.NLG`.
      predictions: one a row.
      rows: with their references.
      seen: the categories of WebNLG that count as seen.
    """
    said = [text.strip() for text in predictions]
    if task != WEBNLG:
        return _score(task, said, rows)
    values, missing, known = {}, {}, {}  # each row is scored twice: in "all", and as seen or unseen
    for name, wanted in (("seen", (True,)), ("unseen", (False,)), ("all", (True, False))):
        chosen = [index for index, row in enumerate(rows) if (row.category in seen) in wanted]
        if not chosen:
            missing[name] = f"not computed: no {name} input is decoded"
            continue
        found = _score(task, [said[index] for index in chosen], [rows[index] for index in chosen], known)
        values |= {f"{name}/{metric}": value for metric, value in found.values.items()}
        missing |= {f"{name}/{metric}": why for metric, why in found.missing.items()}
    return Scored(values, missing)


def _score(task: str, predictions: Sequence[str], rows: Sequence[NlgRow], known: Known | None = None) -> Scored:
    if task == WIKISQL:
        return _score_queries(predictions, rows)
    found = texts.score(task, predictions, [row.references for row in rows], known)
    return Scored(dict(found.values), dict(found.missing))


def _score_queries(predictions: Sequence[str], rows: Sequence[NlgRow]) -> Scored:
    """Logical form and execution accuracy, in percent.

    A sample as text has no queries: those that are read from its texts count, and "unread" is the number of the others.
    """
    given = [(text, row, _query(row)) for text, row in zip(predictions, rows, strict=True)]
    read = [(text, row, query) for text, row, query in given if query is not None]
    values, missing = {}, {}
    if len(read) < len(given):
        values["unread"] = float(len(given) - len(read))
    if not read:
        why = "not computed: no reference could be read as a query"
        return Scored(values, {"logical_form": why, "execution": why})
    written, kept, targets = (list(each) for each in zip(*read, strict=True))
    headers = [_table(row)["header"] for row in kept]
    values["logical_form"] = wikisql.logical_form(written, targets, headers)
    if not all("rows" in _table(row) for row in kept):
        return Scored(values, {"execution": "not computed: the tables are not in this sample"})
    made: dict[str, wikisql.Table] = {}
    for table in map(_table, kept):
        made.setdefault(table["id"], wikisql.Table(table["header"], table["types"], table["rows"]))
    try:
        tables = [made[_table(row)["id"]] for row in kept]
        values["execution"] = wikisql.execution(written, targets, tables)
    except UserError as error:  # hours of training are not lost for one metric
        missing["execution"] = f"not computed: {error}"
    return Scored(values, missing)


def _query(row: NlgRow) -> wikisql.Query | None:
    table = _table(row)
    if "sql" in table:
        return wikisql.Query.of(table["sql"])
    return wikisql.parse(row.references[0], table["header"])


def _table(row: NlgRow) -> Mapping[str, Any]:
    assert row.table is not None  # `builders.nlg.wikisql` gives each row one
    return row.table
