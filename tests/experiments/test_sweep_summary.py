"""A sweep's summary run, and what workers leave below a root: offline runs and records, gathered by one command."""

import json

import pytest
from fuzz import doors

from experiments import gather
from experiments.records import leases, offline_runs
from experiments.records.lines import read_lines
from experiments.sweeps import summary
from lowrank_jax.core.errors import UserError
from lowrank_jax.train import tracking

PLAIN = {"experiment": "e", "optimizer": {"learning_rate": 1e-3}, "tracking": {"wandb": "offline", "project": "p"}}


def record(rank, loss):
    return {
        "name": f"cell-r{rank}", "status": "finished", "labels": {"method": "lora", "rank": rank, "stage": "full"},
        "config": {**PLAIN, "adapter": {"rank": rank}}, "losses": [[1, loss + 1], [2, loss]], "train_seconds": 2.0,
        "evaluations": [{"step": 2, "loss": loss}], "parameters": {"trainable": 100 * rank},
    }  # fmt: skip


@pytest.fixture
def tracked(monkeypatch):
    """The calls of the trackers that are made."""
    calls = []

    class Tracker(tracking.Tracker):
        def _start(self, mode, name, config, wanted, kind):
            calls.append(("init", mode, name, wanted.group, wanted.project, kind))

        def table(self, name, columns, rows):
            calls.append(("table", name, list(columns), [list(row) for row in rows]))

        def image(self, name, path):
            assert path.read_bytes().startswith(b"\x89PNG")
            calls.append(("image", name))

    monkeypatch.setattr(tracking, "Tracker", Tracker)
    return calls


def test_the_summary_is_shown_once_for_the_same_records(tmp_path, tracked):
    """By one of the workers of a root, and again only for other records; never where nothing is tracked."""
    results, root = [record(4, 0.5), record(8, 0.25)], leases.Root(str(tmp_path / "root"))
    line = summary.show("ranks", results, tmp_path / "one", PLAIN, root)
    assert line == f"summary of the sweep: {tmp_path / 'one' / 'ranks-summary'}"
    assert tracked[0] == ("init", "offline", "ranks-summary", "ranks", "p", "summary")
    (_, name, columns, rows), image = tracked[1:]
    assert (name, image) == ("cells", ("image", "losses"))
    assert [dict(zip(columns, row, strict=True))["held-out loss"] for row in rows] == ["0.5", "0.25"]
    assert summary.show("ranks", results, tmp_path / "one", PLAIN) == ""  # the same folder
    assert summary.show("ranks", results, tmp_path / "two", PLAIN, leases.Root(root.url)) == ""  # another host
    assert len(tracked) == 3
    assert summary.show("ranks", [*results, record(16, 0.125)], tmp_path / "one", PLAIN, root)
    assert len(tracked) == 6
    off = {**PLAIN, "tracking": {"wandb": "disabled"}}
    assert summary.show("ranks", results, tmp_path / "three", off) == ""
    assert summary.show("ranks", [], tmp_path / "three", PLAIN) == ""
    assert not (tmp_path / "three").exists()


def test_what_workers_leave_is_gathered(tmp_path, monkeypatch):
    """Offline runs with their media, byte for byte; records once, whatever number of times it is asked."""
    root, results = leases.Root(str(tmp_path / "root")), [record(4, 0.5), record(8, 0.25)]
    for result in results:
        lease = leases.Lease(root, result["name"], "worker")
        assert lease.take()
        lease.record(result)
        folder = tmp_path / "host" / result["name"]
        for file in ("run-x.wandb", "files/media/images/curve.png"):
            path = folder / "wandb" / f"offline-run-1-{result['name']}" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.encode() + b"\x00\xff")
        assert offline_runs.put(root.store, folder) == 1
        lease.release()
    words = dict(root=root.url, results=str(tmp_path / "kept"), wandb=str(tmp_path / "offline"))

    class Options:
        FLAGS = type("Given", (), words)()

    monkeypatch.setattr(gather, "flags", Options)
    for new in (2, 0):
        ended = doors.call("gather", main=lambda: gather.main(None))
        assert ended.status == 0, ended
        assert f"2 records below {root.url}; {new} were new in" in ended.out
        assert f"2 offline runs in {tmp_path / 'offline'}; upload: wandb sync" in ended.out
    assert [*read_lines(tmp_path / "kept.jsonl").values()] == json.loads(json.dumps(results))
    found = {
        str(path.relative_to(tmp_path / "offline")) for path in (tmp_path / "offline").rglob("*.*") if path.is_file()
    }
    assert found == {
        f"offline-run-1-cell-r{rank}/{file}"
        for rank in (4, 8)
        for file in ("run-x.wandb", "files/media/images/curve.png")
    }
    place = tmp_path / "offline" / "offline-run-1-cell-r4" / "run-x.wandb"
    assert place.read_bytes() == b"run-x.wandb\x00\xff"
    Options.FLAGS.results = Options.FLAGS.wandb = None
    with pytest.raises(UserError, match="give --results=NAME"):
        gather.main(None)
