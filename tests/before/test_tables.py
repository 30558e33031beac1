"""Every recorded table prints the text that it printed at an earlier commit, to the last character."""

import difflib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "tables"
COMMANDS = json.loads((FOLDER / "commands.json").read_text())


@pytest.mark.parametrize("file", COMMANDS)
def test_a_table_prints_what_it_did(file, doors):
    name, options = COMMANDS[file]
    expected, found = (FOLDER / file).read_text(), doors.table(name, **options)
    changes = "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), file, "now", lineterm="", n=0))
    assert found == expected, f"\n{changes}"
