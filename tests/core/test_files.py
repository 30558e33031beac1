"""Files that a user names, and JSON texts: what cannot be read is one line, and nothing waits for a pipe."""

import errno
import json
import os
import socket

import pytest

from lowrank_jax.core.errors import MENDABLE, UserError, front_door
from lowrank_jax.core.files import check_file, kind_of, read_bytes, read_text
from lowrank_jax.core.json_text import NotJson, parse, read_json
from lowrank_jax.core.kinds import misfit
from lowrank_jax.core.patterns import check_pattern


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """kind -> a path of it."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
        yield {
            **{kind: tmp_path / kind for kind in ("pipe", "folder", "socket")},
            **{"device": "/dev/zero", "missing": tmp_path / "gone", "link": tmp_path / "dangling"},
            **{"long": "x" * 5000, "null": "a\0b", "below a file": "/dev/null/x"},
        }


def test_only_regular_files_are_read(strange):
    for kind in ("pipe", "folder", "socket", "device"):
        assert kind_of(strange[kind]) == kind
        with pytest.raises(UserError, match=rf"is a {kind}, not a file"):
            read_bytes(strange[kind])
    for name in ("missing", "long", "null", "below a file"):
        assert kind_of(strange[name]) is None
        with pytest.raises(UserError, match=r"there is no file"):
            check_file(strange[name])
        with pytest.raises(UserError, match=r"^mine$"):
            read_text(strange[name], "mine")
    with pytest.raises(UserError, match=r"is a link to .*gone, which is not there"):
        check_file(strange["link"])


def test_a_wrong_byte_is_found_on_its_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + b"line\n" * 50 + b"caf\xe9\nmore\n")
    with pytest.raises(UserError, match=r"a\.txt, line 51: not UTF-8"):
        read_text(path)
    path.write_bytes(b"\xef\xbb\xbfx")
    assert read_text(path) == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9" * 5000, "a whole number of more than 4,300 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 5_000, "nested too deeply"),
        ("{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
        (b"\xff\xff{}", "not UTF-8"),
    ],
)
def test_text_that_is_not_json_is_one_type_of_error(tmp_path, text, said):
    with pytest.raises(NotJson) as error:
        parse(text)
    assert said in str(error.value)
    if isinstance(text, str):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError) as shown:
            read_json(tmp_path / "a.json", "mend it")
        assert str(shown.value) == f"{tmp_path / 'a.json'} is not JSON ({error.value}); mend it"


def test_numbers_that_json_does_not_have_are_refused_where_that_is_asked_for():
    for text in ("NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "-1e999"):
        assert json.dumps(parse(text))
        with pytest.raises(NotJson):
            parse(text, finite=True)
    assert parse("[1e308, 5e-324]", finite=True) == [1e308, 5e-324]


@pytest.mark.parametrize("pattern", ["((", "*a", "[", "a{99999999999999}", "(?P<n>", "\\"])
def test_a_wrong_pattern_is_shown(pattern):
    with pytest.raises(UserError, match=r"rule .* is no regular expression"):
        check_pattern("rule", pattern)
    check_pattern("rule", "a.*")


def test_a_pattern_is_compiled_as_it_is_used():
    check_pattern("rule", "(?i)a")
    with pytest.raises(UserError, match="global flags"):
        check_pattern("rule", "(?i)a", "(?:.*/)?(?:{})")


def test_fields_of_another_type_are_found():
    from lowrank_jax.adapters.base import AdapterConfig

    assert (
        misfit({"rank": 4, "alpha": 2, "targets": ("a",), "method": "lora", "rank_pattern": (("a", 2),)}, AdapterConfig)
        is None
    )
    for name, value in (
        ("rank", True), ("rank", "4"), ("alpha", None), ("targets", ("a", 1)), ("targets", 3), ("method", "lor"),
        ("rank_pattern", (("a", "b"),)), ("rank_pattern", (("a",),)), ("dropout", [0.1]),
    ):  # fmt: skip
        assert misfit({"alpha": 1.0, name: value}, AdapterConfig) == name


def test_the_front_door_tells_the_system_s_errors_from_our_own(capsys):
    with pytest.raises(SystemExit) as ended, front_door():
        raise OSError(errno.ENOSPC, "No space left on device", "/some/file")
    assert ended.value.code == MENDABLE
    assert capsys.readouterr().err == "error: cannot use /some/file: No space left on device\n"
    with pytest.raises(SystemExit), front_door():
        raise UserError("two\nlines " + "x" * 10_000)
    said = capsys.readouterr().err
    assert said.startswith("error: two lines xxx")
    assert said.count("\n") == 1
    assert len(said) < 5_000
    for ours in (ValueError("a fault"), FileNotFoundError(errno.ENOENT, "gone", "x"), BrokenPipeError("another pipe")):
        with pytest.raises(type(ours)), front_door():
            raise ours
