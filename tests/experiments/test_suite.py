"""The suite of speed rows: what is run, kept and compared, with processes faked; and one row for real."""

import itertools
import json
import sys
from pathlib import Path

import pytest
from fuzz import doors

from experiments.bench.suites import report, suite
from experiments.bench.suites.rows import load_suite
from experiments.records import json_files
from experiments.tables.speed import suite as speed
from lowrank_jax.core.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = """
PEER, PEER_NAME = None, "the peer"
ROWS = (
    dict(name="lora", work="LoRA", words=("--config=lora",), peer=("--fast",),
         claims=(dict(what="speed", to="peer", least=2.0), dict(what="memory", to="peer", most=0.4))),
    dict(name="same", work="LoRA again", words=("--config=lora",), peer=("--fast", "--low"), claims=()),
    dict(name="mora", work="MoRA", words=("--config=mora",), env={"XLA_FLAGS": "--b"},
         claims=(dict(what="time", to="lora", most=1.1),)),
    dict(name="trials", work="8 trials", words=("--config=lora", "--trials=8"),
         claims=(dict(what="speed", to="lora", least=3.0), dict(what="memory", to="lora", times=8, most=0.4))),
    dict(name="int8", work="int8", words=("--config=int8",), claims=(dict(what="memory", most=12.0),)),
    dict(name="start", work="start", words=("--config=lora", "--steps=10"), start=True,
         claims=(dict(what="start", most=15.0), dict(what="warm", least=3.0))),
)
"""
PLACE = {
    "hardware": {"platform": "gpu", "devices": {"H100": 1}, "cpu": "Xeon", "cores": 16},
    "versions": {"jax": "0.11.2"},
    "git": {"commit": "1a2b3c", "dirty": False},
}


@pytest.fixture
def rows(tmp_path):
    """The suite of ROWS."""
    (tmp_path / "toy.py").write_text(ROWS)
    return load_suite(str(tmp_path / "toy.py"))


def test_what_is_set_for_jax_is_not_set_for_the_peer(tmp_path):
    """A peer's process is the same with and without it, so one measurement serves both rows."""
    (tmp_path / "toy.py").write_text(
        ROWS.replace('dict(name="same",', 'dict(name="same", env={"XLA_FLAGS": "--b", "OTHER": "1"},')
    )
    row = next(row for row in load_suite(str(tmp_path / "toy.py")).rows if row.name == "same")
    assert row.commands == {
        "ours": "OTHER=1 XLA_FLAGS=--b python -m experiments.bench --config=lora",
        "peer": "OTHER=1 python PEER --fast --low",
    }
    assert row.peer_env == {"OTHER": "1"}


@pytest.fixture
def measured(monkeypatch, rows, tmp_path):
    """measured(repeats, only=None, again=False, ...) -> data: the suite with faked processes.

    `measured.calls` are the processes; `measured.answers` the output of each side at its first, second, ... run.
    """

    def record(**values):
        return {"record": {"tokens_per_second": 1000, "flops_per_token": 100, **values}, "seconds": 1.0}

    def call(repeats, only=None, again=False, peer=True, deadline=float("inf")):
        kept = suite.Record(tmp_path / "toy_suite.json", rows)
        chosen = rows.select(only)
        kept.forget(chosen if again else ())
        suite.measure(chosen, kept, Path("peer.py") if peer else None, repeats, deadline)
        return json_files.read_json(tmp_path / "toy_suite.json", "")

    def run_process(argv, env):
        words = " ".join(argv[1:]).removeprefix("-m experiments.bench ")
        filled = Path(env["JAX_COMPILATION_CACHE_DIR"]).exists() if "JAX_COMPILATION_CACHE_DIR" in env else None
        call.calls.append(words)
        if "int8" in words:
            return {"error": "unknown config key", "seconds": 1.0}
        if words.startswith("peer.py"):
            return {"record": {"ms": 50.0, "tokens_s": 400, "peak_gib": 4.0}, "seconds": 1.0}
        if filled is not None:
            Path(env["JAX_COMPILATION_CACHE_DIR"]).mkdir(exist_ok=True)
            return {**record(ms=20.0, peak_gib=2.0, **PLACE), "start_seconds": 4.0 if filled else 14.0}
        if words == "--config=lora":
            return record(ms=next(call.lora), peak_gib=2.0, **PLACE)
        values = {
            "--config=mora": dict(ms=22.0, peak_gib=2.0, flops_per_token=106, **PLACE),
            "--config=lora --trials=8": dict(ms=40.0, tokens_per_second=3500, peak_gib=4.0, **PLACE),
        }
        return record(**values[words])

    call.calls, call.lora = [], itertools.cycle([19.0, 20.0, 90.0])
    monkeypatch.setattr(suite, "run_process", run_process)
    return call


def test_rows_and_peer_in_turn_and_shared_commands_once(measured):
    measured(repeats=2)
    once = [
        "--config=lora", "peer.py --fast", "peer.py --fast --low", "--config=mora", "--config=lora --trials=8",
        "--config=int8", "--config=lora --steps=10", "--config=lora --steps=10",
    ]  # fmt: skip
    # What was refused once is not tried again.
    assert measured.calls == [*once, *(words for words in once if words != "--config=int8")]


def test_medians_and_claims(measured):
    data = measured(repeats=3)
    found = {row["name"]: row for row in data["rows"]}
    assert found["lora"]["sides"]["ours"] | {"compile_seconds": 0} == {
        "repeats": 3, "ms": 20.0, "tokens_per_second": 1000, "peak_gib": 2.0, "flops_per_token": 100,
        "compile_seconds": 0,
    }  # fmt: skip

    def claims(name):
        return [(c["what"], c["value"], c["met"]) for c in found[name]["claims"]]

    assert claims("lora") == [("speed", 2.5, True), ("memory", 0.5, False)]
    assert claims("mora") == [("time", 1.1, True)]
    assert found["mora"]["flops_ratio"] == 1.06
    assert claims("trials") == [("speed", 3.5, True), ("memory", 0.25, True)]
    assert claims("int8") == [("memory", None, None)]
    assert claims("start") == [("start", 14.0, True), ("warm", 3.5, True)]
    assert found["same"]["sides"]["ours"] == found["lora"]["sides"]["ours"]
    assert [place.keys() for place in data["places"]] == [PLACE.keys(), {"versions"}]


def test_the_table_says_all_of_it(measured):
    data = measured(repeats=1, peer=False)
    data["peer_note"] = "no --peer was given"
    text = speed.shown(data).text()
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "19.0 ms, 1,000 tok/s" in lines["LoRA"]
    assert "time 1.16x of lora (<= 1.1: missed)" in lines["MoRA"]
    assert lines["MoRA"].endswith("1.06")
    assert "memory 0.25x of 8 lora (<= 0.4: met)" in lines["8 trials"]
    assert "not available" in lines["int8"]
    assert "cold 14.0 s, warm 4.0 s" in lines["start"]
    assert "H100 (Xeon, 16 cores); jax 0.11.2; commit 1a2b3c." in text
    assert "Not available: int8 (ours): unknown config key" in text
    assert "Without the peer: no --peer was given." in text
    assert speed.shown(data).text("markdown").startswith("| work | the peer | ours | ratio |")


def test_it_goes_on_where_it_was_and_starts_again_if_told(measured):
    measured(repeats=1, only="lora|mora")
    before = list(measured.calls)
    data = measured(repeats=1)
    added = measured.calls[len(before) :]
    assert before == ["--config=lora", "peer.py --fast", "--config=mora"]
    assert {*before} & {*added} == {"--config=lora"}  # with which "trials" is compared
    again = len(measured.calls)
    data = measured(repeats=1, only="mora", again=True)
    assert measured.calls[again:] == ["--config=mora", "--config=lora"]
    assert sum(one["command"].endswith("--config=mora") for one in data["measurements"]) == 1
    keys = [(one["command"], one["side"], one["repeat"], one["call"]) for one in data["measurements"]]
    assert len(keys) == len({*keys})


def test_a_ratio_is_of_one_call(measured):
    """The machine may have been another one, or busy: what a row is compared with is measured again beside it."""
    measured.lora = itertools.cycle([10.0, 40.0, 20.0])
    measured(repeats=1, only="lora", peer=False)
    data = measured(repeats=1, only="mora", peer=False)
    assert measured.calls == ["--config=lora", "--config=mora", "--config=lora"]
    found = {row["name"]: row for row in data["rows"]}
    assert found["lora"]["sides"]["ours"]["ms"] == 25.0  # of both calls
    assert found["mora"]["claims"][0]["value"] == 22.0 / 40.0
    assert measured(repeats=1, only="lora|mora", peer=False) == data  # all is there

    # A second process of another call: its ratio counts beside the first one's.
    data = measured(repeats=2, only="mora", peer=False)
    assert measured.calls[3:] == ["--config=mora", "--config=lora"]
    assert {row["name"]: row for row in data["rows"]}["mora"]["claims"][0]["value"] == 0.825  # of 22 / 40 and 22 / 20


@pytest.mark.parametrize(
    "damage",
    [
        {"call": ["a"]}, {"timings": 10**12}, {"timings": "3"},
        {"record": {"ms": 1.0, "tokens_per_second": 2, "timings_ms": [0.0]}}, {"record": {"ms": 1.0, "timings_ms": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_record_is_one_line(damage, measured, rows, tmp_path):
    data = measured(repeats=1, only="mora")
    for one in data["measurements"]:
        one.update(damage)
    json_files.write_json(tmp_path / "toy_suite.json", data)
    with pytest.raises(UserError, match=r"toy_suite.json is a damaged record \((Type|Value|ZeroDivision)Error"):
        suite.Record(tmp_path / "toy_suite.json", rows)


def test_several_timings_in_a_process(measured, tmp_path, monkeypatch):
    """A row says how many processes it takes, and how often each times its steps; the peer takes more steps instead."""
    monkeypatch.setattr(suite, "run_process", lambda argv, env: said(argv))
    told = []

    def said(argv):
        told.append(" ".join(word for word in argv[1:] if word.startswith("--")))
        many = "--timings=3" in argv
        times = {"ms": 20.0, "timings_ms": [10.0, 20.0, 50.0]} if many else {"ms": 30.0}
        theirs = {"ms": 40.0, "tokens_s": 500} if "--steps=60" in argv else {"ms": 80.0, "tokens_s": 250}
        return {"record": theirs if "--peer" in argv else {**times, "tokens_per_second": 1000, **PLACE}, "seconds": 1.0}

    text = ROWS.replace(
        'words=("--config=lora",), peer=("--fast",)', 'words=("--ours",), peer=("--peer", "--steps=20")'
    )
    (tmp_path / "two.py").write_text(text.replace('name="lora",', 'name="lora", timings=(3, 1),', 1))
    kept = suite.Record(tmp_path / "two_suite.json", load_suite(str(tmp_path / "two.py")))
    chosen = kept.suite.select(None, ["lo*"])
    assert [row.name for row in chosen] == ["lora"]
    suite.measure(chosen, kept, Path("peer.py"), None, float("inf"))
    assert told == ["--ours --timings=3", "--peer --steps=60", "--ours", "--peer --steps=20"]
    (row,) = [row for row in kept.data["rows"] if row["name"] == "lora"]
    assert row["sides"]["ours"] | {"tokens_per_second": 0} == {
        "repeats": 2, "timings": 4, "ms": 25.0, "tokens_per_second": 0,
    }  # fmt: skip
    assert row["sides"]["ours"]["tokens_per_second"] == (1000 + 1000 * 20 / 20) / 2  # of 2000, 1000, 400 and 1000
    assert row["sides"]["peer"]["ms"] == 40.0
    assert "2 processes a cell, rows and peer in turn; some of them timed their steps" in speed.shown(kept.data).text()


def test_half_a_start_is_measured_whole(measured, tmp_path):
    """A warm start needs the cold one's cache, which is gone."""
    data = measured(repeats=1, only="start")
    data["measurements"] = [one for one in data["measurements"] if one["side"] == "cold"]
    json_files.write_json(tmp_path / "toy_suite.json", data)
    measured(repeats=1, only="start")
    assert len(measured.calls) == 4


def test_time_that_is_up(measured, rows, tmp_path, capsys):
    suite.measure(rows.rows, suite.Record(tmp_path / "none.json", rows), None, 1, deadline=0.0)
    assert measured.calls == []
    assert "goes on from here" in capsys.readouterr().out


def test_commands_that_the_suite_no_longer_has_are_dropped(measured, tmp_path):
    measured(repeats=1, only="mora")
    path = tmp_path / "toy_suite.json"
    data = json_files.read_json(path, "")
    data["measurements"][0]["command"] += " --older"
    assert "mora" in data["measurements"][0]["command"]
    json_files.write_json(path, data)
    data = measured(repeats=1, only="mora")
    assert not any("--older" in one["command"] for one in data["measurements"])
    assert sum("--config=mora" in one["command"] for one in data["measurements"]) == 1


def test_records_of_two_cards_become_one(measured, rows, tmp_path):
    """Each with its own place; ratios are of one card's call."""
    measured(repeats=2, only="mora|lora")
    other = {**PLACE, "hardware": {**PLACE["hardware"], "devices": {"H200": 1}}}
    card = suite.Record(tmp_path / "card_suite.json", rows)
    for repeat in range(2):
        for words, ms in (("--config=mora", 30.0), ("--config=lora --trials=8", 40.0)):
            env = "XLA_FLAGS=--b " if words == "--config=mora" else ""
            found = {"record": {"ms": ms, "tokens_per_second": 1, **other}, "seconds": 1.0}
            card.add(f"{env}python -m experiments.bench {words}", "ours", repeat, found)
    whole = suite.Record(tmp_path / "toy_suite.json", rows)
    whole.take(tmp_path / "card_suite.json")
    data = json_files.read_json(tmp_path / "toy_suite.json", "")
    found = {row["name"]: row["sides"]["ours"].get("ms") for row in data["rows"] if "ours" in row["sides"]}
    assert found == {"lora": 19.5, "same": 19.5, "mora": 26.0, "trials": 40.0, "int8": None}
    values = {row["name"]: [claim["value"] for claim in row["claims"]] for row in data["rows"]}
    assert values["mora"] == [round(22 / 19.5, 4)]
    assert values["trials"] == [None, None]  # the other card has not measured what they are compared with
    places = {tuple(place["hardware"]["devices"]) for place in data["places"] if "hardware" in place}
    assert places == {("H100",), ("H200",)}
    with pytest.raises(UserError, match=r"--join: there is no 'gone.json'"):
        whole.take("gone.json")


def program(text):
    return suite.run_process([sys.executable, "-c", text], {"XLA_FLAGS": "--b", "OTHER": "1"})


def test_a_process_and_what_is_kept_of_it(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a")
    text = "import json, os, time; print('hello'); print(json.dumps({'ms': 1, 'first_step_at': time.time(), "
    found = program(text + "'flags': os.environ['XLA_FLAGS'], 'other': os.environ['OTHER']}))")
    assert found["record"] == {"ms": 1, "flags": "--a --b", "other": "1"}
    assert 0 <= found["start_seconds"] <= found["seconds"] + 0.1
    said = f"import sys; print('error: {ROOT}/x is gone', file=sys.stderr); sys.exit(2)"
    assert program(said)["error"] == ".../x is gone"
    assert program("print('no record')")["error"] == "ended with status 0 and said nothing"
    monkeypatch.setattr(suite, "LIMIT_SECONDS", 0.1)
    assert program("import time; time.sleep(9)")["error"] == "not done after 0.1 s"


def test_peers(rows, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"no file 'gone.py'"):
        suite.find_peer(rows, "gone.py")
    assert suite.find_peer(rows, None) == (None, "no --peer was given")
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    assert suite.find_peer(rows, str(tmp_path / "toy.py"))[1].startswith("torch is not installed")
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: name)
    assert suite.find_peer(rows, str(tmp_path / "toy.py")) == (tmp_path / "toy.py", "")


def test_a_row_may_name_another_script(monkeypatch, tmp_path):
    """In the folder of --peer; where it is not there, the table says so."""
    (tmp_path / "toy.py").write_text(ROWS.replace('peer=("--fast",)', 'peer=("other.py", "--steps=5")'))
    row = load_suite(str(tmp_path / "toy.py")).rows[0]
    assert row.commands["peer"] == "python PEER other.py --steps=5"
    monkeypatch.setattr(suite, "run_process", lambda argv, env: {"argv": argv[1:]})
    given = row, "peer", tmp_path / "peer.py", tmp_path
    assert suite.run_side(*given)["error"] == "there is no other.py beside the script of --peer"
    (tmp_path / "other.py").touch()
    assert suite.run_side(*given, 2) == {"argv": [str(tmp_path / "other.py"), "--steps=10"], "timings": 2}


def test_mistakes_are_one_line(rows, tmp_path):
    with pytest.raises(UserError, match=r"unknown suite 'h10'; did you mean h100 or h200\?"):
        load_suite("h10")
    with pytest.raises(UserError, match=r"--only=x matches none of lora, same, mora"):
        rows.select("x")
    with pytest.raises(UserError, match=r"--rows: 'lor' is none of lora, same, mora"):
        rows.select(None, ["lora", "lor"])
    with pytest.raises(UserError, match=r"--only: '\(' is no regular expression"):
        rows.select("(")
    mistakes = {"two rows 'lora'": ('"same"', '"lora"'), "is no row": ('to="lora"', 'to="x"')}
    mistakes["'start', which is no row with steps"] = ('to="lora"', 'to="start"')
    for message, change in mistakes.items():
        text = ROWS.replace(*change)
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(UserError, match=message):
            load_suite(str(tmp_path / "bad.py"))
    json_files.write_json(tmp_path / "other_suite.json", {"suite": "other"})
    with pytest.raises(UserError, match="no record of the suite toy"):
        suite.Record(tmp_path / "other_suite.json", rows)
    with pytest.raises(UserError, match=r"there is no 'gone'"):
        report.load_suites(["gone"])
    with pytest.raises(UserError, match="has no record"):
        report.load_suites([tmp_path])


@pytest.mark.parametrize("name", ["h100", "h200", "cpu", "two_cards", "rates", "fp8"])
def test_rows_of_the_shipped_suites_are_words_of_bench(name):
    """Each flag is one of the program's, and each config argument one of configs/bench.py."""
    from absl import flags

    from experiments.cli import load_file

    bench = doors.import_alone(doors.PROGRAMS["bench"])
    known = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[bench.__name__]} | {"config", "seq_len"}
    for row in load_suite(name).rows:
        for word in row.words:
            flag, _, value = word.removeprefix("--").partition("=")
            assert flag.split(".")[0] in known, word
            if flag == "config":
                assert load_file(str(ROOT / value)).experiment == "bench"
        assert {claim["what"] for claim in row.claims} <= {"speed", "time", "memory", "loss", "start", "second", "warm"}


def test_one_row_for_real_and_its_table(program, tmp_path):
    words = "--config=configs/bench.py:shape=toy-llama,rank=2,batch=4,seq=16,dtype=float32"
    row = dict(name="toy", work="toy", words=(words, "--config.adapter.targets=('query',)", "--steps=10"))
    row |= {"env": {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, "timings": (2,)}
    (tmp_path / "real.py").write_text(f"PEER, PEER_NAME = None, 'none'\nROWS = (dict(**{row!r}),)\n")
    options = [f"--suite={tmp_path / 'real.py'}", f"--results={tmp_path / 'real_suite.json'}"]
    ended = program("bench", *options)
    assert "without the peer: no --peer was given" in ended.out, ended.err
    (measured,) = json.loads((tmp_path / "real_suite.json").read_text())["measurements"]
    assert measured["start_seconds"] > measured["record"]["first_step_seconds"] > 0
    assert len(times := measured["record"]["timings_ms"]) == 2
    assert min(times) <= measured["record"]["ms"] <= max(times)
    printed = program("bench", *options, "--table").out
    assert ended.out.endswith(printed)
    assert f"{measured['record']['ms']:.1f} ms" in printed
