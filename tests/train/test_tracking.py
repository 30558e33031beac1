"""Records: what is written is read back, resumes leave no duplicates, W&B never prompts and never stops a run."""

import contextvars
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.train import tracking
from lowrank_jax.train.tracking import Tracker, TrackingConfig, read_decoded, read_metrics, read_samples

OFF = TrackingConfig(wandb="disabled")


@pytest.fixture(autouse=True)
def logged_out(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


def written(folder, steps, resumed_step=0):
    with Tracker(folder, "run", {}, OFF, resumed_step) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1 / step})


def test_records_are_read_back(tmp_path):
    with Tracker(tmp_path / "run", "run", {}, OFF) as tracker:
        tracker.log(1, {"loss": jnp.float32(0.5), "tokens": np.int64(7), "nan": math.nan, "inf": jnp.inf, "ok": True})
        tracker.log(1, {"eval/accuracy": 0.25})
        assert len(read_metrics(tmp_path / "run")) == 2, "a record must be on disk as soon as log returns"
    first, second = read_metrics(tmp_path / "run")
    assert first.pop("time") > 1e9
    assert first == {"step": 1, "loss": 0.5, "tokens": 7, "nan": None, "inf": None, "ok": True}
    assert second["eval/accuracy"] == 0.25
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    "tail", ["", '{"step": 6, "lo', '{"step": 6}', '{"step": 3, "loss": "\N{GREEK SMALL LETTER PI}']
)
def test_resume_drops_later_records_and_repairs_the_last_line(tmp_path, tail):
    written(tmp_path, range(1, 6))
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(tail.encode()[:-1] if tail.endswith("\N{GREEK SMALL LETTER PI}") else tail.encode())
    assert [record["step"] for record in read_metrics(tmp_path)][:5] == [1, 2, 3, 4, 5]
    before = read_metrics(tmp_path)[:3]
    written(tmp_path, (4, 5, 6), resumed_step=3)
    after = read_metrics(tmp_path)
    assert [record["step"] for record in after] == [1, 2, 3, 4, 5, 6]
    assert after[:3] == before


def test_samples_are_cut_and_repaired_as_records_are(tmp_path):
    """A run killed in the middle of a line goes on; a run without samples has no file of them."""
    for step, resumed in ((1, 0), (2, 1)):
        with Tracker(tmp_path, "run", {}, OFF, resumed) as tracker:
            tracker.samples(step, "texts", [{"prompt": "a\n", "continuation": "é \u2028", "reference": "c"}])
    with open(tmp_path / "samples.jsonl", "ab") as file:
        file.write('{"step": 3, "prompt": "é'.encode()[:-1])
    with Tracker(tmp_path, "run", {}, OFF, 2):
        pass
    row = {"name": "texts", "prompt": "a\n", "continuation": "é \u2028", "reference": "c"}
    assert read_samples(tmp_path) == [{"step": 1, **row}, {"step": 2, **row}]
    written(tmp_path / "other", (1,))
    assert not (tmp_path / "other" / "samples.jsonl").exists()
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"line 2 of .*samples.jsonl is damaged"):
        Tracker(tmp_path, "run", {}, OFF, 1)


def test_decoded_texts_are_all_written_and_the_first_shown(tmp_path, monkeypatch):
    """Several references are a list in the file and lines of a cell in W&B's table; a resumed run writes them anew."""
    shown = []
    monkeypatch.setattr(Tracker, "_try", lambda self, action: shown.append(action))
    texts = [
        {"prompt": str(i), "continuation": "é", "references": ["a", "b"]} for i in range(tracking.tracker.SHOWN + 2)
    ]
    for resumed in (0, 2):
        with Tracker(tmp_path, "run", {}, OFF, resumed) as tracker:
            tracker.decoded(3, "decode", texts)
    assert read_decoded(tmp_path) == [{"step": 3, "name": "decode", **text} for text in texts]
    tables = SimpleNamespace(Table=lambda columns, data: (columns, data))
    tracker._wandb = tables
    logged = []
    shown[-2](SimpleNamespace(log=lambda values, step: logged.append((values, step))))  # the last is its end
    ((values, step),) = logged
    columns, rows = values["eval/decode"]
    assert (step, columns) == (3, ["step", "prompt", "continuation", "references"])
    assert (len(rows), rows[1]) == (tracking.tracker.SHOWN, [3, "1", "é", "a\nb"])


def test_a_new_run_starts_empty(tmp_path):
    written(tmp_path, (1, 2))
    written(tmp_path, (1,))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1]


def test_damage_in_the_middle_and_absence_are_said(tmp_path):
    with pytest.raises(UserError, match=r"no metrics.jsonl in"):
        read_metrics(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2 of"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match="line 2 of"):
        Tracker(tmp_path, "run", {}, OFF, resumed_step=1)


def test_a_full_disk_is_said(tmp_path):
    """Where a record is written, and where the file is closed, with what that write has left."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    tracker = Tracker(tmp_path, "run", {}, OFF)
    tracker._file.close()
    tracker._file = open("/dev/full", "w")  # noqa: SIM115
    for write in (lambda: tracker.log(1, {"loss": 1.0}), tracker.close):
        with pytest.raises(UserError, match=r"metrics.jsonl .No space left"):
            write()
    assert tracker._file is None


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.tracker.jax, "process_index", lambda: 1)
    with Tracker(tmp_path / "run", "run", {}, TrackingConfig()) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.samples(1, "texts", [{"prompt": "a", "continuation": "b"}])
        tracker.summary({"best": 1})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("wanted", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"NETRC": "good"}, "online"),
        ("auto", {"NETRC": "good", "WANDB_BASE_URL": "https://elsewhere.example"}, "offline"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_API_KEY": "k"}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
    ],
)
def test_the_mode_is_chosen_without_a_question(tmp_path, monkeypatch, wanted, environment, mode):
    (tmp_path / "good").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setattr(tracking.modes, "_installed", lambda: True)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "NETRC" else value)
    assert tracking.modes.wandb_mode(wanted) == mode


def test_asking_for_what_is_not_there_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.modes, "_installed", lambda: True)
    with pytest.raises(UserError, match="wandb login"):
        tracking.modes.wandb_mode("online")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", None)
    for wanted in ("online", "offline"):
        with pytest.raises(UserError, match="pip install wandb"):
            tracking.modes.wandb_mode(wanted)
    with Tracker(tmp_path, "run", {}, TrackingConfig()) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.image("plot", "nowhere.png")
    assert capsys.readouterr().out.count("wandb is not installed") == 1
    assert len(read_metrics(tmp_path)) == 1


def last_summary(file):
    """The summary of an offline run, by W&B's own reader."""
    words = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    values = {}
    for line in map(json.loads, lines):
        values |= line["summary"].get("update", {}) if line["type"] == "summary" else {}
    return values


def test_offline_run_is_quiet_and_lives_in_the_run_folder(tmp_path):
    """In its own process, with no terminal and no key: nothing printed, nothing outside the run's folder."""
    pytest.importorskip("wandb")
    script = """
import sys
from pathlib import Path
from PIL import Image
from lowrank_jax.train.tracking import Tracker, TrackingConfig
import numpy as np
folder = Path(sys.argv[1])
for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4))):
    with Tracker(folder, "a/run:1", {"x": {"y": (1, 2)}}, TrackingConfig(group="g", tags=("t",)), resumed) as tracker:
        for step in steps:
            tracker.log(step, {"loss": 1.0})
            tracker.samples(step, "texts", [{"prompt": "a", "continuation": "é"}, {"prompt": "b", "continuation": ""}])
        if not resumed:  # the second session's last step is still open when its summary is set
            Image.new("RGB", (4, 4)).save(folder / "p.png")
            tracker.image("plot", folder / "p.png")
            tracker.table("samples", ["a", "b"], [[1, "x"]])
        tracker.summary({"best": np.float32(1), "loss": 7.0 + resumed})
        assert tracker._run is not None
        ids = getattr(sys, "ids", []) + [tracker._run.id]
        sys.ids = ids
assert ids[0] == ids[1] and ids[0].startswith("a-run-1-"), ids
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "run"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(tracking.__file__).parents[3])},
        cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2, 3, 4]
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [last_summary(file)["loss"] for file in files] == [7.0, 9.0], "a record's loss came after the summary's"
    assert not (tmp_path / "wandb").exists()
    assert [row["step"] for row in read_samples(tmp_path / "run")] == [1, 1, 2, 2, 3, 3, 4, 4]
    files = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/table/eval/*")
    tables = [json.loads(path.read_text()) for path in files]
    assert {tuple(table["columns"]) for table in tables} == {("step", "prompt", "continuation")}
    assert sorted(table["data"][0][0] for table in tables) == [1, 2, 3, 3, 4]  # of step 3 in both sessions
    assert tables[0]["data"][0][1:] == ["a", "é"]


def test_trackio_takes_the_same_calls_and_trials_do_not_end_each_other(tmp_path, monkeypatch):
    """A stand-in whose init ends the run of its context, as trackio's does; json lines are written all the same."""
    current, runs = contextvars.ContextVar("current", default=None), []

    class Run:
        def __init__(self, **given):
            self.given, self.lines, self.ended = given, [], False
            runs.append(self)

        def log(self, values, step=None):
            assert not self.ended
            self.lines.append((step, values))

        def finish(self):
            self.ended = True

    def init(**given):
        if current.get() is not None:
            current.get().finish()
        print("* Trackio project initialized")
        current.set(Run(**given))
        return current.get()

    fake = SimpleNamespace(init=init, Table=lambda columns, data: (columns, data), Image=str, __spec__=object())
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr(tracking.modes, "wandb_mode", lambda _: pytest.fail("W&B was asked"))
    monkeypatch.setenv(tracking.tracker.GROUP_VARIABLE, "sweep")
    wanted = TrackingConfig(backend="trackio", tags=("a",), group="own")
    with Tracker(tmp_path / "one", "one", {"x": 1}, wanted, kind="lora") as first:
        with Tracker(tmp_path / "two", "two", {}, wanted) as second:
            for tracker in (first, second):
                tracker.log(3, {"loss": 0.5})
                tracker.table("t", ["a"], [[1]])
                tracker.summary({"status": "finished"})
    for run, name in zip(runs, ("one", "two"), strict=True):
        assert run.given["name"] == name
        assert run.given["group"] == "sweep"
        assert run.lines[0] == (3, {"loss": 0.5})
        assert run.lines[-1] == (None, {"summary/status": "finished", "summary/exit_code": 0})
        assert run.ended
        assert [record["loss"] for record in read_metrics(tmp_path / name)] == [0.5]
    assert runs[0].given["config"] == {"x": 1, "tags": ["a"], "kind": "lora"}
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        tracking.mode_of(wanted)


class Broken:
    """A W&B run whose every call fails."""

    def log(self, *_, **__):
        raise ConnectionError("the network is down\nand more")

    finish = log


def test_a_broken_wandb_is_said_once_and_stops_nothing(tmp_path, capsys):
    with Tracker(tmp_path, "run", {}, OFF) as tracker:
        tracker._run = Broken()
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 3
    assert capsys.readouterr().out.count("W&B stopped (the network is down)") == 1


def test_a_wandb_that_cannot_be_reached_goes_on_offline(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    modes = []

    def init(mode, **_):
        modes.append(mode)
        if mode == "online":
            raise TimeoutError("no answer")
        return Broken()

    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "setup", lambda **_: None)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    with Tracker(tmp_path, "run", {}, TrackingConfig()) as tracker:
        tracker.log(1, {})
    assert modes == ["online", "offline"]
    assert "cannot be reached (no answer)" in capsys.readouterr().out
