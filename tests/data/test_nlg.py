"""Generation data sets: official counts and forms, small files written here, damage that names its row, TFDS."""

import gzip
import json

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.nlg.prepare import prepare
from lowrank_jax.data.builders.nlg.rows import capped, merged, pairs, rows_digest
from lowrank_jax.data.builders.nlg.source import load_nlg, split_files
from lowrank_jax.data.builders.nlg.specs import NLG, SEEN

MR = "name[Blue Spice], eatType[coffee shop], priceRange[£20-25], familyFriendly[no]"
ENTRY = {
    "category": "Airport",
    "modifiedtripleset": [{"subject": "A", "property": "runwayLength", "object": "2702.0"}] * 2,
    "lexicalisations": [{"lex": "One.", "comment": "good"}, {"lex": "Bad.", "comment": "toFix"}],
}
DART = {"tripleset": [["Mars Hill", "JOINED", "1973"]], "annotations": [{"source": "x", "text": "It joined."}]}
QUERY = {"sel": 1, "agg": 3, "conds": [[0, 0, "Terrence Ross"], [1, 1, 5]]}
TABLE = {"id": "1-2", "header": ["Player", "No."], "types": ["text", "real"], "rows": [["Terrence Ross", 31]]}
ASKED = {"phase": 1, "table_id": "1-2", "question": "how many?", "sql": QUERY}
CHAT = {"id": "1", "dialogue": "Amanda: I baked.\r\nJerry: Sure!", "summary": "Amanda baked."}


def csv(*rows, header="mr,ref"):
    return "\n".join([header, *(f'"{mr}","{ref}"' for mr, ref in rows)]) + "\n"


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# task -> ({file: content} of a training split, its row)
SMALL = {
    "e2e": (
        {"trainset.csv": csv((MR, 'A ""pub"",\nfor £20.'), (MR, "Second."))},
        ("name : Blue Spice | Type : coffee shop | price : £20-25 | family friendly : no", 'A "pub",\nfor £20.'),
    ),
    "webnlg": (
        {"train.json": json.dumps({"entries": [{"1": ENTRY}, {"2": {**ENTRY, "lexicalisations": []}}]})},
        ("A : runwayLength : 2702.0 | A : runwayLength : 2702.0", "One."),
    ),
    "dart": ({"dart-v1.1.1-full-train.json": json.dumps([DART])}, ("Mars Hill : joined : 1973", "It joined.")),
    "wikisql": (
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines(TABLE)},
        (
            "table: 1-2\ncolumns: Player, No.\nQ: how many?\nA:",
            "SELECT COUNT No. FROM 1-2 WHERE Player = 'Terrence Ross' AND No. > 5",
        ),
    ),
    "samsum": ({"train.json": json.dumps([CHAT])}, ("Amanda: I baked.\nJerry: Sure!\n\n", "Amanda baked.")),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.mark.parametrize("task", SMALL)
def test_the_official_form_of_a_row(task, tmp_path):
    files, (context, text) = SMALL[task]
    rows, note = load_nlg(task, "train", write(tmp_path, files), allow_partial=True)
    assert (rows[0].context, rows[0].references[0]) == (context, text)
    assert str(tmp_path) in rows[0].place
    assert f"officially {NLG[task].rows['train']:,}" in note
    assert {path.name for path in split_files(task, "train", tmp_path)} == set(files)
    with pytest.raises(UserError, match=r"officially .*allow_partial=True"):
        load_nlg(task, "train", tmp_path)
    with pytest.raises(UserError, match=rf"has no {NLG[task].files['dev'][0]} .*put {NLG[task].title}'s own there"):
        load_nlg(task, "dev", tmp_path, allow_partial=True)


DAMAGED = {
    "a missing column": ("e2e", {"trainset.csv": csv((MR, "x"), header="mr,text")}, "row 1: .*lacks the column 'ref'"),
    "an empty text": ("e2e", {"trainset.csv": csv((MR, "x"), (MR, " "))}, "row 2: 'ref' is empty"),
    "no attributes": ("e2e", {"trainset.csv": csv(("Blue Spice", "x"))}, "row 1: 'mr' is 'Blue Spice'"),
    "a cut row": ("e2e", {"trainset.csv": csv((MR, "x")) + '"a"\n'}, "row 2: has 1 of 2 columns"),
    "an open quote": ("e2e", {"trainset.csv": csv((MR, "x")) + '"a'}, "after row 1: no CSV"),
    "an empty lexicalisation": (
        "webnlg",
        {
            "train.json": json.dumps(
                {"entries": [{"1": {**ENTRY, "lexicalisations": [{"lex": "", "comment": "good"}]}}]}
            )
        },
        "entry 1: 'lex' is empty",
    ),
    "no category": (
        "webnlg",
        {"train.json": json.dumps({"entries": [{"1": {k: v for k, v in ENTRY.items() if k != "category"}}]})},
        "entry 1: lacks 'category'",
    ),
    "another form": ("webnlg", {"train.json": "[]"}, "lacks 'entries', it has a list"),
    "a pair": (
        "dart",
        {"dart-v1.1.1-full-train.json": json.dumps([DART, {**DART, "tripleset": [["a", "b"]]}])},
        "entry 2",
    ),
    "an empty annotation": (
        "dart",
        {"dart-v1.1.1-full-train.json": json.dumps([{**DART, "annotations": [{"text": ""}]}])},
        "entry 1: 'text' is empty",
    ),
    "no annotation": ("dart", {"dart-v1.1.1-full-train.json": json.dumps([{**DART, "annotations": []}])}, "no text in"),
    "a missing table": (
        "wikisql",
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines({**TABLE, "id": "9"})},
        "'1-2'",
    ),
    "no tables": ("wikisql", {"train.jsonl": lines(ASKED)}, "has no train.tables.jsonl beside"),
    "no such column": (
        "wikisql",
        {"train.jsonl": lines({**ASKED, "sql": {**QUERY, "sel": 7}}), "train.tables.jsonl": lines(TABLE)},
        "line 1: 'sel' has 7",
    ),
    "half a sample": (
        "wikisql",
        {"train.jsonl": lines({"text": "table: 1\ncolumns: a"})},
        "line 1: 'text' has no lines",
    ),
    "no summary": (
        "samsum",
        {"train.json": json.dumps([CHAT, {**CHAT, "summary": "  "}])},
        "row 2: 'summary' is empty",
    ),
    "a comma without quotes": ("e2e", {"trainset.csv": "mr,ref\nname[A], Type[pub],x\n"}, "row 1: has 3 cells for 2"),
    "a column twice": ("e2e", {"trainset.csv": "mr,ref,ref\nname[A],x,y\n"}, "row 1: .* column 'ref' twice"),
    "no value": (
        "wikisql",
        {
            "train.jsonl": lines({**ASKED, "sql": {**QUERY, "conds": [[0, 0, None]]}}),
            "train.tables.jsonl": lines(TABLE),
        },
        "line 1: a condition's value is None, neither text nor number",
    ),
    "a table of other types": (
        "wikisql",
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines({**TABLE, "types": ["text", ["real"]]})},
        "tables.jsonl, line 1: 'types' are text, real, one a column",
    ),
    "a table's row that is none": (
        "wikisql",
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines({**TABLE, "rows": [["Terrence Ross", 31], 5]})},
        "tables.jsonl, line 1: row 2 of the table is no list of 2 cells",
    ),
    "a table's cell that is none": (
        "wikisql",
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines({**TABLE, "rows": [["Terrence Ross", {}]]})},
        "tables.jsonl, line 1: row 1 of the table has {}",
    ),
    "half a surrogate in a triple": (
        "dart",
        {"dart-v1.1.1-full-train.json": json.dumps([{**DART, "tripleset": [["a", "b", "\ud800"]]}])},
        "entry 1: .*surrogate",
    ),
    "half a surrogate in a column": (
        "wikisql",
        {"train.jsonl": lines(ASKED), "train.tables.jsonl": lines({**TABLE, "header": ["Player", "\ud800"]})},
        "line 1: .*surrogate",
    ),
    "half a surrogate": ("samsum", {"train.json": json.dumps([{**CHAT, "summary": "\ud800"}])}, "row 1: .*surrogate"),
    "no list": ("samsum", {"train.json": "{}"}, "is a JSON dict, not a list"),
    "no JSON": ("samsum", {"train.json": "{"}, "is not JSON"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_names_the_row(what, tmp_path):
    task, files, message = DAMAGED[what]
    with pytest.raises(UserError, match=message):
        load_nlg(task, "train", write(tmp_path, files), allow_partial=True)


def test_only_darts_test_file_may_have_an_empty_text(tmp_path):
    entry = {**DART, "annotations": [{"text": "a"}, {"text": ""}]}
    (tmp_path / "dart-v1.1.1-full-test.json.gz").write_bytes(gzip.compress(json.dumps([entry]).encode()))
    assert load_nlg("dart", "test", tmp_path, allow_partial=True)[0][0].references == ("a", "")


def test_equal_inputs_are_merged_and_six_references_kept(tmp_path):
    rows, _ = load_nlg("e2e", "train", write(tmp_path, SMALL["e2e"][0]), allow_partial=True)
    (one,) = merged(rows)
    assert one.references == ('A "pub",\nfor £20.', "Second.")
    assert capped([one], 6)[0].references == one.references + one.references[:1] * 4
    assert capped([one], 1)[0].references == one.references[:1]
    assert [row.references for row in pairs([one])] == [(text,) for text in one.references]


def test_what_tfds_has_prepared_equals_the_files(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.delenv("LOWRANK_JAX_NLG_DIR", raising=False)
    with pytest.raises(UserError, match=r"TFDS has none prepared; set task.data_dir or LOWRANK_JAX_NLG_DIR"):
        load_nlg("wikisql", "dev")
    for split in ("train", "dev", "test"):
        write(tmp_path, {name.replace("train", split): text for name, text in SMALL["wikisql"][0].items()})
    prepare("wikisql", tmp_path, allow_partial=True)
    files, prepared = (load_nlg("wikisql", "dev", folder, True)[0] for folder in (tmp_path, None))
    assert files == prepared
    assert rows_digest(files) == rows_digest(prepared)
    assert len(split_files("wikisql", "dev")) == 1


def test_official_files(data_folder):
    """Where they are: the official numbers of texts and of inputs, the kept empty reference, WebNLG's categories."""
    for split, count in (("train", 42_061), ("dev", 4_672), ("test", 4_693)):
        rows, note = load_nlg("e2e", split, data_folder)
        assert (len(rows), note) == (count, None)
    assert len(merged(rows)) == NLG["e2e"].inputs == 630
    rows, note = load_nlg("webnlg", "test", data_folder)
    assert note is None
    assert sum(row.category in SEEN["code"] for row in rows) == 971
    assert len(merged(rows)) == NLG["webnlg"].inputs
    assert load_nlg("webnlg", "dev", data_folder)[1] is None
    rows, note = load_nlg("dart", "test", data_folder)
    assert note is None
    assert len(merged(rows)) == NLG["dart"].inputs == 4_159
    assert sum(not text for row in rows for text in row.references) == 1
    rows, note = load_nlg("dart", "dev", data_folder)
    assert (len(rows), sum(len(row.references) for row in rows), note) == (2_768, 6_980, None)
    for split, count in (("train", 1_000), ("dev", 100)):
        sample, note = load_nlg("wikisql", split, data_folder, allow_partial=True)
        assert len(sample) == count
        assert "a sample as text" in note
