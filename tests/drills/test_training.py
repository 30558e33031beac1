"""The drills' own counting: how often each held, when it did not, and what was said."""

import json
from types import SimpleNamespace

from drills import training


def test_tries_are_counted_by_drill_and_moment(monkeypatch, tmp_path, capsys):
    moments = iter(["after step 5: 2 s", "before: 1 s", "after step 5: 9 s"])

    def once(place, quiet, seconds, draw):
        assert place.is_dir()
        assert (quiet, seconds) == (tmp_path / "quiet1", 7.0)
        said = next(moments)
        return said, "other bits" if "9 s" in said else ""

    def chain(place, quiet, seconds, draw):
        assert quiet == tmp_path / "quiet2"
        return [("a", ""), ("b", "")]

    monkeypatch.setattr(training, "DRILLS", {"once": (once, 3, 1), "chain": (chain, 3, 2)})
    monkeypatch.setattr(training.forked, "preload", lambda: None)
    monkeypatch.setattr(
        training.runs, "quiet", lambda _, count: (SimpleNamespace(folder=tmp_path / f"quiet{count}"), 7.0)
    )
    monkeypatch.setattr("sys.argv", ["training", f"--to={tmp_path / 'counts.json'}"])
    training.main()
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert (counts["once"]["held"], counts["once"]["of"]) == (2, 3)
    assert counts["once"]["when"] == {"after step 5": 2, "before": 1}
    assert counts["once"]["faults"] == ["after step 5: 9 s; other bits"]
    assert (counts["chain"]["held"], counts["chain"]["of"]) == (4, 4)  # whole chains
    assert "| once | 2 of 3 |" in capsys.readouterr().out
