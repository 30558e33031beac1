"""GLUE's tsv files: layouts, what counts as text, the faults of a file, and the real files where they are."""

import gzip
import lzma

import numpy as np
import pytest

from lowrank_jax.core.errors import UserError
from lowrank_jax.data.builders.glue.folder import read_folder
from lowrank_jax.data.builders.glue.source import FOLDER_VARIABLE, has_split, load_glue
from lowrank_jax.data.builders.glue.specs import GLUE

SST2 = "sentence\tlabel\ngood \t1\nbad \t0\n"
RTE = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n1\tc\td\tentailment\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    suffix = name.rpartition(".")[2]
    (folder / name).write_bytes({"gz": gzip.compress, "xz": lzma.compress}.get(suffix, bytes)(data))


@pytest.mark.parametrize("task", GLUE)
def test_every_task_is_read_from_the_official_layout(task, tiny_glue):
    spec = GLUE[task]
    for split in spec.splits:
        rows, note = load_glue(task, split, tiny_glue, allow_partial=True)
        count = 8 if split == "train" else 5
        assert len(rows) == len(rows.first) == len(rows.labels) == count
        assert (rows.second is None) == (len(spec.columns) == 1)
        assert rows.first[0].startswith(f"{split} 0 ")
        assert note == f"{task} {split}: {count} rows, officially {' or '.join(map(str, spec.rows[split]))}"
        if spec.labels:
            assert rows.labels.tolist() == [int(c) % len(spec.labels) for c in "01210120"[:count]]
        else:
            np.testing.assert_allclose(rows.labels, np.arange(count) * 5 / 7, atol=1e-3)
    assert len(spec.labels) == len(spec.written)


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "sst-2", "glue-sst2", "glue_sst2_partial", "GLUE-SST-2"])
@pytest.mark.parametrize("name", ["dev.tsv", "dev.tsv.gz", "dev.tsv.xz", "dev_partial.tsv.gz"])
def test_folder_names_and_packings(tmp_path, folder, name):
    write(tmp_path / folder, name, SST2)
    for root in (tmp_path, tmp_path / folder):
        rows = read_folder("sst2", "dev", root)
        assert (rows.first, rows.second, rows.labels.tolist()) == (["good ", "bad "], None, [1, 0])
        assert rows.source == str(tmp_path / folder / name)


def test_a_folder_of_any_name_may_hold_the_files_themselves(tmp_path):
    write(tmp_path, "dev.tsv", SST2)
    assert len(read_folder("sst2", "dev", tmp_path)) == 2


def test_whole_files_come_before_parts_and_parts_are_joined(tmp_path):
    write(tmp_path / "glue-rte-partial", "train_partial.tsv.gz", RTE)
    write(tmp_path / "glue-rte-partial", "train_extra.tsv", RTE)
    assert read_folder("rte", "train", tmp_path).labels.tolist() == [1, 0, 1, 0]
    write(tmp_path / "glue-rte-partial", "train.tsv", RTE)
    assert len(read_folder("rte", "train", tmp_path)) == 2
    write(tmp_path / "RTE", "train.tsv", RTE + "2\te\tf\tentailment\n")
    assert len(read_folder("rte", "train", tmp_path)) == 3


def test_the_folder_may_be_named_by_a_variable(tmp_path, monkeypatch):
    write(tmp_path / "RTE", "dev.tsv", RTE)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert len(load_glue("rte", "dev", allow_partial=True)[0]) == 2
    assert has_split("rte", "dev")
    assert not has_split("rte", "train")
    write(tmp_path / "other", "dev.tsv", RTE.replace("1\tc\td\tentailment\n", ""))
    assert len(load_glue("rte", "dev", tmp_path / "other", allow_partial=True)[0]) == 1  # the argument goes first


def test_what_counts_as_text(tmp_path):
    lines = [
        "index\tsentence1\tsentence2\tlabel",
        '0\t"open\tin "quotes" \tentailment',
        "1\t\u2028line\x85 separators\ta\rlone return\tnot_entailment",
        "2\t\tno first\tentailment",
        "",
        "3\tlast\tnaïve 日本\tentailment\tone column more",
    ]
    for ending in ("\n", "\r\n"):
        write(tmp_path / "RTE", "dev.tsv", ("\ufeff" + ending.join(lines)).encode())  # no line end at the end either
        rows = read_folder("rte", "dev", tmp_path)
        assert rows.first == ['"open', "\u2028line\x85 separators", "", "last"]
        assert rows.second == ['in "quotes" ', "a\rlone return", "no first", "naïve 日本"]
        assert rows.labels.tolist() == [0, 1, 0, 0]


def test_columns_are_found_by_name(tmp_path):
    write(tmp_path / "MNLI", "dev_matched.tsv", "gold_label\textra\tsentence2\tsentence1\ncontradiction\tx\tb\ta\n")
    rows = read_folder("mnli", "dev_matched", tmp_path)
    assert (rows.first, rows.second, rows.labels.tolist()) == (["a"], ["b"], [2])


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        ("rte", RTE[:-12], r"dev.tsv, line 3: has 3 of 4 columns; the file is cut short or damaged, fetch it again"),
        ("rte", RTE + "2\te\n3\te\tf\tentailment\n", "line 4: has 2 of 4 columns"),
        ("rte", RTE[:-3], "line 3: the label 'entailme' is none of"),
        ("rte", RTE[6:], "line 2: the label 'b' is none of"),
        ("rte", RTE.replace("sentence2", "text"), r"line 1: the header lacks 'sentence2', it has 'index', 'sentence1'"),
        ("rte", RTE.replace("\t", ","), "line 1: the header lacks 'sentence1', 'sentence2', 'label', it has 'index,"),
        ("rte", RTE.replace("not_", "no "), r"line 2: the label 'no entailment' is none of entailment, not_entailment"),
        ("rte", RTE.splitlines()[0], "dev.tsv: has no rows"),
        ("rte", "", "line 1: the header lacks"),
        ("sst2", SST2.replace("\t0", "\t2"), "line 3: the label '2' is none of 0, 1; use GLUE's own SST-2 file"),
        ("cola", "label\tmark\n", "line 1: has 2 of 4 columns"),
        ("cola", "source\tlabel\tmark\tsentence\ngj\t1\t\tText.\n", "line 1: the label 'label' is none of 0, 1"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t5.001\n", "line 2: the score '5.001' is no number from 0 to 5"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\tnan\n", "line 2: the score 'nan' is no number"),
        ("stsb", "sentence1\tsentence2\tscore\na\tb\t\n", "line 2: the score '' is no number"),
        ("rte", b"index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\tentailment\n", "dev.tsv, line 2: not UTF-8"),
    ],
)
def test_faults_name_file_line_and_remedy(tmp_path, task, text, message):
    write(tmp_path / GLUE[task].folder, "dev.tsv", text)
    with pytest.raises(UserError, match=message) as error:
        load_glue(task, "dev", tmp_path, allow_partial=True)
    assert "\n" not in str(error.value)


def test_a_packed_file_that_is_cut_short(tmp_path):
    write(tmp_path / "SST-2", "dev.tsv.gz", SST2 + "good \t1\n" * 50)
    path = tmp_path / "SST-2" / "dev.tsv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"dev.tsv.gz, after line \d+: cannot be read .*fetch the file again"):
        read_folder("sst2", "dev", tmp_path)


def test_line_breaks_in_questions_are_left_out_but_not_a_cut(tmp_path):
    row = "1\t2\t3\tone?\ttwo?\t1\n"
    broken = "4\t5\t6\tone with a\n break?\ttwo?\t0\n"
    write(tmp_path / "QQP", "dev.tsv", QQP + row + broken + row)
    assert len(read_folder("qqp", "dev", tmp_path)) == 2
    write(tmp_path / "QQP", "dev.tsv", QQP + row + broken + row + "7\t8\t9\tone")
    with pytest.raises(UserError, match="line 6: has 4 of 6 columns"):
        read_folder("qqp", "dev", tmp_path)
    write(tmp_path / "QQP", "dev.tsv", QQP + broken * 40 + row)
    with pytest.raises(UserError, match="line 2: has 4 of 6 columns"):
        read_folder("qqp", "dev", tmp_path)


def test_counts_are_official_or_allowed(tmp_path):
    lines = [f"{i}\ta\tb\t{i % 2}\n" for i in range(72)]
    header = "index\tsentence1\tsentence2\tlabel\n"
    write(tmp_path / "WNLI", "dev.tsv", header + "".join(lines[:71]))
    assert load_glue("wnli", "dev", tmp_path)[1] is None
    for count in (70, 72):
        write(tmp_path / "WNLI", "dev.tsv", header + "".join(lines[:count]))
        with pytest.raises(UserError, match=f"has {count} rows, officially 71; fetch the whole file, or set"):
            load_glue("wnli", "dev", tmp_path)
        assert load_glue("wnli", "dev", tmp_path, True)[1] == f"wnli dev: {count} rows, officially 71"


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"absent: no such folder; task.data_dir"):
        load_glue("rte", "dev", tmp_path / "absent")
    with pytest.raises(UserError, match=r"has no folder RTE \(or glue-rte\); check task.data_dir"):
        load_glue("rte", "dev", tmp_path)
    write(tmp_path / "RTE", "dev.tsv", RTE)
    with pytest.raises(UserError, match=r"RTE has no train.tsv or train.tsv.gz or train_partial.tsv"):
        load_glue("rte", "train", tmp_path)
    write(tmp_path / "MRPC", "msr_paraphrase_train.txt", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n")
    with pytest.raises(UserError, match=r"has msr_paraphrase_train.txt but no dev_ids.tsv"):
        load_glue("mrpc", "train", tmp_path)
    with pytest.raises(UserError, match="unknown GLUE task 'sst-2'; did you mean sst2"):
        load_glue("sst-2", "dev", tmp_path)
    with pytest.raises(UserError, match="unknown split of mnli 'dev'; did you mean dev_m"):
        load_glue("mnli", "dev", tmp_path)


# Rows of each class (or rows alone) in public copies of the files.
REAL = {
    ("cola", "train"): [2528, 6023],
    ("cola", "dev"): [322, 721],
    ("sst2", "train"): [29780, 37569],
    ("sst2", "dev"): [428, 444],
    ("mrpc", "train"): [1194, 2474],
    ("mrpc", "dev"): [129, 279],
    ("stsb", "train"): 5749,
    ("stsb", "dev"): 1500,
    ("rte", "train"): [1249, 1241],
    ("rte", "dev"): [146, 131],
    ("wnli", "train"): [323, 312],
    ("wnli", "dev"): [40, 31],
    ("qnli", "dev"): [2702, 2761],
    ("qqp", "train"): [25379 - 8747 - 724, 8747 + 724],
    ("qqp", "dev"): [7600 - 2729, 2729],
    ("mnli", "train"): [995, 995, 1010],
    ("mnli", "dev_matched"): [2681, 2353, 2435],
}
PARTS = ("qqp", "mnli")


@pytest.mark.parametrize(("task", "split"), REAL)
def test_real_files(task, split, data_folder):
    if not any(path.name.startswith(f"glue-{task}") for path in data_folder.iterdir()):
        pytest.skip(f"{data_folder} has no {task}")
    rows, note = load_glue(task, split, data_folder, allow_partial=task in PARTS)
    assert (note is None) == (task not in PARTS)
    assert len(rows.second or rows.first) == len(rows.first)
    if GLUE[task].labels:
        assert np.bincount(rows.labels).tolist() == REAL[task, split]
    else:
        assert len(rows) == REAL[task, split]
        assert 0 <= rows.labels.min() < 0.5 < 4.5 < rows.labels.max() <= 5
    assert not [text for text in rows.first if "\t" in text or "\n" in text or "\ufeff" in text]


def test_real_parts_are_refused_unless_allowed(data_folder):
    if not (data_folder / "glue-mnli-partial").is_dir():
        pytest.skip(f"{data_folder} has no glue-mnli-partial")
    with pytest.raises(UserError, match="has 3000 rows, officially 392702"):
        load_glue("mnli", "train", data_folder)
    assert not has_split("mnli", "dev_mismatched", data_folder)
