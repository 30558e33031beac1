"""Digests of files: content for every compression, samples of large ones, and rows in memory."""

import gzip
import lzma
import time

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data import digest


def test_a_packed_file_has_the_digest_of_what_it_holds(tmp_path):
    import hashlib

    content = b'{"text": "a"}\n' * 9
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(content))
    assert {digest.content_digest(path) for path in tmp_path.iterdir()} == {hashlib.sha256(content).hexdigest()}
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(UserError, match=r"b\.jsonl\.gz: cannot be read .* fetch the file again"):
        digest.content_digest(tmp_path / "b.jsonl.gz")


def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path, monkeypatch):
    path, stamp = tmp_path / "a.jsonl", digest.stamp
    path.write_text("one")
    size_and_time = stamp(path)[1:]
    path.write_text("longer")
    with pytest.raises(UserError, match="was written to while it was read"):
        digest._digest(path, *size_and_time, False)


def test_samples_of_a_large_file_take_no_time(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.truncate(20 * 2**30)  # holes: no disk is taken
    started = time.process_time()
    first = digest.sampled_digest(path)
    assert time.process_time() - started < 1
    with open(path, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert digest.sampled_digest(path) != first
    small = tmp_path / "small"
    small.write_bytes(b"")
    assert digest.sampled_digest(small) != first


def test_rows_that_join_to_one_text_differ():
    rows = [["ab", "c"]], [["a", "bc"]], [["ab"], ["c"]], [["ab", "c"], []]
    assert len({digest.text_digest(columns, b"") for columns in rows}) == 4
    assert digest.text_digest([["a"]], b"\0") != digest.text_digest([["a"]], b"\1")
    many = [str(n) for n in range(20_001)]
    assert digest.text_digest([many], b"") != digest.text_digest([[*many[:-1], "x"]], b"")
