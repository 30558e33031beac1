"""JSON lines: plain and compressed files, both kinds of row, and one message for each fault of a file."""

import gzip
import json
import lzma

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.rows import Rows

TEXTS = [{"text": "été\nline two"}, {"text": "b", "source": "left out"}]
PAIRS = [{"prompt": "", "completion": "x"}, {"prompt": "q", "completion": "a", "id": 3}]


def write_bytes(path, data):
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))


def write(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    write_bytes(path, data)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_reads_text_rows(tmp_path, suffix):
    rows = Rows(write(tmp_path / f"a{suffix}", TEXTS))
    assert rows.kind == "text"
    assert [rows[i] for i in range(len(rows))] == [{"text": "été\nline two"}, {"text": "b"}]


def test_reads_prompt_rows_of_several_files_in_order(tmp_path):
    rows = Rows([str(write(tmp_path / "a.jsonl", PAIRS)), write(tmp_path / "b.jsonl.gz", PAIRS[:1])])
    assert rows.kind == "completion"
    assert len(rows) == 3
    assert rows[1] == {"prompt": "q", "completion": "a"}
    assert rows[2] == {"prompt": "", "completion": "x"}
    assert rows.place(1) == f"{tmp_path / 'a.jsonl'}, line 2"
    assert rows.place(2).endswith("b.jsonl.gz, line 1")


def test_blank_lines_and_a_byte_order_mark_are_skipped_but_lines_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \n{"text": "b"}')
    rows = Rows(path)
    assert [row["text"] for row in rows] == ["a", "b"]
    assert rows.place(1).endswith("line 4")


def test_a_column_without_a_value_is_absent(tmp_path):
    """Tables of mixed rows have every column in every row."""
    rows = [{"text": None, **PAIRS[1], "messages": None}, {"prompt": "p", "completion": "c", "text": None}]
    assert [row["prompt"] for row in Rows(write(tmp_path / "a.jsonl", rows))] == ["q", "p"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not JSON .*one JSON object per line"),
        ("[" * 100_000, "not JSON"),
        ('["a"]', "is a JSON list, not an object"),
        ('{"txt": "a"}', 'its keys are "txt"; understood are "text"; "prompt" and "comp'),
        ("{}", "it has no keys; understood are"),
        ('{"prompt": "a"}', 'its keys are "prompt"; understood'),
        (
            '{"text": "a", "prompt": "b", "completion": "c"}',
            'its keys are "text", "prompt", "completion", which are two kinds',
        ),
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
        Rows(path)
    assert "\n" not in str(error.value)


def test_an_empty_completion_is_refused(tmp_path):
    with pytest.raises(UserError, match='line 1: "completion" is empty'):
        Rows(write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": ""}]))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="no data file given"):
        Rows([])
    with pytest.raises(UserError, match="a folder without data files"):
        Rows(tmp_path)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="has no rows"):
        Rows([write(tmp_path / "a.jsonl", TEXTS), empty])


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_damaged_packings(tmp_path, suffix):
    path = write(tmp_path / f"a.jsonl{suffix}", [{"text": str(i) * 50} for i in range(2000)])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"plain text\n", whole[:100] + b"????" + whole[104:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.jsonl\.\w\w, after line \d+: cannot be read .*again"):
            Rows(path)


def test_latin_1_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "été"}'.encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        Rows(path)


def test_public_text_is_read_whole(data_folder):
    rows = Rows([data_folder / "text-en" / f"{name}_validation.jsonl.xz" for name in ("novels", "peps")])
    assert len(rows) == 39
    assert sum(len(row["text"].encode()) for row in rows) == 2_703_138 + 706_069


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.xz"])
def test_a_byte_that_is_not_utf8_is_found_on_its_line(tmp_path, suffix):
    """Text is decoded by blocks of 8 KiB: the fault is seen before the first line is."""
    lines = [json.dumps({"text": f"row {i}"}).encode() for i in range(80)]
    lines[50] = b'{"text": "caf\xe9"}'
    path = tmp_path / f"a{suffix}"
    write_bytes(path, b"\n".join(lines))
    with pytest.raises(UserError, match=rf"a{suffix}, line 51: not UTF-8 \(.* at byte 14\)"):
        Rows(path)


@pytest.mark.parametrize("row", ["9" * 5000, '{"text": ' + "9" * 5000 + "}", "[" * 99_999, "NaN", '{"text": 1e999}'])
def test_numbers_and_depths_beyond_reason(tmp_path, row):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a"}}\n{row}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: ") as error:
        Rows(path)
    assert len(str(error.value)) < 300


ASKED, SAID = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
MORE, CALL = {**ASKED, "content": "2 +\n\n2?"}, {"role": "assistant", "content": "", "tool_calls": [1]}
TALK = {"messages": [ASKED, SAID], "first": 0}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"messages": [ASKED, SAID], "id": 3}, TALK),
        ({"messages": {"role": ["user", "assistant"], "content": ["2 + 2?", "4"]}}, TALK),  # columns
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, TALK),
        ({"conversations": [ASKED, SAID]}, TALK),
        ({"instruction": "2 + 2?", "input": "", "output": "4"}, TALK),
        ({"instruction": "2 + 2?", "context": "", "response": "4", "category": "open_qa"}, TALK),
        ({"instruction": "2 +", "context": "2?", "response": "4"}, {"messages": [MORE, SAID], "first": 0}),
        ({"instruction": "2 +", "input": "2?", "output": "4"}, {"messages": [MORE, SAID], "first": 0}),
        ({"query": "2 + 2?", "response": "4", "type": "GSM_Rephrased", "original_question": "?"}, TALK),
        ({"question": "2 + 2?", "answer": "4"}, TALK),
        ({"question": "2 +", "answer": "4", "context": "2?"}, {"messages": [MORE, SAID], "first": 0}),
        ({"messages": [ASKED, SAID], "question": "2 + 2?", "answer": "5"}, TALK),
        ({"prompt": [ASKED], "completion": [SAID]}, {**TALK, "first": 1}),
        ({"prompt": [ASKED, SAID, ASKED], "completion": [SAID]}, {"messages": [ASKED, SAID] * 2, "first": 3}),
        ({"messages": [{"role": "system", "content": ""}, {**ASKED, "name": None}, SAID]}, TALK),
        (
            {"messages": [ASKED, {**CALL, "content": None}, {**SAID, "role": "tool"}, SAID]},
            {"messages": [ASKED, CALL, {**SAID, "role": "tool"}, SAID], "first": 0},
        ),
    ],
)  # fmt: skip
def test_every_way_to_write_a_conversation(tmp_path, row, wanted):
    rows = Rows(write(tmp_path / "a.jsonl", [row]))
    assert (rows.kind, rows[0]) == ("chat", wanted)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [ASKED], "conversations": []},
            '"messages", "conversations", which are two kinds of rows; .*; understood are',
        ),
        ({"question": "a", "reply": "b"}, 'its keys are "question", "reply"; .*"instruction" and "output"'),
        ({"question": "a", "answer": "b", "context": ["c"]}, '"context" is a list, not a string'),
        ({"messages": []}, '"messages" is empty'),
        ({"messages": "hi"}, '"messages" is no list of messages'),
        ({"messages": ["hi"]}, "message 1 of messages: is a str; write"),
        ({"messages": [{"content": "hi"}]}, 'has neither "role" nor "from" .found "content"'),
        ({"messages": [{"role": "narrator", "content": "hi"}]}, "unknown role 'narrator'; roles are system, user"),
        ({"messages": [ASKED, {**SAID, "content": ""}]}, 'message 2 of messages: "content" is empty'),
        ({"messages": [ASKED, {**SAID, "content": ["4"]}]}, '"content" is a list, not a string'),
        ({"messages": [SAID, ASKED]}, "ends with a turn of role 'user', after which there is no assistant's turn"),
        ({"messages": {"role": ["user"], "content": []}}, 'the columns of "messages" have different lengths'),
        ({"messages": [ASKED, SAID], "tools": [{}]}, 'has "tools"'),
        ({"prompt": [ASKED], "completion": "4"}, '"completion" is no list of messages'),
        ({"prompt": "q", "completion": "a"}, 'has "prompt", "completion", the rows before have a conversation; keep'),
    ],
)
def test_a_bad_conversation_names_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", [{"messages": [ASKED, SAID]}, row])
    with pytest.raises(UserError, match=r"a\.jsonl, line 2.*" + message) as error:
        Rows(path)
    assert "\n" not in str(error.value)
