"""Defaults of config keys: a content hash leaves them out, so a changed one would give recorded names a new meaning."""

import dataclasses
import json
from pathlib import Path

RECORD = json.loads((Path(__file__).parent / "defaults.json").read_text())


def test_no_default_has_changed(doors):
    found = {}

    def walk(cls, where):
        for field in dataclasses.fields(cls):
            made = field.default_factory is not dataclasses.MISSING
            default = field.default_factory() if made else field.default
            if dataclasses.is_dataclass(default):
                walk(type(default), f"{where}.{field.name}")
            elif default is not dataclasses.MISSING:
                found[f"{where}.{field.name}"] = doors.plain(default)

    for section, cls in doors.sections().items():
        walk(cls, section)
    changed = [f"{key}: {default!r} -> {found.get(key)!r}" for key, default in RECORD.items() if found[key] != default]
    assert not changed, changed
    assert len(found) >= len(RECORD) > 80
