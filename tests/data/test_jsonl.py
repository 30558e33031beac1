"""JSON lines: plain and compressed files, both kinds of row, and one message for each fault of a file."""

import gzip
import json
import lzma

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.jsonl import JsonLines

TEXTS = [{"text": "été\nline two"}, {"text": "b", "source": "left out"}]
PAIRS = [{"prompt": "", "completion": "x"}, {"prompt": "q", "completion": "a", "id": 3}]


def write(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wb").write(data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_reads_text_rows(tmp_path, suffix):
    rows = JsonLines(write(tmp_path / f"a{suffix}", TEXTS))
    assert rows.kind == "text"
    assert [rows[i] for i in range(len(rows))] == [{"text": "été\nline two"}, {"text": "b"}]


def test_reads_prompt_rows_of_several_files_in_order(tmp_path):
    rows = JsonLines([str(write(tmp_path / "a.jsonl", PAIRS)), write(tmp_path / "b.jsonl.gz", PAIRS[:1])])
    assert rows.kind == "completion"
    assert len(rows) == 3
    assert rows[1] == {"prompt": "q", "completion": "a"}
    assert rows[2] == {"prompt": "", "completion": "x"}
    assert rows.place(1) == f"{tmp_path / 'a.jsonl'}, line 2"
    assert rows.place(2).endswith("b.jsonl.gz, line 1")


def test_blank_lines_and_a_byte_order_mark_are_skipped_but_lines_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    rows = JsonLines(path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert rows.place(1).endswith("line 4")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not JSON .*one JSON object per line"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "is a JSON list, not an object"),
        ('{"txt": "a"}', 'needs either the key "text" or both "prompt" and "completion"; found "txt"'),
        ("{}", "found no key"),
        ('{"prompt": "a"}', 'found "prompt"'),
        ('{"text": "a", "prompt": "b", "completion": "c"}', 'found "text", "prompt", "completion"'),
        ('{"text": 3}', '"text" is a int, not a string'),
        ('{"text": null}', '"text" is a NoneType, not a string'),
        ('{"text": ""}', '"text" is empty; remove the row'),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "a", "completion": "b"}', "keep the two kinds in separate runs"),
    ],
)
def test_a_bad_row_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: .*" + message) as error:
        JsonLines(path)
    assert "\n" not in str(error.value)


def test_an_empty_completion_is_refused(tmp_path):
    with pytest.raises(UserError, match='line 1: "completion" is empty'):
        JsonLines(write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": ""}]))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        JsonLines(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no data file given"):
        JsonLines([])
    with pytest.raises(UserError, match="is a folder, not a file"):
        JsonLines(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="has no rows"):
        JsonLines([write(tmp_path / "a.jsonl", TEXTS), empty])


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_packings(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", [{"text": str(i) * 50} for i in range(2000)])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"plain text\n", whole[:100] + b"????" + whole[104:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.jsonl\.\w\w, after line \d+: cannot be read .*again"):
            JsonLines(path)


def test_latin_1_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "été"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        JsonLines(path)


def test_public_text_is_read_whole(data_folder):
    rows = JsonLines([data_folder / "text-en" / f"{name}_validation.jsonl.xz" for name in ("novels", "peps")])
    assert len(rows) == 39
    assert sum(len(row["text"].encode()) for row in rows) == 2_703_138 + 706_069


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_a_byte_that_is_not_utf8_is_found_on_its_line(tmp_path, suffix):
    """Text is decoded by blocks of 8 KiB: the fault is seen before the first line is."""
    lines = [json.dumps({"text": f"row {i}"}).encode() for i in range(80)]
    lines[50] = b'{"text": "caf\xe9"}'
    path = tmp_path / f"a{suffix}"
    {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)(path, "wb").write(b"\n".join(lines))
    with pytest.raises(UserError, match=rf"a{suffix}, line 51: not UTF-8 \(.* at byte 14\)"):
        JsonLines(path)


@pytest.mark.parametrize("row", ["9" * 5000, '{"text": ' + "9" * 5000 + "}", "[" * 99_999, "NaN", '{"text": 1e999}'])
def test_numbers_and_depths_beyond_reason(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{row}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: ") as error:
        JsonLines(path)
    assert len(str(error.value)) < 300
