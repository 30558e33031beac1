"""`experiments.decode`: a record of each way of reading the weights, the same texts as transformers', and mistakes."""

import importlib.util
import json

import pytest


def test_a_record_of_each_way_and_of_the_peer(program, tmp_path):
    if importlib.util.find_spec("peft") is None:  # its import takes seconds, and here only the peer's process needs it
        pytest.skip("no peft")
    out = tmp_path / "out.jsonl"
    sizes = ("--shape=toy-llama", "--batches=2", "--prompt=4", "--new=3", "--repeats=1", "--dtype=float32")
    ended = program("decode", *sizes, "--weights=beside,merged", "--peers=dynamic", f"--out={out}")
    assert ended.status == 0, ended.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["weights"] for record in records] == ["beside", "merged", "transformers dynamic"]
    assert records[2]["equal_rows"] == 1.0
    assert {"ms", "first_ms", "compile_seconds", "batch", "hardware", "git"} <= records[0].keys()
    assert records[0]["weights_gib"] >= records[1]["weights_gib"]  # the adapter is in the merged weights


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--batches=0", "--batches=0: give numbers of rows"),
        ("--batches=a", "--batches=a: give numbers of rows"),
        ("--weights=best", "--weights: 'best' is none of beside, exact, merged"),
        ("--peers=torch", "--peers: 'torch' is none of dynamic, static"),
        ("--shape=nothing", "unknown model 'nothing'"),
    ],
)
def test_mistakes(program, word, line):
    ended = program("decode", word)
    assert ended.status == 2
    assert line in ended.err
