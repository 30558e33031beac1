"""WikiSQL's queries are read back from text, compared and executed as the official evaluation does."""

import gzip
import json

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.metrics import wikisql
from lowrank_jax.metrics.wikisql import Query, Table, execution, logical_form, parse, write

COLUMNS = ("Player", "No.", "Power, takeoff", "Max speed", "speed", "Away FROM home", "A = B")
TABLE = Table(
    ("Name", "Goals", "Season", "Born"),
    ("text", "real", "text", "text"),
    (
        ("Ann Lee", 3, "1998", "Rome"),
        ("BOB", 1.5, "1999", "Oslo"),
        ("Cy", "1,000", "2000", None),
        ("bob", "7", "2001", "Oslo"),
    ),
)


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("SELECT Player FROM 1-10015132-16", Query(0, 0)),
        ("SELECT COUNT No. FROM 1-1 WHERE Player = 'Jalen Rose'", Query(1, 3, ((0, 0, "Jalen Rose"),))),
        ("SELECT Player FROM t WHERE No. > 144", Query(0, 0, ((1, 1, "144"),))),
        # The columns decide where names and values end.
        ("SELECT Power, takeoff FROM t WHERE Power, takeoff < 5", Query(2, 0, ((2, 2, "5"),))),
        ("SELECT Away FROM home FROM t", Query(5, 0)),
        ("SELECT Max speed FROM t", Query(3, 0)),
        ("SELECT MAX speed FROM t", Query(4, 1)),
        ("SELECT Player FROM t WHERE A = B = 'x = y'", Query(0, 0, ((6, 0, "x = y"),))),
        # Quotes and AND inside values.
        ("SELECT No. FROM t WHERE Player = 'Terrence's' AND No. = 3", Query(1, 0, ((0, 0, "Terrence's"), (1, 0, "3")))),
        ("SELECT No. FROM t WHERE Player = 'Q AND A' AND No. = 3", Query(1, 0, ((0, 0, "Q AND A"), (1, 0, "3")))),
        ("SELECT No. FROM t WHERE Player = 'a' AND No. is 'b'", Query(1, 0, ((0, 0, "a' AND No. is 'b"),))),
        ("SELECT No. FROM t WHERE Player = ''", Query(1, 0, ((0, 0, ""),))),
        # Names without regard to case and spaces, as the official reader compares them.
        (" SELECT powER,TakeOff FROM t WHERE max  speed = 'x'\n", Query(2, 0, ((3, 0, "x"),))),
        # Not a query, or not one of this table.
        ("", None),
        ("Player FROM t", None),
        ("SELECT Player", None),
        ("SELECT Players FROM t", None),
        ("SELECT COUNT FROM t", None),
        ("SELECT Player FROM", None),
        ("SELECT Player FROM t WHERE ", None),
        ("SELECT Player FROM t AND No. = 3", None),
        ("SELECT Player FROM t WHERE No. = ", None),
        ("SELECT Player FROM t WHERE Points = 3", None),
        ("SELECT Player FROM t WHERE No. = 'open", None),
        ("SELECT Player FROM t WHERE No. = 3 AND Points = 'x", Query(0, 0, ((1, 0, "3 AND Points = 'x"),))),
    ],
)
def test_parse(text, query):
    assert parse(text, COLUMNS) == query


def test_what_is_written_is_read():
    conds = ((0, 0, "Q AND A's"), (1, 1, 3), (2, 2, 4.5), (6, 0, "1998"))
    for query in (Query(3, 0), Query(4, 1, conds[:1]), Query(2, 5, conds)):
        assert parse(write(query, COLUMNS, "1-10015132-16"), COLUMNS).form() == query.form()
    text = write(Query(1, 3, conds[:2]), COLUMNS, "t")
    assert text == "SELECT COUNT No. FROM t WHERE Player = 'Q AND A's' AND No. > 3"
    assert Query.of({"sel": 1, "agg": 0, "conds": [[0, 0, "1998"]]}) == Query(1, 0, ((0, 0, "1998"),))


def test_long_texts():
    """Of a model that repeats itself: each condition is read once, and no text recurses."""
    many = " AND ".join(f"No. = {i}" for i in range(1500))
    assert len(parse(f"SELECT Player FROM t WHERE {many}", COLUMNS).conds) == 1500
    for text in (many.replace("No.", "Points"), many.replace("= ", "= '")):
        assert parse(f"SELECT Player FROM t WHERE {text} AND", COLUMNS) is None
    assert parse(f"SELECT {many.replace('AND', 'FROM')}", COLUMNS) is None


def test_logical_form():
    """The official equality: column, aggregate and the set of conditions, values as texts in lower case."""
    target = Query(0, 3, ((0, 0, "Ann Lee"), (1, 1, 2)))
    for text, percent in (
        ("SELECT COUNT Name FROM t WHERE Name = 'ann LEE' AND Goals > 2", 100),
        ("SELECT COUNT Name FROM another WHERE Goals > '2' AND Name = 'Ann Lee' AND Goals > 2", 100),
        ("SELECT COUNT Name FROM t WHERE Name = 'Ann Lee' AND Goals > 2.0", 0),
        ("SELECT COUNT Name FROM t WHERE Name = 'Ann Lee' AND Goals < 2", 0),
        ("SELECT COUNT Name FROM t WHERE Name = 'Ann Lee'", 0),
        ("SELECT Name FROM t WHERE Name = 'Ann Lee' AND Goals > 2", 0),
        ("SELECT COUNT Goals FROM t WHERE Name = 'Ann Lee' AND Goals > 2", 0),
        ("no query", 0),
    ):
        assert logical_form([text], [target], [TABLE.columns]) == percent, text
    assert logical_form(["SELECT Name FROM t", "x"] * 2, [Query(0, 0)] * 4, [TABLE.columns] * 4) == 50
    # Of two columns with one name a text cannot name the second.
    assert logical_form(["SELECT A FROM t", "SELECT B FROM t"], [Query(1, 0)] * 2, [("A", "A", "B")] * 2) == 50


@pytest.mark.parametrize(
    ("query", "result"),
    [
        (Query(0, 0), ["ann lee", "bob", "cy", "bob"]),  # texts are stored in lower case
        (Query(1, 0, ((0, 0, "Bob"),)), [1.5, 7]),  # and compared in it
        (Query(1, 4), [1011.5 - 999]),  # "1,000" is a text even in a real column, whose sum reads its first digits
        (Query(0, 3, ((1, 1, 2),)), [3]),  # and a text is more than any number
        (Query(0, 0, ((1, 1, "1,001"),)), ["cy"]),
        (Query(0, 0, ((1, 1, "2,001 goals"),)), ["ann lee", "cy", "bob"]),  # no number: the first one in it, 2
        (Query(0, 0, ((1, 0, "7.0"),)), ["bob"]),
        (Query(0, 0, ((2, 0, 1998),)), ["ann lee"]),  # a number compared with a text column is a text
        (Query(2, 1), ["2001"]),
        (Query(0, 0, ((3, 0, "Oslo"), (1, 1, "2"))), ["bob"]),
        (Query(0, 0, ((1, 1, 1), (1, 2, 2))), []),  # bound by column: > 2 and < 2, as in the official script
        (Query(1, 5, ((0, 0, "nobody"),)), [None]),
        (Query(0, 3, ((3, 0, "x' OR '1' = '1"),)), [0]),
    ],
)
def test_execution_of_one_query(query, result):
    assert wikisql.Database().execute(query, TABLE) == result


def test_execution():
    targets = [Query(1, 0, ((2, 0, "1999"),))] * 6
    texts = [
        "SELECT Goals FROM t WHERE Season = '1999'",
        "SELECT MIN Goals FROM t",  # another query with the same result
        "SELECT Goals FROM t WHERE Season = '1998'",
        "SELECT Goals FROM t WHERE Goals = 'many'",  # nothing to compare: wrong, and no error
        "SELECT Goals FROM t WHERE",
        "Goals",
    ]
    assert execution(texts, targets, [TABLE] * 6) == pytest.approx(100 * 2 / 6)
    assert logical_form(texts, targets, [TABLE.columns] * 6) == pytest.approx(100 * 1 / 6)
    assert execution(texts[:1] * 2, targets[:2], [TABLE, Table(TABLE.columns, TABLE.types, ())]) == 100


@pytest.mark.parametrize(
    ("targets", "tables", "said"),
    [
        ([], [], "2 predictions, 0 targets, 0 tables: row 1 is not in the targets"),
        ([Query(0, 0)] * 2, [TABLE], "row 2 is not in the tables"),
        ([Query(0, 0), Query(4, 0)], [TABLE] * 2, "row 2 of 2: its target has a column.* 4; the table has 4 columns"),
        ([Query(0, 0), Query(0, 6)], [TABLE] * 2, "row 2 of 2: its target has a column, aggregate .* 6"),
        ([Query(0, 0, ((0, 3, "x"),)), Query(0, 0)], [TABLE] * 2, "row 1 of 2: .* operator numbered 3"),
        ([Query(0, 0), Query(0, 0, ((1, 0, "many"),))], [TABLE] * 2, "row 2 of 2: .* cannot be executed: 'many'"),
        ([Query(0, 0, ((1, 0, 2**70),))] * 2, [TABLE] * 2, "row 1 of 2: .* cannot be executed: .*too large"),
        ([Query(0, 0)] * 2, [Table(("A",), ("blob",), ())] * 2, "row 1 of 2: a table.s types are text, real"),
        ([Query(0, 0)] * 2, [Table(("A", "B"), ("real",), ())] * 2, "types are text, real, one a column"),
        (
            [Query(0, 0)] * 2,
            [Table(("A",), ("real",), ((1,), (1, 2)))] * 2,
            "row 1 of 2: row 2 of a table has 2",
        ),
    ],
)
def test_bad_input(targets, tables, said):
    with pytest.raises(UserError, match=said):
        execution(["SELECT Name FROM t"] * 2, targets, tables)


def test_bad_input_of_logical_form():
    with pytest.raises(UserError, match="no queries"):
        logical_form([], [], [])
    with pytest.raises(UserError, match=r"row 2 of 2: .* 4; the table has 4 columns"):
        logical_form(["SELECT Name FROM t"] * 2, [Query(0, 0), Query(0, 0, ((4, 0, "x"),))], [TABLE.columns] * 2)


def test_published_rows(data_folder):
    """Of 1,200 published rows 1,184 are read where the line of columns is cut at commas, and all by possible names."""
    folder = data_folder / "wikisql-subset"
    if not folder.is_dir():
        pytest.skip("the folder of data sets has no wikisql-subset")
    lines = gzip.decompress((folder / "train.jsonl.gz").read_bytes()).decode().splitlines()
    for name in ("valid.jsonl", "test.jsonl"):
        lines += (folder / name).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["text"].partition("\nA: ") for line in lines]
    answers = [answer for _, _, answer in rows]
    columns = [prompt.partition("\ncolumns: ")[2].partition("\nQ: ")[0] for prompt, _, _ in rows]
    cut = [parse(answer, names.split(", ")) for answer, names in zip(answers, columns, strict=True)]
    assert (len(rows), sum(query is not None for query in cut)) == (1200, 1184)
    possible = [wikisql.possible_columns(names) for names in columns]
    targets = [parse(answer, names) for answer, names in zip(answers, possible, strict=True)]
    assert None not in targets
    assert logical_form(answers, targets, possible) == 100
    others = answers[1:] + answers[:1]
    assert logical_form(others, targets, possible) < 5
