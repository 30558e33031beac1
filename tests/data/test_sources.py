"""Where rows come from: folders, JSON arrays, Parquet, and data sets by name; packages that are absent."""

import dataclasses
import gzip
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.records import data_record
from lowrank_jax.core.errors import UserError
from lowrank_jax.data.rows import Rows
from lowrank_jax.tasks.text import TextConfig, TextTask
from lowrank_jax.text.tokenizers import ByteTokenizer

ROWS = [{"text": f"row {i}"} for i in range(5)]
TALK = [{"messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "b"}]}] * 3


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def lines(path, rows):
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def test_a_folder_is_its_files_by_name(tmp_path):
    parquet(tmp_path / "b.parquet", ROWS[2:])
    lines(tmp_path / "a.jsonl.gz", ROWS[:2])
    (tmp_path / "README.md").write_text("not data")
    (tmp_path / "dataset_infos.json").write_text("{}")
    rows = Rows(tmp_path)
    assert [*rows] == ROWS
    assert rows.place(4) == f"{tmp_path / 'b.parquet'}, row 3"
    plain = {"task": {"name": "text", "path": str(tmp_path)}}
    before = data_record.make(plain)
    assert [name for name, _, _ in before["task.path.0"]["files"]] == ["a.jsonl.gz", "b.parquet"]
    lines(tmp_path / "c.jsonl.gz", ROWS[:1])
    with pytest.raises(data_record.DataChanged, match=r"the contents of the data files in .* have changed since"):
        data_record.check(plain, before, data_record.make(plain, before), False, "a run")


def test_parquet_holds_conversations(tmp_path):
    rows = Rows(parquet(tmp_path / "a.parquet", TALK))
    assert (rows.kind, len(rows)) == ("chat", 3)
    assert rows[2] == {**TALK[0], "first": 0}
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"b\.parquet, after row 0: cannot be read .* fetch the file again") as error:
        Rows(tmp_path / "b.parquet")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        Rows(tmp_path / "c.parquet")


def test_a_json_array_and_json_lines_in_one_file(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}] * 2, indent=1))
    rows = Rows(path)
    assert (rows.kind, len(rows), rows.place(1)) == ("chat", 2, f"{path}, row 2")
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert [*Rows(path)] == ROWS
    path.write_text('[{"text": "a"}')
    with pytest.raises(UserError, match=r"alpaca\.json: not JSON .*; write one array of objects, or"):
        Rows(path)


class Hub:
    """`datasets` as far as it is read."""

    asked = ()

    def load_dataset(self, name, config, split):
        Hub.asked = (name, config, split)
        if split == "none":
            raise ValueError("Unknown split\n'none'")
        return TALK


def tfds(monkeypatch):
    """tensorflow_datasets as far as it is read: bytes for texts, columns for lists of objects."""
    stored = [{"messages": {"role": np.array([b"user", b"assistant"], object), "content": ["é".encode(), b"b"]}}] * 3
    builder = SimpleNamespace(
        info=SimpleNamespace(splits=["test"]), as_data_source=lambda split: {"test": stored}[split]
    )
    module = SimpleNamespace(builder=lambda name, **options: builder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.text", SimpleNamespace())


def test_data_sets_by_name(monkeypatch):
    """One reading through each library: the rows, and in the record the digest that the task has made of them."""
    monkeypatch.setitem(sys.modules, "datasets", Hub())
    tfds(monkeypatch)
    for name in ("hub:owner/talks/small:validation", "tfds:talks:test"):
        rows = Rows(name)
        assert [*rows] == [{**row, "first": 0} for row in TALK]
        assert rows.place(1) == f"{name}, row 2"
        task = TextTask(TextConfig(path=name, chat_template="zephyr", packed=False, seq_len=0), ByteTokenizer())
        plain = {"task": {"name": "text", "path": name}}
        record = data_record.make(plain, known=data_record.of_task(task))
        assert record == data_record.make(plain) != {}
        assert [*record] == [f"task.path.{name}"]
    assert Hub.asked == ("owner/talks", "small", "validation")
    for name, message in (
        ("hub:owner/talks:none", r"cannot be loaded \(Unknown split 'none'\); check the name, the split and"),
        ("hub:a/b/c/d", "write hub:owner/name:split, or"),
        ("tfds:talks:train", "cannot be loaded"),
        ("tfds:", "names no data set"),
    ):
        with pytest.raises(UserError, match=message) as error:
            Rows(name)
        assert "\n" not in str(error.value)


def test_texts_read_when_they_are_asked_for(monkeypatch):
    """The rows that all at once would give, cut to seq_len; the record looks at some rows, and never reads the rest."""
    texts, asked = [f"text {'x' * number}" for number in range(500)], []

    class Stored:
        def __len__(self):
            return len(texts)

        def __getitem__(self, index):
            asked.append(index)
            return {"text": texts[index].encode()}

    builder = SimpleNamespace(info=SimpleNamespace(splits=["train"]), as_data_source=lambda split: Stored())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", SimpleNamespace(builder=lambda name, **options: builder))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.text", SimpleNamespace())
    config = TextConfig(path="tfds:c4/en:train", seq_len=24, packed=False, truncate=True, lazy=True)
    task = TextTask(config, ByteTokenizer())
    assert len(set(asked)) == 64
    plain = {"task": {"name": "text", "path": config.path, "lazy": True}}
    assert data_record.make(plain, known=data_record.of_task(task)) == data_record.make(plain) != {}
    asked.clear()
    source, whole = task.train_source(), TextTask(dataclasses.replace(config, lazy=False), ByteTokenizer())
    for index in (0, 7, 400):
        ours, theirs = (one.features(rows[index]) for one, rows in ((task, source), (whole, whole.train_source())))
        for name in theirs:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert len(source) == 500
    with pytest.raises(UserError, match="reads hub: and tfds: data sets, not"):
        TextTask(dataclasses.replace(config, path="a.jsonl"), ByteTokenizer())
    with pytest.raises(UserError, match="reads single texts of one data set"):
        TextConfig(path="tfds:c4/en:train", lazy=True)


@pytest.mark.parametrize(
    ("name", "module", "message"),
    [
        ("hub:a/b", "datasets", r"hub:a/b needs the datasets package; pip install datasets \(the extra \[data\]\)"),
        ("tfds:a", "tensorflow_datasets", "pip install tensorflow-datasets"),
        ("a.parquet", "pyarrow", r"a.parquet needs pyarrow; pip install pyarrow \(the extra \[parquet\]\)"),
    ],
)
def test_what_to_install(monkeypatch, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UserError, match=message):
        Rows(name)
