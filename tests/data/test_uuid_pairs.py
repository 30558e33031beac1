"""uuid_pairs: fixed values, the prepared folder under damage, races and a full disk, and no TensorFlow."""

import re
import shutil
import subprocess
import sys
import uuid

import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.uuid_pairs.pairs import VERSION, config_name, generate_pairs
from lowrank_jax.data.builders.uuid_pairs.source import load_pairs

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def read(source):
    return [(row["key"], row["value"]) for row in source.__getitems__(range(len(source)))]


def shard(folder):
    return next(folder.rglob("*array_record-00000*"))


def test_pairs_are_the_same_everywhere():
    # First 128 bits of sha256("0:0:key") by hand: digit 13 becomes 4, digit 17 keeps its low two bits.
    assert generate_pairs(1, 0) == [("921e1694-5a55-4404-b82e-bbe39323670a", "10ada45d-d774-437b-858f-adcc72fabd30")]
    assert generate_pairs(3, 7)[2] == ("b77c159b-3e0f-41c6-a5aa-f767bb7f913a", "9a5a9708-0d73-4f4a-b561-b8f05019c896")


def test_pairs_are_distinct_version_4_uuids():
    texts = [text for pair in generate_pairs(2000, 5) for text in pair]
    assert all(
        UUID4.fullmatch(t) and uuid.UUID(t).version == 4 and uuid.UUID(t).variant == uuid.RFC_4122 for t in texts
    )
    assert len(set(texts)) == 4000


def test_a_longer_set_begins_with_the_shorter_and_seeds_differ():
    assert generate_pairs(50, 1)[:20] == generate_pairs(20, 1)
    assert not set(generate_pairs(50, 1)) & set(generate_pairs(50, 2))


def test_read_back_in_order_as_text(tmp_path):
    source = load_pairs(300, 3, tmp_path)
    assert len(source) == 300
    assert read(source) == generate_pairs(300, 3)
    assert source[299] == dict(zip(("key", "value"), generate_pairs(300, 3)[299], strict=True))
    assert list(source) == [source[i] for i in range(300)]  # ends where the rows end
    with pytest.raises(IndexError, match="of 300"):
        source[-1]
    stamp = shard(tmp_path).stat().st_mtime_ns
    assert read(load_pairs(300, 3, str(tmp_path))) == generate_pairs(300, 3)
    assert shard(tmp_path).stat().st_mtime_ns == stamp  # opened, not built again


def test_default_folder_is_the_environments(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "here"))
    load_pairs(2, 0)
    assert (tmp_path / "here" / "uuid_pairs" / config_name(2, 0)).is_dir()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(path):
    path.write_bytes(b"\0" * path.stat().st_size)


def other_pairs(path):
    folder = path.parents[3]
    load_pairs(40, 9, folder)
    shutil.copy(shard(folder / "uuid_pairs" / config_name(40, 9)), path)


@pytest.mark.parametrize("damage", [truncate, scramble, other_pairs, lambda path: path.unlink()])
def test_a_damaged_folder_is_built_again(tmp_path, damage):
    load_pairs(40, 0, tmp_path)
    damage(shard(tmp_path / "uuid_pairs" / config_name(40, 0)))
    assert read(load_pairs(40, 0, tmp_path)) == generate_pairs(40, 0)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_is_built_again(tmp_path, name):
    load_pairs(40, 0, tmp_path)
    next(tmp_path.rglob(name)).write_text("{")
    assert read(load_pairs(40, 0, tmp_path)) == generate_pairs(40, 0)


def test_leftovers_of_a_killed_build_are_removed(tmp_path):
    left = tmp_path / "uuid_pairs" / config_name(5, 0) / "incomplete.ABCDEF_1.0.0"
    left.mkdir(parents=True)
    load_pairs(5, 0, tmp_path)
    assert not left.exists()


def test_damage_after_opening_names_the_folder(tmp_path):
    source = load_pairs(5, 0, tmp_path)
    source._source = type("Broken", (list,), {})([0] * 5)  # has rows, and no way to read them
    with pytest.raises(UserError, match=r"cannot read .*pairs_5_seed_0.*; delete it"):
        source[0]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, dl_manager=None, **kwargs):
        raise RuntimeError("write() failed: No space left on device\nmore")  # as array_record says it

    from lowrank_jax.data.builders.uuid_pairs.uuid_pairs import UuidPairs

    monkeypatch.setattr(UuidPairs, "download_and_prepare", full)
    with pytest.raises(
        UserError, match=r"cannot write uuid_pairs under .*No space left on device.*TFDS_DATA_DIR"
    ) as error:
        load_pairs(5, 0, tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write uuid_pairs under"):
        load_pairs(5, 0, tmp_path / "file")


@pytest.mark.parametrize(("pairs", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_bad_numbers(tmp_path, pairs, seed):
    with pytest.raises(UserError, match="pairs >= 1 and seed >= 0"):
        load_pairs(pairs, seed, tmp_path)


def test_missing_tfds_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lowrank_jax.data.builders.uuid_pairs.uuid_pairs", None)
    with pytest.raises(UserError, match=r"needs tensorflow-datasets and array_record .*pip install"):
        load_pairs(5, 0, tmp_path)


PROGRAM = """
import sys
from lowrank_jax.data.builders.uuid_pairs.pairs import generate_pairs
from lowrank_jax.data.builders.uuid_pairs.source import load_pairs
source = load_pairs(2000, 4, sys.argv[1])
assert [(r["key"], r["value"]) for r in source.__getitems__(range(2000))] == generate_pairs(2000, 4)
assert "tensorflow" not in sys.modules
"""


def test_two_processes_at_once_quietly_and_without_tensorflow(tmp_path):
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for run in runs:
        out, err = run.communicate(timeout=120)
        assert run.returncode == 0, err.decode()
        assert out == err == b""  # TFDS's own messages stay out of the run's output
    versions = [p.name for p in (tmp_path / "uuid_pairs" / config_name(2000, 4)).iterdir() if p.is_dir()]
    assert versions == [VERSION]
