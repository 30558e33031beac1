"""`experiments.decode`: a record of each way of reading the weights, the same texts as transformers', and mistakes."""

import importlib.util
import json
import runpy
import sys
from types import SimpleNamespace

import pytest

from experiments.tables.speed import beams


@pytest.fixture
def peer_here(monkeypatch, capfd):
    """A peer's script runs in this process, where torch and transformers may be loaded already."""

    def run(command, **_):
        monkeypatch.setattr(sys, "argv", list(map(str, command[1:])))
        capfd.readouterr()  # what the program has printed so far is not the peer's
        runpy.run_path(command[1], run_name="__main__")
        return SimpleNamespace(returncode=0, stdout=capfd.readouterr().out)

    monkeypatch.setattr("subprocess.run", run)


def test_a_record_of_each_way_and_of_the_peer(program, tmp_path, peer_here):
    if importlib.util.find_spec("peft") is None:
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


def test_beams_write_the_peer_s_texts(program, tmp_path, tiny_nlg, peer_here):
    pytest.importorskip("transformers")
    out = tmp_path / "out.jsonl"
    sizes = ("--beams=2", "--base=pico-llama", "--batches=3", "--new=4", "--repeats=1", "--dtype=float32")
    data = (f"--data_dir={tiny_nlg}", "--partial", "--no_repeat_ngram=2")
    ended = program("decode", *sizes, *data, "--peers=dynamic", f"--out={out}")
    assert ended.status == 0, ended.err
    ours, theirs = [json.loads(line) for line in out.read_text().splitlines()]
    assert (ours["program"], theirs["program"]) == ("ours", "transformers")
    assert theirs["equal_texts"] == 1.0
    assert (ours["inputs"], ours["batches"]) == (4, 2)
    assert {"seconds", "compile_seconds", "beams", "length_penalty", "hardware", "git"} <= ours.keys()
    assert "transformers" in theirs["peer_versions"]
    text = beams.table(beams.load([out]), None).text()
    assert f"{theirs['seconds'] / ours['seconds']:.1f}x" in text
    assert "2 beams, batches of 3, up to 4 new tokens, length penalty 0.9, no repeated 2-gram, float32." in text


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("--batches=0", "--batches=0: give numbers of rows"),
        ("--batches=a", "--batches=a: give numbers of rows"),
        ("--weights=best", "--weights: 'best' is none of beside, exact, merged"),
        ("--peers=torch", "--peers: 'torch' is none of dynamic, static"),
        ("--shape=nothing", "unknown model 'nothing'"),
        ("--beams=2 --rank=4", "--rank is not read with --beams"),
        ("--beams=2 --batches=1,64", "--batches=1,64: with --beams give one number of rows"),
        ("--beams=2 --peers=static", "--peers=static: with --beams"),
        ("--data_dir=x", "--data_dir is only read with --beams; add --beams=10"),
    ],
)
def test_mistakes(program, word, line):
    ended = program("decode", *word.split())
    assert ended.status == 2
    assert line in ended.err
