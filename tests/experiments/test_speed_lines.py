"""The tables of lines of measurements: damaged ones are refused, and only what was measured alike is compared."""

import copy
import json
import math
from pathlib import Path

import pytest

from experiments.tables.speed import beams, codes, decoding, lines, rounding
from lowrank_jax.core.errors import UserError

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "speed"
DAMAGE = (None, "", 0, True, math.nan, [1], {"a": 1}, 10**400)


def paths(value, path=()):
    """The paths of all values inside objects."""
    if path:
        yield path
    for key, one in value.items() if isinstance(value, dict) else ():
        yield from paths(one, (*path, key))


@pytest.mark.parametrize("table", [beams, codes, decoding, rounding])
def test_a_damaged_line_is_refused_or_shown(table, tmp_path):
    """Each value of a record, and those that only some records have, replaced by others: one line, or a table."""
    file, refused = tmp_path / "lines.jsonl", {}
    whole, *_ = (RESULTS / f"{table.__name__.rpartition('.')[2]}.jsonl").read_text().splitlines()
    given = {"peer_versions": {}, "remark": "said", **json.loads(whole)}
    read = {*lines.ALWAYS, *lines.SOMETIMES, *table.FIELDS, *getattr(table, "OPTIONAL", {})}
    given = {**dict.fromkeys(read, 0.5), **given}
    for path in paths({name: given[name] for name in read}):
        for value in DAMAGE:
            record = copy.deepcopy(given)
            place = record
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = value
            file.write_text(json.dumps(record))
            try:
                table.table(table.load([file]), None).text("markdown")
            except UserError as error:
                refused[path[0]] = str(error)
    assert refused.keys() == read
    assert all("is no record of experiments." in said for said in refused.values())


def test_beams_are_compared_where_setting_and_device_are_equal():
    """Of a program's records of one setting the last counts, as --out adds lines."""
    common = {
        "base": "b", "dtype": "bfloat16", "batch": 4, "beams": 2, "length_penalty": 1.0, "no_repeat_ngram": 0, "new": 8,
        "inputs": 9, "compile_seconds": 1.0, "hardware": {"devices": {"A": 1}}, "versions": {"jax": "1"},
    }  # fmt: skip
    ours, theirs = ({**common, "program": name, "seconds": s} for name, s in (("ours", 1.0), ("transformers", 6.0)))
    more = {"beams": 3}
    elsewhere = {"hardware": {"devices": {"B": 1}}}
    records = [ours, theirs, {**theirs, **more}, {**theirs, **elsewhere}, {**ours, "seconds": 2.0}]
    shown = beams.table(records, None)
    found = [[line[1:5] for line in part.lines[1:]] for part in (shown, *shown.parts)]
    alone = [("transformers", "9", "6.00", "-")]
    assert found == [[("ours", "9", "2.00", "-"), ("transformers", "9", "6.00", "3.0x")], alone, alone]
    assert [part.captions[0][:7] for part in (shown, *shown.parts)] == ["2 beams", "2 beams", "3 beams"]
    assert [part.captions[1] for part in shown.parts] == ["B: jax 1.", "A: jax 1."]
