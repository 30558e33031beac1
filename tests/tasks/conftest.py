"""A user's rows as a file, for the tests of tasks."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """write(rows, name) -> path of a file of JSON lines."""

    def write(rows, name="a.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write
