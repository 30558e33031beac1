"""`experiments.tables --write`: tables between markers, the rest unchanged, and the repository's as printed."""

import functools
from pathlib import Path

import pytest

from experiments import tables
from experiments.records import results
from experiments.tables import __main__ as program
from experiments.tables.documents import write_all, written
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
TEXT = """# Results

<!-- table: mora_table2 --scale=laptop -->
what stood here before
<!-- end -->
between
  <!-- table: indented, no marker -->
```
<!-- table: in code -->
<!-- end -->
```
<!-- table: quantized --lines -->
<!-- end -->
last line, without an end"""


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """The repository's records are read and checked once for all tables here: 0.4 s each time."""
    read = functools.cache(results.load_results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "load_results", lambda places: read(tuple(Path(place).resolve() for place in places)))
        yield


@pytest.fixture
def root(tmp_path):
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "results").symlink_to(ROOT / "experiments" / "results")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(TEXT)
    (tmp_path / "docs" / "plain.md").write_text("no table\n")
    (tmp_path / "README.md").write_text("<!-- table: ledger -->\n<!-- end -->\n")
    return tmp_path


def test_tables_are_written_between_their_markers_and_again_changes_nothing(root):
    table_of = lambda words: program.table_of(words, root)  # noqa: E731
    assert write_all(root, table_of) == [Path("README.md"), Path("docs/results.md")]
    text = (root / "docs" / "results.md").read_text()
    first, rest = text.split("<!-- end -->\nbetween\n")
    assert first.startswith("# Results\n\n<!-- table: mora_table2 --scale=laptop -->\n\nMoRA Table 2, laptop scale")
    assert "| MoRA | 8 |" in first
    assert "what stood here before" not in text
    assert first.endswith("\n\n")
    assert rest.startswith(TEXT.split("between\n")[1].split("<!-- table: quantized")[0])
    assert rest.endswith("|\n\n<!-- end -->\nlast line, without an end")
    assert "Training loss" not in rest  # the lines alone
    assert write_all(root, table_of) == []
    assert "size of the square" in (root / "README.md").read_text()


def test_the_program_says_which_files_changed(root, monkeypatch, capsys):
    monkeypatch.setattr(program, "ROOT", root)
    options = program.flags.FlagValues()
    program.flags.DEFINE_bool("write", True, "", flag_values=options)
    options(["tables"])
    monkeypatch.setattr(program.flags, "FLAGS", options)
    program.main(["tables"])
    assert capsys.readouterr().out == "wrote README.md\nwrote docs/results.md\n"
    program.main(["tables"])
    assert capsys.readouterr().out == "every table is as its records give it\n"
    with pytest.raises(UserError, match="--write takes the tables from the documents' markers"):
        program.main(["tables", "speed"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n<!-- table: ledger -->\n", "doc.md, line 2: the table's marker has no <!-- end -->"),
        ("<!-- table: ledger -->\n<!-- table: ledger -->\n<!-- end -->\n", "line 1: .* before the next one"),
        ("<!-- table: nothing -->\n<!-- end -->\n", "line 1: name one table: .*; not nothing"),
        ("<!-- table: ledger --scales=x -->\n<!-- end -->\n", "line 1: Unknown command line flag 'scales'"),
        ("<!-- table: ledger 'x -->\n<!-- end -->\n", "line 1: No closing quotation"),
    ],
)
def test_a_wrong_marker_names_its_file_and_line_and_nothing_is_written(root, text, message):
    with pytest.raises(UserError, match=message):
        written(text, program.table_of, "doc.md")
    (root / "docs" / "wrong.md").write_text(text)
    with pytest.raises(UserError):
        write_all(root, program.table_of)
    assert (root / "docs" / "results.md").read_text() == TEXT


def test_the_repositorys_tables_are_those_of_its_records():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        assert written(text, program.table_of, path.name) == text, f"python -m experiments.tables --write: {path.name}"


def test_every_table_fits_the_interface():
    """The scales are those that mora_table2 has rows for; what a name lists is there."""
    from experiments.tables.uuid import rows as uuid_rows

    assert (*uuid_rows.ROWS,) == program.SCALES
    for name in tables.TABLES:
        module = tables.find([name])
        assert callable(module.table)
        assert callable(module.figures)
    for name in ("speed", "quantized", "ledger"):
        assert tables.find([name]).figures(None, "nowhere") == []
