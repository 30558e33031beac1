"""GLUE through TFDS, from archives on a local server: the same rows as from the folder, and faults in seconds."""

import functools
import http.server
import sys
import threading
import zipfile

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.glue import prepared
from lowrank_jax.data.builders.glue.source import FOLDER_VARIABLE, load_glue, split_files
from lowrank_jax.data.builders.glue.specs import GLUE


@pytest.fixture
def tfds_folder(tmp_path, monkeypatch):
    """An empty TFDS folder."""
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.fixture
def server(tmp_path):
    """Folder of a server on this machine, its address, and the paths requested from it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append((self.command, self.path))

    folder = tmp_path / "served"
    folder.mkdir()
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{made.server_port}", asked
    made.shutdown()
    made.server_close()


def data_url(monkeypatch, task, url):
    from tensorflow_datasets.text.glue import Glue

    monkeypatch.setattr(Glue.builder_configs[task], "data_url", url)


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli", "qnli"])
def test_the_rows_are_those_of_the_folder(task, tfds_folder, server, tiny_glue, tmp_path, monkeypatch):
    folder, address, asked = server
    spec = GLUE[task]
    with zipfile.ZipFile(folder / f"{spec.folder}.zip", "w") as archive:
        for path in sorted((tiny_glue / spec.folder).iterdir()):
            archive.write(path, f"{spec.folder}/{path.name}")
            if "dev" in path.name:  # TFDS reads the test files too; their labels are hidden, their form is the same
                archive.write(path, f"{spec.folder}/{path.name.replace('dev', 'test')}")
    if task == "cola":  # whose test file has a header and no labels
        (tmp_path / "test.tsv").write_text("index\tsentence\n0\tText.\n")
        unlabelled = folder / f"{spec.folder}.zip"
        with zipfile.ZipFile(unlabelled) as old:
            kept = {name: old.read(name) for name in old.namelist() if "test" not in name}
        with zipfile.ZipFile(unlabelled, "w") as archive:
            for name, content in kept.items():
                archive.writestr(name, content)
            archive.write(tmp_path / "test.tsv", f"{spec.folder}/test.tsv")
    data_url(monkeypatch, task, f"{address}/{spec.folder}.zip")
    for split in spec.splits:
        theirs, note = load_glue(task, split, allow_partial=True)
        ours, _ = load_glue(task, split, tiny_glue, allow_partial=True)
        assert (theirs.first, theirs.second) == (ours.first, ours.second)
        np.testing.assert_array_equal(theirs.labels, ours.labels)
        assert theirs.labels.dtype == ours.labels.dtype
        assert theirs.digest() == ours.digest()
        assert [path.name.partition("-")[0] for path in split_files(task, split)] == ["glue"]
        assert f"{task} {split}: {len(ours)} rows, officially" in note
    assert [command for command, _ in asked] == ["HEAD", "GET"]  # once for all splits


def test_mrpc_comes_from_the_corpus_own_files(tfds_folder, server, tmp_path, monkeypatch):
    from tensorflow_datasets.text import glue

    served, address, _ = server
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    lines = [f'{i % 2}\t{i}\t{i + 100}\tfirst "{i}\tsecond {i}\n' for i in range(9)]
    ids = "2\t102\n5\t105\n"
    local = tmp_path / "MRPC"
    local.mkdir()
    for path in (served / "train.txt", served / "test.txt", local / "msr_paraphrase_train.txt"):
        path.write_text(header + "".join(lines), encoding="utf-8")
    for path in (served / "ids.tsv", local / "dev_ids.tsv"):
        path.write_text(ids)
    monkeypatch.setattr(prepared, "HOST", address)
    for name, file in (("TRAIN", "train.txt"), ("TEST", "test.txt"), ("DEV_IDS", "ids.tsv")):
        monkeypatch.setattr(glue, f"_MRPC_{name}", f"{address}/{file}")
    for split, wanted in (("train", [0, 1, 3, 4, 6, 7, 8]), ("dev", [2, 5])):
        for data_dir in (None, local):
            rows, _ = load_glue("mrpc", split, data_dir, allow_partial=True)
            assert rows.first == [f'first "{i}' for i in wanted]
            assert rows.second == [f"second {i}" for i in wanted]
            assert rows.labels.tolist() == [i % 2 for i in wanted]


def test_another_number_of_rows_is_refused(tfds_folder, server, tiny_glue, monkeypatch):
    folder, address, _ = server
    with zipfile.ZipFile(folder / "WNLI.zip", "w") as archive:
        for split in ("train", "dev", "test"):
            archive.write(tiny_glue / "WNLI" / f"{split.replace('test', 'dev')}.tsv", f"WNLI/{split}.tsv")
    data_url(monkeypatch, "wnli", f"{address}/WNLI.zip")
    with pytest.raises(UserError, match=r"wnli/2.0.0 dev: has 5 rows, officially 71; .* task.allow_partial=True"):
        load_glue("wnli", "dev")


def test_no_network_is_told_with_both_ways(tfds_folder, monkeypatch):
    data_url(monkeypatch, "rte", "http://127.0.0.1:9/RTE.zip")  # nobody listens there
    with pytest.raises(UserError, match=r"cannot reach .* glue/rte .*task.data_dir or LOWRANK_JAX_GLUE_DIR.*TFDS") as e:
        load_glue("rte", "dev")
    assert "\n" not in str(e.value)


def test_a_silent_host_is_given_up(tfds_folder, monkeypatch):
    import socket

    monkeypatch.setattr(prepared, "REACH", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        data_url(monkeypatch, "rte", f"http://127.0.0.1:{silent.getsockname()[1]}/RTE.zip")
        with pytest.raises(UserError, match=r"cannot reach .*ReadTimeout"):
            load_glue("rte", "dev")


def test_a_damaged_download_names_both_ways(tfds_folder, server, monkeypatch):
    folder, address, _ = server
    (folder / "RTE.zip").write_bytes(b"no archive")
    data_url(monkeypatch, "rte", f"{address}/RTE.zip")
    with pytest.raises(UserError, match=r"TFDS cannot give glue/rte from .*not a zip file.*LOWRANK_JAX_GLUE_DIR"):
        load_glue("rte", "dev")


def test_missing_tfds_is_named(tfds_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"needs tensorflow-datasets .*pip install .*or set task.data_dir"):
        load_glue("cola", "dev")


def test_a_folder_that_tfds_cannot_write(tmp_path, monkeypatch, server):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "file"))
    data_url(monkeypatch, "rte", server[1])
    with pytest.raises(UserError, match=r"TFDS cannot give glue/rte from .*file.*; set task.data_dir"):
        load_glue("rte", "dev")
